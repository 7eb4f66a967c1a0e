"""Fréchet distance between two sets of embeddings, each approximated by a Gaussian.

    d² = |μ - μ_r|² + tr(Σ + Σ_r - 2 (Σ Σ_r)^½)      Dowson & Landau 1982; Heusel et al. 2017 (arXiv:1706.08500), eq. 6

On audio it is known as FAD (Kilgour et al. 2019, arXiv:1812.08466). With factors A^T A = Σ and B^T B = Σ_r,
tr (Σ Σ_r)^½ is the nuclear norm of A B^T: exact, also where a covariance is singular, and without the root of
a matrix.

From few embeddings it comes out too high, by about a constant over their number; `frechet_infinity` extrapolates.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import linregress
from torch import Tensor

from diffaudio.errors import UserError

__all__ = [
    "MIN_SOUNDS_TO_EXTRAPOLATE",
    "Gaussian",
    "fit_gaussian",
    "frechet_between",
    "frechet_distance",
    "frechet_infinity",
    "frechet_infinity_as_fadtk",
    "frechet_infinity_of_subsets",
    "frechet_of_subsets",
]

SIZES = 15
FADTK_SIZES, FADTK_SMALLEST = 25, 500
MIN_SOUNDS_TO_EXTRAPOLATE = 8


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


def frechet_of_subsets(embeddings: Tensor, reference: Gaussian) -> Callable[[Tensor], float]:
    """The function that gives the distance of some rows [at least 2] (int64) of embeddings [n, dim] from a reference.

    For intervals, which need hundreds of subsets: tr (Σ Σ_r)^½ is taken from the eigenvalues of a matrix as small as
    the subset or the dimension, which costs about half of the digits of float64 and a tenth of the time.
    """
    x = embeddings.double()
    centre = x.mean(dim=0)
    x = x - centre
    across = x @ reference.factor.T
    inner = across @ across.T if len(x) <= across.shape[1] else None
    squares = x.square().sum(dim=1)

    def distance(rows: Tensor) -> float:
        count = len(rows)
        mean = x[rows].mean(dim=0)
        if inner is None or count > across.shape[1]:
            centred = across[rows] - across[rows].mean(dim=0)
            product = centred.T @ centred
        else:
            product = inner[rows][:, rows]
            product = product - product.mean(dim=0) - product.mean(dim=1, keepdim=True) + product.mean()
        cross = torch.linalg.eigvalsh(product / (count - 1)).clamp(min=0).sqrt().sum()
        variance = (squares[rows].sum() - count * mean.square().sum()) / (count - 1)
        spread = variance + reference.factor.square().sum() - 2 * cross
        return max(float((mean + centre - reference.mean).square().sum() + spread), 0.0)

    return distance


def frechet_infinity(
    distance: Callable[[Tensor], float], num_sounds: int, *, generator: torch.Generator, sizes: int = SIZES
) -> float:
    """The distance extrapolated to infinitely many sounds (FAD-inf; Gui et al. 2023, arXiv:2311.01616, sec. 2.2).

    The distances of random subsets are fitted by a line over 1/size, which is read at 0. Subsets are drawn without
    replacement, of `sizes` sizes evenly from n/2 to n: from smaller ones the bias is no longer a line. They are subsets
    of sounds, each with all its embeddings: several of one sound are not independent, and a line over their number
    would leave most of the bias. The value may fall below 0 where the true distance is small.

    It holds for sounds drawn at random. Where n is below the dimension, a line takes off too little; where they were
    chosen to be evenly of many kinds, such as a few takes of each prompt, it takes off too much, for their subsets are
    not.

    Args:
        distance: of some of the sounds, given by their indices (int64).

    Raises:
        ValueError: fewer than 8 sounds.
    """
    return frechet_infinity_of_subsets(distance, num_sounds, generator=generator, sizes=sizes)(torch.arange(num_sounds))


def frechet_infinity_of_subsets(
    distance: Callable[[Tensor], float], num_sounds: int, *, generator: torch.Generator, sizes: int = SIZES
) -> Callable[[Tensor], float]:
    """The function that extrapolates from some of the sounds [at least 8] (int64), for intervals.

    All of them are put into one random order for each size, from which every subset takes its first members. So two
    sets that differ by a few sounds differ by what these change, and not by other random subsets.

    Args: see `frechet_infinity`.

    Raises:
        ValueError: fewer than 8 sounds.
    """
    orders = [torch.randperm(num_sounds, generator=generator) for _ in range(sizes)]

    def extrapolated(sounds: Tensor) -> float:
        n = len(sounds)
        if n < MIN_SOUNDS_TO_EXTRAPOLATE:
            raise UserError(f"{n} sounds are too few to extrapolate from; give at least {MIN_SOUNDS_TO_EXTRAPOLATE}")
        chosen = torch.zeros(num_sounds, dtype=torch.bool)
        chosen[sounds] = True
        counts = sorted({round(size) for size in torch.linspace(n // 2, n, sizes).tolist()})
        distances = [distance(order[chosen[order]][:count]) for count, order in zip(counts, orders, strict=False)]
        slope_and_value = linregress([1 / count for count in counts], distances)
        return float(slope_and_value.intercept)  # pyright: ignore[reportAttributeAccessIssue]

    return extrapolated


def frechet_infinity_as_fadtk(embeddings: Tensor, reference: Gaussian, *, generator: torch.Generator) -> float:
    """The extrapolated distance of [n, dim] as the toolkit fadtk 1.1.0 computes it; it is random.

    25 subsets of 500 to n embeddings are drawn with replacement, whichever sounds they are of. Repetitions make a
    subset look less varied than it is, and the result scatters: by a quarter of its value in sample/EVALUATION.md's
    case.
    """
    of_rows = frechet_of_subsets(embeddings, reference)
    counts = [int(size) for size in torch.linspace(FADTK_SMALLEST, len(embeddings), FADTK_SIZES).double().tolist()]
    distances = [of_rows(torch.randint(len(embeddings), (count,), generator=generator)) for count in counts]
    slope_and_value = linregress([1 / count for count in counts], distances)
    return float(slope_and_value.intercept)  # pyright: ignore[reportAttributeAccessIssue]
