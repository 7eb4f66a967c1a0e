"""From queries and sounds to the rows of a report: one a bridge, one for pictures, one for real recordings."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diffaudio.evaluation.bridges.gap import Statistic, add_gap_closed, add_statistics, sound_statistics
from diffaudio.evaluation.bridges.queries import Queries
from diffaudio.evaluation.bridges.sounds import PICTURES
from diffaudio.evaluation.bridges.space import measure_pictures, measure_texts, pair_cosines
from diffaudio.evaluation.embed import AudioEmbeddings
from diffaudio.evaluation.reference import Reference
from diffaudio.evaluation.report import Row
from diffaudio.evaluation.table import Table

__all__ = ["NONE", "Draws", "compare_bridges"]

NONE = "none"


@dataclass(frozen=True)
class Draws:
    """Seed and number of resamples of the intervals."""

    seed: int
    resamples: int


def compare_bridges(
    mapped: Mapping[str, Tensor],
    queries: Queries,
    embedded: Mapping[str, AudioEmbeddings],
    reference: Reference | None,
    draws: Draws,
    pictures: Mapping[str, Tensor] | None = None,
) -> list[Row]:
    """Measure bridges.

    Args:
        mapped: by bridge, [labels, dim]; `none` is among them.
        queries: all labelled clips.
        embedded: by bridge and under `pictures`, the sounds of some of the queries, the same everywhere; may be empty.
        reference: of real recordings; without it there are no distances and no real row.
        pictures: further rows for pictures, by name: [clips, dim], their embeddings after a bridge.
    """
    pictures = {PICTURES: queries.pictures} | dict(pictures or {})
    statistics = {name: sound_statistics(sounds, reference) for name, sounds in embedded.items()}
    reference_n = None if reference is None else len(reference.recordings)
    pictures_cosine = _pictures_cosine(queries, draws.seed)
    rows = []
    for name in [*mapped, *pictures]:
        table = Table(draws.seed, draws.resamples)
        if name in mapped:
            measure_texts(mapped[name], queries, table)
        else:
            measure_pictures(queries, table, seed=draws.seed, mapped=pictures[name])
        sounds = embedded.get(name)
        if sounds is not None:
            add_statistics(statistics[name], len(sounds), table, reference_n)
        if name not in (NONE, PICTURES):
            _add_gaps(name, mapped, queries, pictures_cosine, statistics, sounds, table)
        count, seconds = (len(queries), 0.0) if sounds is None else (len(sounds), sum(sounds.seconds))
        kind = "bridge" if name in mapped else PICTURES
        rows.append(Row(name, kind, count, seconds, table.metrics, table.left_out))
    if reference is not None and reference.held_out is not None:
        rows.append(_real_row(reference, draws))
    return rows


def _add_gaps(
    name: str,
    mapped: Mapping[str, Tensor],
    queries: Queries,
    pictures_cosine: Tensor,
    statistics: Mapping[str, Mapping[str, Statistic]],
    sounds: AudioEmbeddings | None,
    table: Table,
) -> None:
    """The share of the gap that a bridge closes, by the cosine of pairs and by every measure of the sounds."""
    paired = pictures_cosine.isfinite()
    if name in mapped and paired.any():
        of_bridges = {which: pair_cosines(mapped[which], queries)[paired].double() for which in (NONE, name)}
        of_pictures = pictures_cosine[paired].double()
        none, bridge, pictures = (_mean(values) for values in (of_bridges[NONE], of_bridges[name], of_pictures))
        add_gap_closed("pair_cosine", none, bridge, pictures, len(of_pictures), table)
    if sounds is None:
        return
    for metric, bridge in statistics[name].items():
        if metric in statistics[NONE] and metric in statistics[PICTURES]:
            add_gap_closed(metric, statistics[NONE][metric], bridge, statistics[PICTURES][metric], len(sounds), table)


def _pictures_cosine(queries: Queries, seed: int) -> Tensor:
    """[clips]: cosine with another clip of the same kind; NaN where there is none."""
    partners = queries.partners(seed)
    cosine = (queries.pictures[partners] * queries.pictures).sum(dim=1)
    return torch.where(partners >= 0, cosine, torch.nan)


def _mean(values: Tensor) -> Statistic:
    return lambda some: float(values[some].mean())


def _real_row(reference: Reference, draws: Draws) -> Row:
    """What the recordings reach that are held out of the reference, as many as there are sounds."""
    held_out, table = reference.held_out, Table(draws.seed, draws.resamples)
    assert held_out is not None
    add_statistics(sound_statistics(held_out, reference), len(held_out), table, len(reference.recordings))
    return Row(
        "recordings", "real", len(held_out), sum(held_out.seconds), table.metrics, table.left_out, table.warnings
    )
