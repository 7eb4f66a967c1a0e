"""Fréchet distance between two sets of embeddings, each taken for a Gaussian.

    d² = |μ - μ_r|² + tr(Σ + Σ_r - 2 (Σ Σ_r)^½)      Dowson & Landau 1982; Heusel et al. 2017 (arXiv:1706.08500), eq. 6

On audio it is known as FAD (Kilgour et al. 2019, arXiv:1812.08466). With factors A^T A = Σ and B^T B = Σ_r,
tr (Σ Σ_r)^½ is the nuclear norm of A B^T: exact, also where a covariance is singular, and without the root of
a matrix.

It comes out too high from few embeddings, by about a constant over their number; `frechet_infinity` extrapolates.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffaudio.errors import UserError

__all__ = ["Gaussian", "fit_gaussian", "frechet_between", "frechet_distance", "frechet_infinity"]

SIZES = 15


@dataclass(frozen=True)
class Gaussian:
    """Mean [dim] and a factor [at most dim, dim] of the covariance: factor^T factor."""

    mean: Tensor
    factor: Tensor


def fit_gaussian(embeddings: Tensor) -> Gaussian:
    """Mean and unbiased covariance of embeddings [n, dim], in float64.

    Raises:
        ValueError: fewer than two.
    """
    if len(embeddings) < 2:
        raise UserError(f"{len(embeddings)} embeddings have no covariance; give at least 2")
    x = embeddings.double()
    mean = x.mean(dim=0)
    factor = (x - mean) / (len(x) - 1) ** 0.5
    if len(x) > x.shape[1]:
        factor = torch.linalg.qr(factor, mode="r").R
    return Gaussian(mean, factor)


def frechet_between(one: Gaussian, other: Gaussian) -> float:
    """Squared Fréchet distance of two Gaussians, never below 0."""
    cross = torch.linalg.svdvals(one.factor @ other.factor.T).sum()
    spread = one.factor.square().sum() + other.factor.square().sum() - 2 * cross
    return max(float((one.mean - other.mean).square().sum() + spread), 0.0)


def frechet_distance(embeddings: Tensor, reference: Tensor) -> float:
    """Squared Fréchet distance of [n, dim] from [m, dim]; 0 for identical sets."""
    return frechet_between(fit_gaussian(embeddings), fit_gaussian(reference))


def frechet_infinity(
    embeddings: Tensor, reference: Gaussian, *, generator: torch.Generator, sizes: int = SIZES
) -> float:
    """The distance extrapolated to infinitely many embeddings (FAD-inf; Gui et al. 2023, arXiv:2311.01616, sec. 2.2).

    The distances of random subsets are fitted by a line over 1/size, which is read at 0. Subsets are drawn
    without replacement, of `sizes` sizes evenly from n/2 to n: from smaller ones the bias is no longer a line.
    The value may fall below 0 where the true distance is small.

    It holds for sounds drawn at random. Where n is below dim, a line takes off too little; where they were chosen to
    be evenly of many kinds, such as a few takes of each prompt, it takes off too much, for their subsets are not.

    Args:
        embeddings: [n, dim].

    Raises:
        ValueError: fewer than 8 embeddings.
    """
    n = len(embeddings)
    if n < 8:
        raise UserError(f"{n} embeddings are too few to extrapolate from; give at least 8")
    counts = sorted({round(size) for size in torch.linspace(n // 2, n, sizes).tolist()})
    subsets = [embeddings[torch.randperm(n, generator=generator)[:count]] for count in counts]
    distances = torch.tensor([frechet_between(fit_gaussian(subset), reference) for subset in subsets]).double()
    inverse = 1 / torch.tensor(counts).double()
    spread = inverse - inverse.mean()
    slope = (spread * distances).sum() / spread.square().sum()
    return float(distances.mean() - slope * inverse.mean())
