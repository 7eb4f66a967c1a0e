"""Plots of audio and latents: log-mel spectrograms, statistics of latent channels."""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio.functional as AF
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from diffaudio.atomic_io import atomic_file

__all__ = [
    "comparison_figure",
    "spectrogram_figure",
    "spectrogram_image",
    "write_channel_plot",
    "write_comparison",
    "write_spectrogram",
]

_NUM_MELS = 96
_RANGE_DB = 80.0
_N_FFT = 1024
_COLOURS = "magma"


def spectrogram_figure(waveform: Tensor, sample_rate: int, *, title: str = "") -> Figure:
    """Plot the mel spectrogram of a waveform in dB below its loudest point.

    Args:
        waveform: [channels, samples]; the channels are averaged.
        title: shortened to one line.
    """
    # Figure itself, not pyplot: no display, no state kept between calls
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.add_subplot()
    image = _draw(axes, waveform, sample_rate, title)
    figure.colorbar(image, label="dB")
    return figure


def comparison_figure(sounds: Sequence[tuple[str, Tensor]], sample_rate: int) -> Figure:
    """Plot the spectrograms of several waveforms below each other, each in dB below its loudest point.

    Args:
        sounds: title and waveform [channels, samples] of each.
    """
    figure = Figure(figsize=(8, 2.8 * len(sounds)), layout="constrained")
    rows: Any = figure.subplots(len(sounds), sharex=True, squeeze=False)[:, 0]
    images = [_draw(axes, waveform, sample_rate, title) for axes, (title, waveform) in zip(rows, sounds, strict=True)]
    figure.colorbar(images[0], ax=rows, label="dB")
    return figure


def write_comparison(path: Path, sounds: Sequence[tuple[str, Tensor]], sample_rate: int) -> None:
    """Save `comparison_figure` atomically, in the format of the suffix, such as .png."""
    figure = comparison_figure(sounds, sample_rate)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=100)


def write_channel_plot(
    path: Path, mean: np.ndarray, std: np.ndarray, low: np.ndarray, high: np.ndarray, *, title: str = ""
) -> None:
    """Plot the mean, standard deviation and extremes of each channel of latents.

    Args:
        mean, std, low, high: [channels].
    """
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.add_subplot()
    channels = np.arange(len(mean))
    axes.vlines(channels, low, high, color="#c9c2d6", linewidth=1, label="extremes")
    axes.vlines(channels, mean - std, mean + std, color="#5b3a8e", linewidth=2, label="mean ± std")
    axes.plot(channels, mean, ".", color="#1f1235", markersize=3)
    for level in (-1, 1):
        axes.axhline(level, color="#b0562b", linewidth=0.8, linestyle="--")
    axes.set_yscale("symlog", linthresh=2)
    marks = (-1000, -300, -100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100, 300, 1000)
    axes.set_yticks(marks, [str(mark) for mark in marks])
    axes.minorticks_off()
    axes.set_ylim(min(1.2 * np.nanmin(low), -2), max(1.2 * np.nanmax(high), 2))
    axes.set(xlabel="channel", ylabel="latent", xlim=(-1, len(mean)))
    axes.set_title(_shortened(title), parse_math=False)
    axes.legend(loc="upper right", frameon=False, fontsize="small")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=100)


def write_spectrogram(path: Path, waveform: Tensor, sample_rate: int, *, title: str = "") -> None:
    """Save `spectrogram_figure` atomically, in the format of the suffix, such as .png."""
    figure = spectrogram_figure(waveform, sample_rate, title=title)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=100)


def spectrogram_image(waveform: Tensor, sample_rate: int, *, width: int = 256) -> Image.Image:
    """The spectrogram without axes, `width` x 96 pixels, which takes milliseconds.

    Args:
        waveform: [channels, samples]; the channels are averaged.
    """
    level = _mel_db(waveform, sample_rate, max(1, waveform.shape[-1] // width))[:, :width]
    image = Image.fromarray((255 / _RANGE_DB * (level + _RANGE_DB)).round().to(torch.uint8).flip(0).numpy(), mode="P")
    image.putpalette(_palette())
    return image


def _draw(axes: Any, waveform: Tensor, sample_rate: int, title: str) -> Any:
    """The mel spectrogram on axes in Hz and seconds."""
    image = axes.imshow(
        _mel_db(waveform, sample_rate, _N_FFT // 4).numpy(),
        origin="lower",
        aspect="auto",
        extent=(0, waveform.shape[-1] / sample_rate, 0, _mel(sample_rate / 2)),
        vmin=-_RANGE_DB,
        vmax=0,
        cmap=_COLOURS,
    )
    marks_hz = [f for f in (100, 250, 500, 1000, 2000, 4000, 8000, 16000) if f < sample_rate / 2]
    axes.set_yticks([_mel(f) for f in marks_hz], [str(f) for f in marks_hz])
    axes.set(xlabel="s", ylabel="Hz")
    axes.set_title(_shortened(title), parse_math=False)
    return image


def _shortened(title: str) -> str:
    return title if len(title) <= 90 else f"{title[:89]}…"


@lru_cache
def _palette() -> bytes:
    return (colormaps[_COLOURS](np.arange(256))[:, :3] * 255).round().astype(np.uint8).tobytes()


@lru_cache
def _mel_filters(sample_rate: int) -> Tensor:
    return AF.melscale_fbanks(_N_FFT // 2 + 1, 0.0, sample_rate / 2, _NUM_MELS, sample_rate).T.contiguous()


def _mel_db(waveform: Tensor, sample_rate: int, hop: int) -> Tensor:
    """[channels, samples] -> [mels, steps], 0 dB at the loudest point."""
    mono = waveform.detach().float().cpu().mean(dim=0)
    spectrum = torch.stft(mono, _N_FFT, hop, window=torch.hann_window(_N_FFT), pad_mode="constant", return_complex=True)
    level = 10 * (_mel_filters(sample_rate) @ spectrum.abs().square()).clamp(min=1e-10).log10()
    return (level - level.max()).clamp(min=-_RANGE_DB)


def _mel(frequency_hz: float) -> float:
    return 2595 * math.log10(1 + frequency_hz / 700)
