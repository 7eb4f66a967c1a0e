"""`diffaudio reconstruct`: encode sound and decode it again, to hear and see what the latents preserve."""

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
    """The options of `diffaudio reconstruct`.

    Attributes:
        input: a sound file or video, or a folder of them.
        output: .wav, .flac, .ogg, .opus or .mp3 file, or for an input folder a folder of .wav files; folders are
            created as needed.
        autoencoder: folder or hub id of a diffaudio autoencoder or model, or of an autoencoder in its library's format,
            such as facebook/encodec_24khz (default: the bundled model's).
        bandwidth: quantise the latents before decoding, at one of EnCodec's bandwidths in kbit/s.
        start: start of the segment, in seconds.
        duration: length of the segment, in seconds (default: to the end).
        window: seconds encoded and decoded at once; shorter windows use less memory.
        plot: write both spectrograms next to the output (.png), of the first minute at most.
        device: auto, cpu, cuda, cuda:N (such as cuda:1) or mps.
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
        description="Encode sound and decode it again: the reconstruction is the best that a diffusion model can reach "
        "in these latents. Sound of any length is processed in windows.",
        epilog="Sound is encoded at a peak of 0.7, the level autoencoders are fitted at; the reconstruction is scaled "
        "back to the original level. It has the autoencoder's sample rate and channels.",
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
            raise UserError(f"{given.output}: {given.input} is a folder; name a folder for the reconstructions")
        jobs = [(file.path, given.output / f"{file.name}.wav") for file in find_sounds(given.input)]
    else:
        jobs = [(given.input, _target(given.input, given.output))]
    autoencoder = load_coder(given.autoencoder, bandwidth=given.bandwidth)
    nn.Module.to(autoencoder, device=choose_device(given.device))
    for source, target in jobs:
        part = {"start_s": given.start, "duration_s": given.duration}
        target.parent.mkdir(parents=True, exist_ok=True)
        result = reconstruct_file(source, target, autoencoder, window_s=given.window, **part)
        if given.plot:
            _plot(source, target, given.start, given.duration)
        print(_summary(target, autoencoder.sample_rate, result))


def _target(source: Path, output: Path) -> Path:
    from diffaudio.media.audio import check_audio_path
    from diffaudio.media.audio_formats import FORMATS

    if output.suffix.lower() in FORMATS:
        output.parent.mkdir(parents=True, exist_ok=True)
    check_audio_path(output)
    if output.exists() and source.exists() and output.samefile(source):
        raise UserError(f"{output}: is the input itself; name another file")
    return output


def _plot(source: Path, target: Path, start_s: float, duration_s: float | None) -> None:
    from diffaudio.media.audio import read_audio
    from diffaudio.media.spectrogram_plot import write_comparison

    shown_s = min(PLOTTED_S, duration_s or PLOTTED_S)
    decoded, rate = read_audio(target, duration_s=shown_s)
    original, _ = read_audio(source, sample_rate=rate, channels=len(decoded), start_s=start_s, duration_s=shown_s)
    pair = [(source.name, original[:, : decoded.shape[1]]), (target.name, decoded)]
    write_comparison(target.with_suffix(".png"), pair, rate)


def _summary(target: Path, sample_rate: int, result: "Reconstruction") -> str:
    encode, decode = (_speed(result.duration_s / max(taken_s, 1e-9)) for taken_s in (result.encode_s, result.decode_s))
    text = (
        f"{target}: {result.duration_s:.1f} s at {sample_rate} Hz, "
        f"log-mel distance {result.log_mel_distance_db:.2f} dB; encoded {encode} "
        f"and decoded {decode} times faster than real time"
    )
    return text + (f"; {result.clipped} samples above full scale were clipped" if result.clipped else "")


def _speed(ratio: float) -> str:
    """Formatted such as 1,640, 38 or 0.75, never as 1.6e+03."""
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}"
