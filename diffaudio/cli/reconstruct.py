"""`diffaudio reconstruct`: sound there and back through an autoencoder, to hear and see what its latents keep."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from diffaudio.cli.options import Parser, between
from diffaudio.errors import UserError

if TYPE_CHECKING:
    from diffaudio.evaluation.reconstruct_file import Reconstruction

__all__ = ["run"]

PLOTTED_S = 60.0


def run(arguments: list[str]) -> None:
    given = _parser().parse_args(arguments)

    from torch import nn

    from diffaudio.checkpoint import load_coder
    from diffaudio.evaluation.reconstruct_file import reconstruct_file
    from diffaudio.evaluation.sound_files import find_sounds
    from diffaudio.generation.batch import choose_device

    if given.input.is_dir():
        if given.output.suffix or given.output.is_file():
            raise UserError(f"{given.output}: {given.input} is a folder; name a folder for what comes back")
        jobs = [(file.path, given.output / f"{file.name}.wav") for file in find_sounds(given.input)]
    else:
        jobs = [(given.input, _target(given.input, given.output))]
    autoencoder = load_coder(given.autoencoder, bandwidth=given.bandwidth)
    nn.Module.to(autoencoder, device=choose_device(given.device))
    for source, target in jobs:
        if given.input.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
        part = {"start_s": given.start, "duration_s": given.duration}
        made = reconstruct_file(source, target, autoencoder, window_s=given.window, **part)
        if given.plot:
            _plot(source, target, given.start, given.duration)
        print(_told(target, autoencoder.sample_rate, made))


def _parser() -> Parser:
    parser = Parser(
        prog="diffaudio reconstruct",
        description="Encode sound and decode it again: what comes back is the best that a diffusion model can reach "
        "in these latents. Of any length; long sound goes in windows.",
        epilog="The autoencoder gets the sound at a peak of 0.7, as it was fitted; what it gives is brought back to "
        "the sound's own level. It is written at the autoencoder's rate and channels.",
    )
    parser.add_argument("input", type=Path, help="a sound file or video, or a folder of them")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="a .wav or .flac file; of a folder, a folder of .wav files"
    )
    add_autoencoder(parser)
    parser.add_argument(
        "--bandwidth",
        type=between(float, 0),
        metavar="KBPS",
        help="quantise the latents on the way back, at one of EnCodec's bandwidths in kbit/s",
    )
    parser.add_argument(
        "--start", type=between(float, 0), default=0.0, metavar="SECONDS", help="where to begin (default: %(default)s)"
    )
    parser.add_argument("--duration", type=between(float, 0.05), metavar="SECONDS", help="how much (default: the rest)")
    parser.add_argument(
        "--window",
        type=between(float, 0.5),
        default=10.0,
        metavar="SECONDS",
        help="encoded and decoded at once; less takes less memory (default: %(default)s)",
    )
    parser.add_argument(
        "--plot",
        action="store_true",
        help=f"draw both spectrograms beside what is written (.png), of a minute at most ({PLOTTED_S:g} s)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    return parser


def add_autoencoder(parser: argparse.ArgumentParser) -> None:
    """`--autoencoder`, for `model_folder.load_coder`."""
    parser.add_argument(
        "--autoencoder",
        metavar="FOLDER|ID",
        help="ours, a model of ours, or one in the format of its library, such as facebook/encodec_24khz (default: "
        "the bundled model's)",
    )


def _target(source: Path, output: Path) -> Path:
    from diffaudio.media.audio import check_audio_path

    check_audio_path(output)
    if output.exists() and source.exists() and output.samefile(source):
        raise UserError(f"{output}: is the sound itself; name another file")
    return output


def _plot(source: Path, target: Path, start_s: float, duration_s: float | None) -> None:
    from diffaudio.media.audio import read_audio
    from diffaudio.media.spectrogram_plot import write_comparison

    shown_s = min(PLOTTED_S, duration_s or PLOTTED_S)
    made, rate = read_audio(target, duration_s=shown_s)
    original, _ = read_audio(source, sample_rate=rate, channels=len(made), start_s=start_s, duration_s=shown_s)
    pair = [(source.name, original[:, : made.shape[1]]), (target.name, made)]
    write_comparison(target.with_suffix(".png"), pair, rate)


def _told(target: Path, sample_rate: int, made: "Reconstruction") -> str:
    text = (
        f"{target}: {made.duration_s:.1f} s at {sample_rate} Hz, log-mel distance {made.log_mel_distance_db:.2f} dB; "
        f"encoded {made.duration_s / max(made.encode_s, 1e-9):.3g} and decoded "
        f"{made.duration_s / max(made.decode_s, 1e-9):.3g} times faster than real time"
    )
    return text + (f"; {made.clipped} samples above full scale were clipped" if made.clipped else "")
