"""Noise on embeddings, as in unCLIP's noise augmentation and at the start of a diffusion prior's sampling."""

import math

import torch
from torch import Tensor

from diffaudio.seeding import seeded_generator

__all__ = ["fixed_noise", "noise_embeddings"]


def noise_embeddings(standardised: Tensor, level: float | Tensor, noise: Tensor) -> Tensor:
    """Variance-preserving noise, sqrt(a) z + sqrt(1 - a) n with sqrt(a) = cos(pi level / 2).

    The cosine schedule of unCLIP's noise augmentation (Ramesh et al. 2022, arXiv:2204.06125, section 2.1; Nichol &
    Dhariwal 2021, arXiv:2102.09672, eq. 17 without offset); z has mean 0 and standard deviation 1 in each dimension.

    Args:
        standardised: z, [batch, dim].
        level: 0 (no noise) to 1 (only noise), a scalar for all or [batch, 1].
        noise: n, the shape of z.
    """
    angle = torch.as_tensor(level, device=standardised.device) * (math.pi / 2)
    return angle.cos() * standardised + angle.sin() * noise


def fixed_noise(seed: int, like: Tensor) -> Tensor:
    """The same noise in each row, so that the result for a text does not depend on the rest of the batch."""
    noise = torch.randn(like.shape[-1], generator=seeded_generator(seed, "bridge"))
    return noise.to(like).expand_as(like)
