"""`diffaudio synthesise-corpus`: synthetic videos computed from formulas, with labels."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from diffaudio.config import Count, parse_command
from diffaudio.corpus.synthetic.run import KINDS, SynthesisSettings, synthesise_corpus

__all__ = ["run"]


@dataclass(kw_only=True)
class Options:
    """The options of `diffaudio synthesise-corpus`.

    Attributes:
        output: folder in which to write videos/ and labels.csv.
        clips: number of videos.
    """

    output: Path
    clips: Count
    settings: SynthesisSettings = field(default_factory=SynthesisSettings)


def run(arguments: list[str]) -> None:
    given = parse_command(
        Options,
        arguments,
        program="diffaudio synthesise-corpus",
        description="Draw videos of simple things that move, with the sounds they make: bells, rain, trains, … "
        "The same settings give the same files; running it again continues, with a larger --clips too.",
        flags={"output": ("-o", "--output"), "settings.duration_s": ("--duration",), "settings.side": ("--size",)},
    )
    written = synthesise_corpus(given.output, given.clips, given.settings, progress=sys.stderr.isatty())
    print(f"{given.output / 'videos'}: {given.clips} videos of {len(KINDS)} kinds, {written} of them new")
    print(f"what each is of: {given.output / 'labels.csv'}")
