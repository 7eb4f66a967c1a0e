"""How much of the gap between texts and pictures as queries a bridge closes.

    g  =  (s_none - s_bridge) / (s_none - s_pictures)

where s is a measure of the sounds that a set of queries yields: 0 for a bridge as bad as none, 1 for one as good as
asking with pictures. The same clips and seeds are behind all three, so the jackknife leaves the same queries out of all
three. Where the interval of s_none - s_pictures holds 0 there is no gap, and no share of it.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from diffaudio.evaluation.embed import AudioEmbeddings
from diffaudio.evaluation.measure import accuracy
from diffaudio.evaluation.reference import Reference
from diffaudio.evaluation.table import Table
from diffaudio.metrics.confidence import jackknife
from diffaudio.metrics.frechet import frechet_of_subsets
from diffaudio.metrics.kernel import distance_from_kernels, kernel_between

__all__ = ["Statistic", "add_gap_closed", "add_statistics", "sound_statistics"]

Statistic = Callable[[Tensor], float]  # of some of the queries, by their indices


def sound_statistics(embedded: AudioEmbeddings, reference: Reference | None) -> dict[str, Statistic]:
    """Fréchet and kernel distance to the reference, and how often the kind is recognised, by metric name."""
    found: dict[str, Statistic] = {}
    for name, windows in embedded.embeddings.items():
        if reference is None:
            break
        fits = reference.fits[name]
        found[f"fd_{name}"] = _frechet(windows, frechet_of_subsets(torch.cat(windows), fits.gaussian))
        kernels = kernel_between(torch.stack([each.mean(dim=0) for each in windows]), fits.kernel)

        def kad(some: Tensor, kernels: tuple[Tensor, Tensor] = kernels, kernel: object = fits.kernel) -> float:
            return distance_from_kernels(kernels[0][some][:, some], kernels[1][some], kernel)  # pyright: ignore[reportArgumentType]

        found[f"kad_{name}"] = kad
    for name, right in _recognised(embedded).items():
        if right.isfinite().all():
            found[name] = _mean(right)
    return found


def add_statistics(statistics: Mapping[str, Statistic], count: int, table: Table, reference_n: int | None) -> None:
    """Add each statistic of all `count` queries, with its interval."""
    for name, statistic in statistics.items():
        is_distance = name.startswith(("fd_", "kad_"))
        bounds = (0, math.inf) if name.startswith("fd_") else (-math.inf, math.inf) if is_distance else (0, 1)
        n = reference_n if is_distance else None
        table.add_whole(name, statistic, count, n, bounds=bounds, pairs_matter=is_distance)


def add_gap_closed(metric: str, none: Statistic, bridge: Statistic, pictures: Statistic, n: int, table: Table) -> None:
    """Add the share g of a gap, or the reason why there is none."""
    everything, name = torch.arange(n), f"gap_closed_{metric}"
    gap = none(everything) - pictures(everything)
    interval = jackknife(
        lambda some: none(some) - pictures(some), gap, n, generator=table.generator(f"gap_{metric}"), pairs_matter=True
    )
    values = f"{none(everything):.3g} without a bridge, {pictures(everything):.3g} with pictures"
    if interval is None:
        table.left_out[name] = f"{n} queries are too few for the interval of a gap ({values})"
    elif interval.low <= 0 <= interval.high:
        table.left_out[name] = (
            f"no gap: {values}; the difference of {gap:.3g} is within its interval "
            f"[{interval.low:.3g}, {interval.high:.3g}] from 0"
        )
    else:
        table.add_whole(name, lambda some: (none(some) - bridge(some)) / _nonzero(none(some) - pictures(some)), n)


def _frechet(windows: list[Tensor], of_rows: Callable[[Tensor], float]) -> Statistic:
    rows = torch.arange(sum(map(len, windows))).split([len(each) for each in windows])
    return lambda some: of_rows(torch.cat([rows[index] for index in some.tolist()]))


def _mean(values: Tensor) -> Statistic:
    return lambda some: float(values[some].mean())


def _recognised(embedded: AudioEmbeddings) -> dict[str, Tensor]:
    """By metric of accuracy, 1 for each sound whose kind is recognised, 0 for others, NaN where none is known: [n]."""
    found: dict[str, Tensor] = {}
    for index in range(len(embedded)):
        table = Table(seed=0, resamples=20)
        accuracy(embedded.pick([index]), table)
        for metric in table.metrics:
            of_metric = found.setdefault(metric.name, torch.full((len(embedded),), math.nan, dtype=torch.float64))
            of_metric[index] = metric.value
    return found


def _nonzero(value: float) -> float:
    return value if value else math.nan
