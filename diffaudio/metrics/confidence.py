"""How sure a number is: 95 % intervals over the sounds that were evaluated; the reference is held fixed.

- A mean of one value a sound: the percentile bootstrap (Efron & Tibshirani 1993, An Introduction to the
  Bootstrap, ch. 13).
- A share, which is a mean of zeros and ones: Wilson's score interval (1927). The bootstrap's has no width
  where all sounds agree.
- A number that belongs to the set as a whole (a distance, coverage, …): half-samples. Drawn with replacement,
  a set holds sounds twice, and neighbour distances, kernels and repeats count those as likeness. Half of the
  sounds drawn without replacement hold each once, and over such halves the number spreads as it does over
  new sets of the full size (the delete-half jackknife, Shao & Wu 1989, Annals of Statistics 17(3)). That
  spread is laid around the number itself: it says how much would change with other sounds of the same
  number, not how far the number is biased by having so few.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CONFIDENCE", "Interval", "bootstrap_mean", "half_samples", "wilson"]

CONFIDENCE = 0.95
_NORMAL_QUANTILE = 1.959963984540054  # of 1 - (1 - CONFIDENCE) / 2


@dataclass(frozen=True)
class Interval:
    """Where the number lies, and by which of this module's methods: bootstrap, wilson, half-samples."""

    low: float
    high: float
    method: str


def bootstrap_mean(values: Tensor, *, generator: torch.Generator, resamples: int) -> Interval | None:
    """Of the mean of `values` [n]; None where n is 1."""
    n = len(values)
    if n < 2:
        return None
    drawn = torch.randint(n, (resamples, n), generator=generator)
    means = values.double()[drawn].mean(dim=1)
    low, high = _quantiles(means)
    return Interval(low, high, "bootstrap")


def wilson(share: float, n: int) -> Interval:
    """Of a share among `n` sounds (Wilson 1927, JASA 22; Brown et al. 2001, Statistical Science 16(2), eq. 4)."""
    z2 = _NORMAL_QUANTILE**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half_width = _NORMAL_QUANTILE / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # rounding must not push an end past the share itself, where that is 0 or 1
    low, high = max(centre - half_width, 0.0), min(centre + half_width, 1.0)
    return Interval(min(low, share), max(high, share), "wilson")


def half_samples(
    statistic: Callable[[Tensor], float],
    value: float,
    n: int,
    *,
    generator: torch.Generator,
    resamples: int,
    fewest: int = 2,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Interval | None:
    """Of a number that belongs to a set of `n` sounds as a whole.

    Args:
        statistic: the number for some of the sounds, given by their indices [n // 2] (int64).
        value: the number for all of them.
        fewest: how many sounds the number can be had for at all.
        bounds: where the number can lie at all.

    Returns:
        None where half of the sounds are too few.
    """
    if n // 2 < fewest:
        return None
    halves = [torch.randperm(n, generator=generator)[: n // 2] for _ in range(resamples)]
    numbers = torch.tensor([statistic(half) for half in halves], dtype=torch.float64)
    low, high = _quantiles(numbers - numbers.mean() + value)
    return Interval(min(max(low, bounds[0]), value), max(min(high, bounds[1]), value), "half-samples")


def _quantiles(numbers: Tensor) -> tuple[float, float]:
    edges = torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=numbers.dtype)
    low, high = torch.quantile(numbers, edges).tolist()
    return low, high
