"""How often each 95 % interval holds the number that it is an interval of, simulated; some minutes.

    uv run pytest tests/benchmarks/test_interval_coverage.py -m benchmark -s

Sounds are drawn anew from a known distribution, the reference stays. An interval should hold the mean of its number
over many such sets of the same size, see `diffaudio.metrics.confidence`. The table is in sample/EVALUATION.md.
"""

import math
import statistics

import pytest
import torch

from diffaudio.metrics.classification import inception_score
from diffaudio.metrics.confidence import Interval, bootstrap_mean, jackknife, wilson
from diffaudio.metrics.frechet import fit_gaussian, frechet_infinity_of_subsets, frechet_of_subsets
from diffaudio.metrics.kernel import distance_from_kernels, fit_kernel, kernel_between
from diffaudio.metrics.prdc import coverage_from_distances, densities, embedding_distances, fit_balls, is_precise

REFERENCE, SETS, SETS_FOR_THE_MEAN = 150, 60, 150
# dimension, sounds, distance of the means
CASES = [(8, 25, 0.0), (8, 25, 2.0), (64, 25, 1.0), (8, 100, 1.0)]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(n, dim, seed):
    return torch.randn(n, dim, generator=seeded(seed), dtype=torch.float64)


class Numbers:
    """The numbers of a set of sounds, and their intervals as `diffaudio.evaluation` finds them."""

    def __init__(self, dim):
        self.reference = normal(REFERENCE, dim, 99)
        self.gaussian, self.kernel, self.balls = (fit(self.reference) for fit in (fit_gaussian, fit_kernel, fit_balls))
        self.classifier = 2 * normal(dim, 10, 7) / dim**0.5

    def statistics(self, x):
        within, across = kernel_between(x, self.kernel)
        distances, to_reference = embedding_distances(x, x), embedding_distances(x, self.reference)
        logits, frechet = x @ self.classifier, frechet_of_subsets(x, self.gaussian)

        def prdc(which):
            return lambda some: getattr(
                coverage_from_distances(distances[some][:, some], to_reference[some], self.balls), which
            )

        whole = {
            "fd": (frechet, {"bounds": (0, math.inf), "pairs_matter": True}),
            "kad": (
                lambda some: distance_from_kernels(within[some][:, some], across[some], self.kernel),
                {"pairs_matter": True},
            ),
            "recall": (prdc("recall"), {"bounds": (0, 1), "min_sounds": 6}),
            "coverage": (prdc("coverage"), {"bounds": (0, 1), "min_sounds": 6}),
            "inception_score": (lambda some: inception_score(logits[some]), {"bounds": (1, 10)}),
        }
        each = {"precision": is_precise(to_reference, self.balls), "density": densities(to_reference, self.balls)}
        return whole, each

    def fd_inf(self, x, sizes):
        frechet = frechet_of_subsets(x, self.gaussian)
        return frechet_infinity_of_subsets(frechet, len(x), generator=seeded(0), sizes=sizes)

    def values(self, x):
        whole, each = self.statistics(x)
        everything = torch.arange(len(x))
        values = {name: statistic(everything) for name, (statistic, _) in whole.items()}
        values |= {name: float(of_each.mean()) for name, of_each in each.items()}
        return values | {"fd_inf": self.fd_inf(x, 15)(everything)}

    def intervals(self, x, seed):
        whole, each = self.statistics(x)
        values, n = self.values(x), len(x)
        found = {
            name: jackknife(statistic, values[name], n, generator=seeded(seed), **options)
            for name, (statistic, options) in whole.items()
        }
        found["precision"] = wilson(values["precision"], n)
        found["density"] = bootstrap_mean(each["density"], generator=seeded(seed), resamples=200)
        cheaper = self.fd_inf(x, 5)
        centre = cheaper(torch.arange(n))
        interval = jackknife(cheaper, centre, n, generator=seeded(seed), min_sounds=8, pairs_matter=True)
        moved = values["fd_inf"] - centre
        found["fd_inf"] = Interval(interval.low + moved, interval.high + moved, interval.method)
        return found


@pytest.mark.benchmark
@pytest.mark.parametrize(("dim", "n", "shift"), CASES)
def test_intervals_hold_what_they_are_of(dim, n, shift):
    numbers = Numbers(dim)

    def draw(seed):
        return normal(n, dim, seed) + shift / dim**0.5

    many = [numbers.values(draw(10_000 + seed)) for seed in range(SETS_FOR_THE_MEAN)]
    mean = {name: statistics.fmean(values[name] for values in many) for name in many[0]}
    std = {name: statistics.stdev(values[name] for values in many) for name in many[0]}
    held, width = dict.fromkeys(mean, 0.0), dict.fromkeys(mean, 0.0)
    for seed in range(SETS):
        for name, interval in numbers.intervals(draw(seed), seed).items():
            held[name] += (interval.low - 1e-9 <= mean[name] <= interval.high + 1e-9) / SETS
            width[name] += (interval.high - interval.low) / SETS
    for name in mean:
        ideal = 3.92 * std[name]
        print(f"dim {dim} n {n} shift {shift:g} {name}: held {held[name]:.2f} width/ideal {width[name] / ideal:.2f}")
    for name in mean:
        assert held[name] >= 0.83, name
    for name, most in (("fd", 1.45), ("kad", 1.45), ("fd_inf", 1.8)):
        assert width[name] < most * 3.92 * std[name], name
