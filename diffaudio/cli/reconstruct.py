"""`diffaudio reconstruct`: sound there and back through an autoencoder, to hear and see what its latents keep."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffaudio.cli.options import check_exists
from diffaudio.config import NonNegative, parse_command
from diffaudio.errors import UserError

if TYPE_CHECKING:
    from diffaudio.evaluation.reconstruct_file import Reconstruction

__all__ = ["run"]

PLOTTED_S = 60.0
MIN_DURATION_S = 0.05
MIN_WINDOW_S = 0.5


@dataclass(kw_only=True)
class Options:
    """The options of the command.

    Attributes:
        input: a sound file or video, or a folder of them.
        output: a .wav or .flac file; of a folder, a folder of .wav files.
        autoencoder: ours, a model of ours, or one in the format of its library, such as facebook/encodec_24khz; a
            folder or hub id (default: the bundled model's).
        bandwidth: quantise the latents on the way back, at one of EnCodec's bandwidths in kbit/s.
        start: where to begin, in seconds.
        duration: how much, in seconds (default: the rest).
        window: seconds that are encoded and decoded at once; less takes less memory.
        plot: draw both spectrograms beside what is written (.png), of a minute at most.
        device: auto, cpu, cuda, cuda:1, mps.
    """

    input: Path
    output: Path
    autoencoder: str | None = None
    bandwidth: NonNegative | None = None
    start: NonNegative = 0.0
    duration: float | None = None
    window: float = 10.0
    plot: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.duration is not None and not self.duration >= MIN_DURATION_S:
            raise UserError(f"--duration is {self.duration:g}; {MIN_DURATION_S:g} s or more is needed")
        if not self.window >= MIN_WINDOW_S:
            raise UserError(f"--window is {self.window:g}; {MIN_WINDOW_S:g} s or more is needed")


def run(arguments: list[str]) -> None:
    given = parse_command(
        Options,
        arguments,
        program="diffaudio reconstruct",
        description="Encode sound and decode it again: what comes back is the best that a diffusion model can reach "
        "in these latents. Of any length; long sound goes in windows.",
        epilog="The autoencoder gets the sound at a peak of 0.7, as it was fitted; what it gives is brought back to "
        "the sound's own level. It is written at the autoencoder's rate and channels.",
        flags={"input": ("input",), "output": ("-o", "--output")},
    )
    check_exists(given.input)

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
    encode, decode = (_speed(made.duration_s / max(taken_s, 1e-9)) for taken_s in (made.encode_s, made.decode_s))
    text = (
        f"{target}: {made.duration_s:.1f} s at {sample_rate} Hz, log-mel distance {made.log_mel_distance_db:.2f} dB; "
        f"encoded {encode} and decoded {decode} times faster than real time"
    )
    return text + (f"; {made.clipped} samples above full scale were clipped" if made.clipped else "")


def _speed(ratio: float) -> str:
    """Such as 1,640, 38 or 0.75: never 1.6e+03."""
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}"
