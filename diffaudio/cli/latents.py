"""`diffaudio latents`: per-channel statistics of latents, and fitting an autoencoder's mean and scale to sounds."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaudio.cli.options import check_exists
from diffaudio.config import parse_command
from diffaudio.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from diffaudio.corpus.inspect.latent_statistics import LatentStatistics

__all__ = ["run"]

WORST = 8  # channels in the short table
PIECE_S = 10.0  # seconds of sound that a fit processes at once


@dataclass(kw_only=True)
class Options:
    """The options of `diffaudio latents`.

    Attributes:
        folder: an encoded corpus, or a folder of sounds or videos to encode.
        autoencoder: folder or hub id of a diffaudio autoencoder or model, or of an autoencoder in its library's format,
            such as facebook/encodec_24khz (default: the bundled model's).
        output: plot the channels to this .png file; its folder is created if it does not exist.
        all: list every channel, not only the worst.
        fit: fit the latent mean and scale of an autoencoder in its library's format to these sounds, and save the
            autoencoder to this folder, which --autoencoder accepts.
        device: auto, cpu, cuda, cuda:N (such as cuda:1) or mps.
    """

    folder: Path
    autoencoder: str | None = None
    output: Path | None = None
    all: bool = False
    fit: Path | None = None
    device: str = "auto"


def run(arguments: list[str]) -> None:
    given = parse_command(
        Options,
        arguments,
        program="diffaudio latents",
        description="Mean, standard deviation, extremes and kurtosis of latents by channel, with warnings about "
        "channels that are dead, explode, or are far from mean 0. Diffusion models expect a standard "
        "deviation of 1 overall.",
        epilog="Sounds are encoded at a peak of 0.7, as `diffaudio encode` does. Kurtosis is 0 for a Gaussian.",
        flags={"folder": ("folder",), "output": ("-o", "--output")},
    )
    check_exists(given.folder)
    if given.output is not None and given.output.suffix != ".png":
        raise UserError(f"{given.output}: name a .png file")
    is_corpus = (given.folder / "manifest.json").is_file()
    if is_corpus and (given.autoencoder or given.fit or given.device != "auto"):
        raise UserError(
            f"{given.folder}: is an encoded corpus; --autoencoder, --device and --fit have no effect on it, they are "
            "for a folder of sounds or videos"
        )
    if given.fit is not None and given.fit.exists() and (not given.fit.is_dir() or any(given.fit.iterdir())):
        raise UserError(f"{given.fit}: already exists; name a new or empty folder")

    statistics, name = _of_corpus(given.folder) if is_corpus else _of_sounds(given)
    from diffaudio.corpus.inspect.latent_statistics import latent_warnings

    for line in _table(statistics, everything=given.all):
        print(line)
    for warning in latent_warnings(statistics):
        print(f"warning: {warning}")
    if given.output is not None:
        from diffaudio.media.spectrogram_plot import write_channel_plot

        given.output.parent.mkdir(parents=True, exist_ok=True)
        s = statistics
        write_channel_plot(given.output, s.mean, s.std, s.minimum, s.maximum, title=f"{name}, {given.folder.name}")
    print(
        f"{given.folder}: {statistics.num_sounds} sounds, {statistics.num_frames} frames of {name}; "
        f"standard deviation over all channels {statistics.overall_std:.3g}"
    )


def _of_corpus(folder: Path) -> "tuple[LatentStatistics, str]":
    from diffaudio.corpus import store
    from diffaudio.corpus.encode import run as encode
    from diffaudio.corpus.inspect.latent_statistics import LatentStatistics, encoded_latents

    autoencoder = store.read_manifest(folder, encode.FORMAT, encode.VERSION)["autoencoder"]
    statistics = LatentStatistics(autoencoder["latent_channels"])
    for latents in encoded_latents(folder):
        statistics.add(latents)
    return _not_empty(statistics, folder), autoencoder["name"]


def _of_sounds(given: Any) -> "tuple[LatentStatistics, str]":
    import torch

    from diffaudio.atomic_io import atomic_folder
    from diffaudio.checkpoint import load_coder
    from diffaudio.corpus.inspect.latent_statistics import LatentStatistics
    from diffaudio.evaluation.sound_files import find_sounds
    from diffaudio.generation.batch import choose_device
    from diffaudio.models.autoencoders.adapters.base import AdaptedAutoencoder
    from diffaudio.models.autoencoders.windows import encode_windows

    files = [file.path for file in find_sounds(given.folder)]
    autoencoder = load_coder(given.autoencoder)
    torch.nn.Module.to(autoencoder, device=choose_device(given.device))
    waveforms = _reader(autoencoder)
    if given.fit is not None:
        if not isinstance(autoencoder, AdaptedAutoencoder):
            raise UserError(
                f"--fit is for autoencoders of other libraries; {autoencoder.name} is fitted by train/autoencoder.py"
            )
        samples = round(PIECE_S * autoencoder.sample_rate)
        autoencoder.fit_latents(piece for path in files for piece in waveforms(path).split(samples, dim=-1))
        with atomic_folder(given.fit) as folder:
            autoencoder.save_pretrained(folder)
    statistics = LatentStatistics(autoencoder.latent_channels)
    for path in files:
        latents = torch.cat(list(encode_windows(autoencoder, waveforms(path))), dim=-1)
        statistics.add(latents[0].float().cpu().numpy())
    return _not_empty(statistics, given.folder), autoencoder.name


def _reader(autoencoder: Any) -> "Callable[[Path], Tensor]":
    from diffaudio.media.audio import read_audio, scale_to_peak

    def read(path: Path) -> "Tensor":
        """[1, audio_channels, samples]"""
        waveform, _ = read_audio(path, sample_rate=autoencoder.sample_rate, channels=autoencoder.audio_channels)
        if waveform.shape[-1] == 0:
            raise UserError(f"{path}: holds no sound; take it out")
        return scale_to_peak(waveform)[None]

    return read


def _not_empty(statistics: "LatentStatistics", folder: Path) -> "LatentStatistics":
    if statistics.num_frames == 0:
        raise UserError(f"{folder}: holds no latents yet; run `diffaudio encode` first")
    return statistics


def _table(statistics: "LatentStatistics", *, everything: bool) -> Iterator[str]:
    """All channels in order, or the worst: those whose standard deviation is furthest from the median come first."""
    import numpy as np

    s, std = statistics, statistics.std
    order = np.arange(s.channels)
    if not everything:
        median = max(float(np.median(std)), 1e-12)
        ratio = np.abs(np.log(np.maximum(std, 1e-12) / median)) + np.abs(s.mean) / median
        ratio[[*s.exploding(), *s.dead()]] += 1000
        order = np.argsort(-ratio, kind="stable")[:WORST]
    yield "channel      mean        std   minimum   maximum  kurtosis"
    columns = np.stack([s.mean, std, s.minimum, s.maximum, s.kurtosis], axis=1)
    for channel in order:
        cells = [f"{value:9.3g}" if math.isfinite(value) else f"{'-':>9}" for value in columns[channel]]
        yield f"{channel:7d} {cells[0]}  {cells[1]} {cells[2]} {cells[3]} {cells[4]}"
    if len(order) < s.channels:
        yield f"    … and {s.channels - len(order)} more; --all tells of every one"
