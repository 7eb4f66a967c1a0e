"""ConvNeXt blocks over time, for the learned parts of the spectral autoencoder.

Liu et al. 2022 (arXiv:2201.03545), in one dimension as in Vocos (Siuzdak 2023, arXiv:2306.00814). Channels come last,
so that the pointwise layers are plain matrix products: h [batch, steps, width].
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffaudio.errors import UserError

__all__ = ["ConvNeXt1d"]

EXPANSION = 3
INITIAL_SCALE = 0.1  # of a block's residual


class ConvNeXt1d(nn.Module):
    """[batch, steps, in_channels] -> [batch, steps, out_channels]; its output is zero before training.

    Args:
        in_channels, out_channels: of input and output.
        width: channels of the blocks.
        blocks: residual blocks.
        kernel_size: receptive field of a block in steps, odd.
    """

    def __init__(self, in_channels: int, out_channels: int, *, width: int, blocks: int, kernel_size: int = 7) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise UserError(f"kernel_size is {kernel_size}; choose an odd number")
        self.reach_steps = blocks * (kernel_size // 2)
        self.begin = nn.Sequential(nn.Linear(in_channels, width), nn.LayerNorm(width))
        self.blocks = nn.ModuleList([_Block(width, kernel_size) for _ in range(blocks)])
        last = nn.Linear(width, out_channels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.end = nn.Sequential(nn.LayerNorm(width), last)

    def forward(self, x: Tensor) -> Tensor:
        h = self.begin(x)
        for block in self.blocks:
            h = block(h)
        return self.end(h)


class _Block(nn.Module):
    """Depthwise convolution, then two pointwise layers; residual, with a scale for each channel."""

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.over_time = nn.Conv1d(width, width, kernel_size, padding=kernel_size // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, EXPANSION * width)
        self.contract = nn.Linear(EXPANSION * width, width)
        self.scale = nn.Parameter(torch.full((width,), INITIAL_SCALE))

    def forward(self, h: Tensor) -> Tensor:
        normalised = self.norm(self.over_time(h.transpose(1, 2)).transpose(1, 2))
        return h + self.scale * self.contract(F.gelu(self.expand(normalised)))
