"""Back ends: pool features [batch, channels, steps], of any number of steps, into one vector [batch, pooled].

mean_max     mean and maximum over time (Pons et al. 2018, arXiv:1711.02520, sec. 2.3)
auto_pool    between mean and maximum, learned for each channel (McFee et al. 2018, arXiv:1804.10070, eq. 6)
attention    a weighted mean, with weights computed from the features (Pons' thesis, 2019, ch. 3)
recurrent    the last states of a bidirectional gated recurrent unit
"""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BACK_ENDS"]


class _MeanMax(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = 2 * channels

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1)


class _AutoPool(nn.Module):
    """sum_t x_t softmax_t(a x): the mean for a = 0, towards the maximum as a grows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.sharpness = nn.Parameter(torch.ones(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x * (self.sharpness * x).softmax(dim=2)).sum(dim=2)


class _Attention(nn.Module):
    """sum_t x_t softmax_t(w(x)), with weights of its own for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.scores = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scores(x).softmax(dim=2)).sum(dim=2)


class _Recurrent(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.unit = nn.GRU(channels, channels // 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        last = self.unit(x.transpose(1, 2))[1]
        return last.transpose(0, 1).flatten(1)


BACK_ENDS: dict[str, Any] = {
    "mean_max": _MeanMax, "auto_pool": _AutoPool, "attention": _Attention, "recurrent": _Recurrent
}  # fmt: skip
