"""A table of metrics in the making: each number gets the interval that suits its kind."""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffaudio.evaluation.report import Metric
from diffaudio.metrics.confidence import Interval, bootstrap_mean, jackknife, wilson

__all__ = ["Table"]


@dataclass
class Table:
    """Metrics of one set of sounds. Each has a generator of its own, so none depends on which others are measured.

    Attributes:
        seed: of everything that is drawn.
        resamples: draws for each interval that is found by resampling.
        left_out: metrics that could not be measured, each with the reason.
    """

    seed: int
    resamples: int
    metrics: list[Metric] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def generator(self, name: str) -> torch.Generator:
        """The generator that belongs to a metric."""
        return seeded_generator(self.seed, name)

    def add_share(self, name: str, values: Tensor, reference_n: int | None = None) -> None:
        """The share of sounds for which `values` [n], of zeros and ones, is 1."""
        share = float(values.double().mean())
        self._add(name, share, wilson(share, len(values)), len(values), reference_n)

    def add_mean(self, name: str, values: Tensor, reference_n: int | None = None) -> None:
        """The mean of one measured value per sound [n]."""
        interval = bootstrap_mean(values, generator=self.generator(name), resamples=self.resamples)
        self._add(name, float(values.double().mean()), interval, len(values), reference_n)

    def add_whole(
        self,
        name: str,
        statistic: Callable[[Tensor], float],
        n: int,
        reference_n: int | None = None,
        *,
        value: float | None = None,
        min_sounds: int = 2,
        bounds: tuple[float, float] = (-math.inf, math.inf),
        pairs_matter: bool = False,
    ) -> None:
        """A number of the set as a whole, with the jackknife's interval.

        Args:
            statistic: gives it for some of the n sounds, by their indices (int64).
            value: for all of them, where it is not `statistic` of all.
            min_sounds, bounds, pairs_matter: see `jackknife`.
        """
        if self._has_too_few(name, n, min_sounds):
            return
        value = statistic(torch.arange(n)) if value is None else value
        interval = jackknife(
            statistic,
            value,
            n,
            generator=self.generator(name),
            min_sounds=min_sounds,
            bounds=bounds,
            pairs_matter=pairs_matter,
        )
        self._add(name, value, interval, n, reference_n)

    def add_extrapolated(
        self,
        name: str,
        statistic: Callable[[Tensor], float],
        cheaper: Callable[[Tensor], float],
        n: int,
        reference_n: int | None = None,
        *,
        min_sounds: int,
    ) -> None:
        """A number extrapolated from random subsets, with the jackknife's interval of a cheaper form laid around it.

        Args:
            statistic: gives it for all of the n sounds, by their indices (int64).
            cheaper: the same from fewer subsets, for some of them.
        """
        if self._has_too_few(name, n, min_sounds):
            return
        everything = torch.arange(n)
        value, centre = statistic(everything), cheaper(everything)
        interval = jackknife(
            cheaper, centre, n, generator=self.generator(name), min_sounds=min_sounds, pairs_matter=True
        )
        if interval is not None:
            low, high = interval.low + value - centre, interval.high + value - centre
            interval = Interval(low, high, interval.method)
        self._add(name, value, interval, n, reference_n)

    def add_value(self, name: str, value: float, n: int) -> None:
        """A number without an interval."""
        self._add(name, value, None, n, None)

    def _has_too_few(self, name: str, n: int, min_sounds: int) -> bool:
        if n < min_sounds:
            self.left_out[name] = f"{n} sounds are too few; {min_sounds} are needed"
        return n < min_sounds

    def _add(self, name: str, value: float, interval: Interval | None, n: int, reference_n: int | None) -> None:
        low, high, method = (interval.low, interval.high, interval.method) if interval else (None, None, None)
        self.metrics.append(Metric(name, value, low, high, method, n, reference_n))


def seeded_generator(seed: int, name: str) -> torch.Generator:
    """A generator for one purpose, independent of those for others."""
    return torch.Generator().manual_seed((seed + zlib.crc32(name.encode())) % 2**63)
