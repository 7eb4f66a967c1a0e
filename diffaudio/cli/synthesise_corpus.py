"""`diffaudio synthesise-corpus`: videos from formulas, with labels."""

import sys
from pathlib import Path

from diffaudio.cli.options import Parser, between

__all__ = ["run"]


def run(arguments: list[str]) -> None:
    parser = Parser(
        prog="diffaudio synthesise-corpus",
        description="Draw videos of simple things that move, with the sounds they make: bells, rain, trains, … "
        "The same settings give the same files; running it again continues, with a larger --clips too.",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for videos/ and labels.csv")
    parser.add_argument("--clips", type=between(int, 1, 1e9), required=True, metavar="N", help="how many videos")
    parser.add_argument("--seed", type=between(int, 0), default=0, help="others give other videos (default: 0)")
    parser.add_argument(
        "--duration",
        type=between(float, 0.5, 600),
        default=5.0,
        metavar="SECONDS",
        help="of each, 0.5 to 600 (default: %(default)s)",
    )
    parser.add_argument("--size", type=between(int, 32, 2048), default=128, help="pixels a side (default: %(default)s)")
    parser.add_argument("--frame-rate", type=between(int, 1, 60), default=25, help="(default: %(default)s)")
    given = parser.parse_args(arguments)

    from diffaudio.corpus.synthetic.run import KINDS, SynthesisSettings, synthesise_corpus

    settings = SynthesisSettings(given.seed, given.duration, given.size, given.frame_rate)
    written = synthesise_corpus(given.output, given.clips, settings, progress=sys.stderr.isatty())
    print(f"{given.output / 'videos'}: {given.clips} videos of {len(KINDS)} kinds, {written} of them new")
    print(f"what each is of: {given.output / 'labels.csv'}")
