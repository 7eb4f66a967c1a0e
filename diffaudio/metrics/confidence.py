"""Confidence: 95 % intervals over the evaluated sounds, with the reference held fixed.

An interval says how far a number would move with other sounds, as many and of the same kind. It does not say how far
the number is biased by having few sounds: a Fréchet distance of 25 sounds has an interval around the mean Fréchet
distance of 25 sounds. `sample/EVALUATION.md` has the simulated coverage of each.

- Share (a mean of zeros and ones): Wilson's score interval (1927). The bootstrap's has no width where all sounds agree.
- Mean of one value per sound: percentile bootstrap (Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 13)
  with the percentiles moved outwards for small n (Hesterberg 2015, The American Statistician 69(4), sec. 5.3).
- Number of the set as a whole (a distance, coverage, …): the jackknife (Efron & Stein 1981, Annals of Statistics 9(3)).
  Its variance is too large where pairs of sounds matter, as they do in a distance that is close to 0; their second
  differences (eq. 4.3) take that off again. Sampling with replacement would not do: neighbours, kernels and
  covariances count a sound that comes twice as likeness.
- Extrapolated distance: the jackknife as well, with subsets that the replicates have in common (see
  `frechet.frechet_infinity_of_subsets`): other random subsets would move it by more than the sounds left out do.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import norm, t
from torch import Tensor

__all__ = ["CONFIDENCE", "Interval", "bootstrap_mean", "jackknife", "wilson"]

CONFIDENCE = 0.95
JACKKNIFE_GROUPS = 16  # 16 + 16 * 15 / 2 = 136 evaluations of the statistic


@dataclass(frozen=True)
class Interval:
    """Both ends, and which of this module's methods found them: bootstrap, wilson, jackknife."""

    low: float
    high: float
    method: str


def bootstrap_mean(values: Tensor, *, generator: torch.Generator, resamples: int) -> Interval | None:
    """Interval of the mean of `values` [n]; None where n is 1."""
    n = len(values)
    if n < 2:
        return None
    drawn = torch.randint(n, (resamples, n), generator=generator)
    low, high = _quantiles(values.double()[drawn].mean(dim=1), n)
    return Interval(low, high, "bootstrap")


def wilson(share: float, n: float, *, quantile: float | None = None) -> Interval:
    """Interval of a share among `n` sounds (Wilson 1927, JASA 22; Brown et al. 2001, Statistical Science 16(2), eq. 4).

    Args:
        quantile: of the standardised share; None is that of the normal distribution, 1.96.
    """
    z = float(norm.ppf((1 + CONFIDENCE) / 2)) if quantile is None else quantile
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # rounding must not push an end past the share itself, where that is 0 or 1
    low, high = max(centre - half_width, 0.0), min(centre + half_width, 1.0)
    return Interval(min(low, share), max(high, share), "wilson")


def jackknife(
    statistic: Callable[[Tensor], float],
    value: float,
    n: int,
    *,
    generator: torch.Generator,
    min_sounds: int = 2,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    pairs_matter: bool = False,
) -> Interval | None:
    """Interval of a number that belongs to a set of `n` sounds as a whole.

    Args:
        statistic: the number for some of the sounds, given by their indices (int64).
        value: the number for all of them.
        min_sounds: how many sounds the statistic needs.
        bounds: where the number can lie. Between 0 and 1 it is a share, and gets Wilson's form.
        pairs_matter: whether to take off what pairs of sounds add to the jackknife's variance: for statistics that
            are close to quadratic in the sounds' distribution, as distances are.

    Returns:
        None where too few sounds are left when two groups of them are taken out.
    """
    groups = torch.randperm(n, generator=generator).tensor_split(min(n, JACKKNIFE_GROUPS))
    count = len(groups)
    if count < 3 or n - 2 * len(groups[0]) < min_sounds:
        return None

    def without(*left_out: int) -> float:
        return statistic(torch.cat([group for index, group in enumerate(groups) if index not in left_out]))

    single = torch.tensor([without(index) for index in range(count)], dtype=torch.float64)
    variance = (count - 1) / count * float((single - single.mean()).square().sum())
    if pairs_matter:
        second = torch.tensor(
            [
                count * value - (count - 1) * float(single[i] + single[j]) + (count - 2) * without(i, j)
                for i in range(count)
                for j in range(i)
            ]
        ).double()
        of_pairs = float((second - second.mean()).square().sum()) / (count * (count - 1))
        variance = max(variance - of_pairs, variance / 2)  # half is left where nothing but pairs matters
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, count - 1))
    if bounds == (0, 1):
        spread = value * (1 - value)
        interval = wilson(value, spread / variance if spread > 0 and variance > 0 else n, quantile=quantile)
        return Interval(interval.low, interval.high, "jackknife")
    half_width = quantile * math.sqrt(variance)
    low, high = max(value - half_width, bounds[0]), min(value + half_width, bounds[1])
    return Interval(min(low, value), max(high, value), "jackknife")


def _quantiles(numbers: Tensor, n: int) -> tuple[float, float]:
    """Ends that hold 95 %, further out than the percentiles as Student's t with n - 1 degrees of freedom is."""
    outside = norm.cdf(-math.sqrt(n / (n - 1)) * t.ppf((1 + CONFIDENCE) / 2, n - 1))
    low, high = torch.quantile(numbers, torch.tensor([outside, 1 - outside], dtype=numbers.dtype)).tolist()
    return low, high
