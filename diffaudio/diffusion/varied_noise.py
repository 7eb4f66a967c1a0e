"""Noise near to that of another seed, for variations of a sound.

n_0, n_1  standard normal noise of two seeds
a         amount, 0 (n_0) to 1 (n_1)

n = cos(a pi / 2) n_0 + sin(a pi / 2) n_1, which is standard normal as well; its correlation with n_0 is
cos(a pi / 2). For noise of many dimensions this is the great circle between the two (Shoemake 1985).
"""

import math

import torch
from torch import Tensor

__all__ = ["VariedNoise"]


class VariedNoise:
    """Draws noise from two generators in step; it takes the place of a generator where only `draw` is needed.

    Args:
        base, other: CPU generators.
        amount: a.
    """

    def __init__(self, base: torch.Generator, other: torch.Generator, amount: float) -> None:
        self.base, self.other, self.angle = base, other, amount * math.pi / 2
        self.device = torch.device("cpu")

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal noise of a shape."""
        n_0, n_1 = (torch.randn(shape, generator=each) for each in (self.base, self.other))
        return math.cos(self.angle) * n_0 + math.sin(self.angle) * n_1
