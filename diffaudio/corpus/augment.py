"""Augmentation of sound: what changes a recording without changing what it is of.

    x   waveforms [batch, samples], any level

Draws come from a CPU generator, in the order of the items.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["add_noise", "change_speed", "crop_or_lay", "filter_smoothly"]

FILTER_BANDS = 8


def crop_or_lay(waveform: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
    """A random crop; a shorter sound is repeated from a random phase, or, as often, laid into silence somewhere.

    Args:
        waveform: [samples], at least one.

    Returns:
        [num_samples]
    """
    spare = len(waveform) - num_samples
    start = int(torch.randint(abs(spare) + 1, (), generator=generator))
    if spare >= 0:
        return waveform[start : start + num_samples]
    if torch.rand((), generator=generator) < 0.5:
        return F.pad(waveform, (start, -spare - start))
    return waveform.roll(start).repeat(-(-num_samples // len(waveform)))[:num_samples]


def change_speed(waveform: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """Play faster or slower, by up to a share of `largest`; pitch goes along.

    Args:
        waveform: [samples].

    Returns:
        [about samples / (1 ± largest)]; linear interpolation, so that highs lose a little.
    """
    factor = 1 + largest * (2 * float(torch.rand((), generator=generator)) - 1)
    num_samples = max(1, round(len(waveform) / factor))
    return F.interpolate(waveform[None, None], size=num_samples, mode="linear", align_corners=True)[0, 0]


def filter_smoothly(x: Tensor, gain_db: float, generator: torch.Generator) -> Tensor:
    """A random frequency response for each item: gains at points spaced evenly in Hz, linear between them.

    Args:
        x: [batch, samples].
        gain_db: the gains lie between plus and minus this.
    """
    spectrum = torch.fft.rfft(x)
    gains_db = gain_db * (2 * torch.rand(len(x), 1, FILTER_BANDS, generator=generator) - 1)
    response_db = F.interpolate(gains_db, size=spectrum.shape[-1], mode="linear", align_corners=True)[:, 0]
    return torch.fft.irfft(spectrum * 10 ** (response_db / 20), n=x.shape[-1])


def add_noise(x: Tensor, loudest_db: float, generator: torch.Generator) -> Tensor:
    """White noise, between 60 dB below `loudest_db` and that.

    Args:
        x: [batch, samples].
        loudest_db: standard deviation of the noise, below the item's peak.
    """
    level_db = loudest_db - 60 * torch.rand(len(x), 1, generator=generator)
    return x + x.abs().amax(dim=1, keepdim=True) * 10 ** (level_db / 20) * torch.randn(x.shape, generator=generator)
