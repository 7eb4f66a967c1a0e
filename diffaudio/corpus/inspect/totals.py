"""Totals of all rows of a corpus, read once from front to back; only counts are kept, so memory does not grow."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diffaudio.corpus import latent_shards, store
from diffaudio.corpus.snapshot import Corpus

__all__ = ["BIN", "EXAMPLES", "QUANTILES", "DropSummary", "Histogram", "Totals", "count", "counted_quantiles"]

EXAMPLES = 25  # kept for each reason
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
BIN = float(np.log(1.01))
BATCH = 8192


class Histogram:
    """Histogram of positive values in logarithmic bins of one per cent: any number of them in a few kilobytes.

    Attributes:
        n: number of values.
        total: their sum.
        counts: of each bin; bin b holds the values from 1.01^b on.
    """

    def __init__(self) -> None:
        self.n, self.total = 0, 0.0
        self.counts: Counter[int] = Counter()
        self._min, self._max = np.inf, -np.inf

    def add(self, values: np.ndarray) -> None:
        """Count values [n], all above 0."""
        if len(values):
            bins, counts = np.unique(np.floor(np.log(values) / BIN).astype(int), return_counts=True)
            self.counts.update(dict(zip(bins.tolist(), counts.tolist(), strict=True)))
            self.n, self.total = self.n + len(values), self.total + float(values.sum())
            self._min, self._max = min(self._min, float(values.min())), max(self._max, float(values.max()))

    def quantiles(self) -> list[float]:
        """Minimum, 10 %, median, 90 % and maximum of at least one value, accurate to one per cent."""
        middles = [float(np.exp((each + 0.5) * BIN)) for each in counted_quantiles(self.counts)]
        return [self._min, *(min(max(each, self._min), self._max) for each in middles[1:-1]), self._max]


@dataclass
class DropSummary:
    """What was dropped for one reason.

    Attributes:
        lines: number of lines in dropped.csv.
        seconds: their total duration, where it is known.
        examples: a random sample of these lines, `EXAMPLES` at most.
    """

    lines: int = 0
    seconds: float = 0.0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: dict[str, Any], rng: random.Random) -> None:
        """Count a line; each has the same chance to be among the examples (Vitter 1985, algorithm R)."""
        self.lines += 1
        self.seconds += row["duration_s"] or 0.0
        place = rng.randrange(self.lines)
        if len(self.examples) < EXAMPLES:
            self.examples.append(row)
        elif place < EXAMPLES:
            self.examples[place] = row


@dataclass
class Totals:
    """Totals of all rows; rejected rows that were kept count in `rejected` and `bytes_of` only.

    Attributes:
        sources: number of sources processed; of an encoded corpus, those that rows come from.
        captions: number of rows with a caption.
        rejected: number of rejected rows, by reason.
        copies: number of rows by copy; 0 is the recording.
        pictures: number of rows by number of pictures.
        durations: of the rows, in seconds.
        rows_a_source: number of sources by number of rows.
        dropped: what was dropped, by reason.
        bytes_of: size of each column, and of the rest of the files as "".
    """

    rows: int = 0
    sources: int = 0
    captions: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    copies: Counter[int] = field(default_factory=Counter)
    pictures: Counter[int] = field(default_factory=Counter)
    durations: Histogram = field(default_factory=Histogram)
    rows_a_source: Counter[int] = field(default_factory=Counter)
    dropped: dict[str, DropSummary] = field(default_factory=dict)
    bytes_of: Counter[str] = field(default_factory=Counter)


def count(corpus: Corpus, *, seed: int = 0) -> Totals:
    """Read all rows once, without sound, pictures, latents and embeddings.

    Args:
        seed: of the examples of what was dropped.

    Raises:
        ValueError: a part is damaged.
    """
    totals, rng = Totals(), random.Random(seed)
    for part in corpus.parts:
        note = corpus.read_note(part)
        for table in store.read_dropped(part) if corpus.kind == "clips" else ():
            for row in table.to_pylist():
                totals.dropped.setdefault(row["reason"], DropSummary()).add(row, rng)
        runs = Counter[str]()
        with store.name_damage(part):
            for batch in _light_batches(part, corpus.kind, totals.bytes_of):
                _count_batch(batch, totals, runs)
        totals.sources += len(note.get("sources", runs))
        totals.rows_a_source.update(runs.values())
    return totals


def _light_batches(part: Path, kind: str, bytes_of: Counter[str]) -> Iterator[pa.RecordBatch]:
    """The columns that are counted; adds up the size of all columns."""
    size = part.stat().st_size
    if kind == "latents":
        for batch in latent_shards.read_batches(part):
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                bytes_of[name] += column.nbytes
                size -= column.nbytes
            yield batch.select(_LIGHT[kind])
    else:
        with pq.ParquetFile(part) as file:
            columns = [name for name in _LIGHT[kind] if name.split(".")[0] in file.schema_arrow.names]
            yield from file.iter_batches(BATCH, columns=columns)
            for group in map(file.metadata.row_group, range(file.num_row_groups)):
                for column in map(group.column, range(group.num_columns)):
                    bytes_of[column.path_in_schema.split(".")[0]] += column.total_compressed_size
                    size -= column.total_compressed_size
    bytes_of[""] += size


_LIGHT = {
    "clips": ("source", "duration_s", "caption", "reason", "frames.list.element.time_s"),
    "latents": ("source", "duration_s", "caption", "copy", "num_pictures"),
}


def _count_batch(batch: pa.RecordBatch, totals: Totals, runs: Counter[str]) -> None:
    names = batch.schema.names
    if "reason" in names:
        totals.rejected.update(reason for reason in batch["reason"].to_pylist() if reason is not None)
        batch = batch.filter(batch["reason"].is_null())
    totals.rows += batch.num_rows
    totals.durations.add(batch["duration_s"].to_numpy(zero_copy_only=False))
    for source, rows in groupby(batch["source"].to_pylist()):
        runs[source] += sum(1 for _ in rows)
    if "caption" in names:
        totals.captions += batch.num_rows - batch["caption"].null_count
    if "copy" in names:
        totals.copies.update(batch["copy"].to_pylist())
    if "frames" in names:
        totals.pictures.update(pc.list_value_length(batch["frames"]).to_pylist())  # pyright: ignore
    elif "num_pictures" in names:
        totals.pictures.update(batch["num_pictures"].to_pylist())


def counted_quantiles(counts: Mapping[int, int]) -> list[float]:
    """Minimum, 10 %, median, 90 % and maximum of at least one number, given how often each occurred."""
    numbers = sorted(counts)
    below = np.cumsum([counts[number] for number in numbers])
    places = np.searchsorted(below, [round(part * (below[-1] - 1)) for part in QUANTILES], side="right")
    return [float(numbers[place]) for place in places]
