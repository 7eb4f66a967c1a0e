"""The spectral autoencoder's code in closed form: the principal components of a corpus' log-mel patches."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from diffaudio.models.autoencoders import SpectralAutoencoder

__all__ = ["fit_code"]


def fit_code(
    autoencoder: SpectralAutoencoder,
    waveforms: Iterable[Tensor],
    reduce: Callable[[list[Tensor]], list[Tensor]] = lambda sums: sums,
) -> dict[str, float]:
    """Fit components, mean and scale in one pass.

    Args:
        waveforms: [audio_channels, samples] each, this process' share of them.
        reduce: makes the sums over all processes.

    Returns:
        How many `patches` there were, and how much of their variance is kept, and how many dB left out.

    Raises:
        ValueError: there are no waveforms.
    """
    width = len(autoencoder.mean)
    count, total, products = torch.zeros(1).double(), torch.zeros(width).double(), torch.zeros(width, width).double()
    for waveform in waveforms:
        patches = autoencoder.patches(waveform[None])[0].double()
        count += patches.shape[1]
        total += patches.sum(dim=1)
        products += patches @ patches.T
    count, total, products = reduce([count, total, products])
    if not count:
        raise ValueError("there are no clips to fit the code to; lower held_out, or see dropped.csv of the corpus")
    variances = autoencoder.fit(count.item(), total, products)
    left_out = variances[autoencoder.latent_channels :]
    return {
        "patches": int(count.item()),
        "variance_kept": 1 - (left_out.sum() / variances.sum()).item(),
        "left_out_db": (left_out.sum() / width).sqrt().item() * 20 / math.log(10),
    }
