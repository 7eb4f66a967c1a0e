"""HTK's mel filter bank, as TensorFlow and so VGGish and YAMNet have it."""

from functools import cache

import torch
from torch import Tensor

__all__ = ["htk_mel_bands"]


@cache
def htk_mel_bands(sample_rate: int, n_fft: int, num_bands: int, low_hz: float, high_hz: float) -> Tensor:
    """[n_fft / 2 + 1, num_bands]; triangles that are straight in mel, not in Hz as torchaudio's are."""

    def mel(hz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hz / 700.0)

    low, high = mel(torch.tensor([low_hz, high_hz], dtype=torch.float64)).tolist()
    edges = torch.linspace(low, high, num_bands + 2, dtype=torch.float64)
    bins = mel(torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64))[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    bands = torch.minimum(rising, falling).clamp(min=0)
    bands[0] = 0  # the mean is left out
    return bands.float()
