"""Check one part of a corpus row by row, and add up the totals that are compared with the other parts."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffaudio.corpus import latent_shards, store
from diffaudio.corpus.validate.row_checks import clip_problems, latent_problems
from diffaudio.errors import UserError
from diffaudio.tables import csv_text

__all__ = ["Dropped", "PartReport", "Problem", "check_part", "row_key", "source_key"]

NEW_IN_2 = {"caption", "fingerprint", "reason", "copy", "num_pictures"}  # columns that corpora of version 1 lack


@dataclass(frozen=True)
class Problem:
    """Something wrong with a corpus.

    Attributes:
        file: its name in the corpus' folder.
        what: is wrong, as a sentence.
        row: number in the file, from 0; None for a problem of the whole file.
        id, source: of the row.
    """

    file: str
    what: str
    row: int | None = None
    id: str | None = None
    source: str | None = None

    def __str__(self) -> str:
        place = "" if self.row is None else f" row {self.row} ({self.id}, {self.source})"
        return f"{self.file}{place}: {self.what}"


@dataclass
class Dropped:
    """A summary of what was dropped, to compare two lists without keeping either.

    Attributes:
        lines: number of lines, by reason.
        sums: sum of their keys, by reason.
    """

    lines: Counter[str] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row of `store.DROPPED_COLUMNS`, typed or as read from CSV.

        Raises:
            TypeError, ValueError: it is damaged.
        """
        duration_s = None if row["duration_s"] in (None, "") else float(row["duration_s"])
        texts = csv_text(row["source"]), csv_text(row["detail"])
        key = _key(str((texts[0], float(row["start_s"]), duration_s, texts[1])))
        self.lines[row["reason"]] += 1
        self.sums[row["reason"]] += key

    def merge(self, other: "Dropped") -> None:
        """Add what `other` has counted."""
        self.lines.update(other.lines)
        self.sums.update(other.sums)


@dataclass
class PartReport:
    """The result of checking a part.

    Attributes:
        num_rows: number of rows that could be read.
        totals: of the quantities that manifest.json adds up, by the same names.
        row_keys: a key of 8 bytes for each row.
        source_keys: one for each source in its note.
    """

    problems: list[Problem] = field(default_factory=list)
    num_rows: int = 0
    totals: Counter[str] = field(default_factory=Counter)
    dropped: Dropped = field(default_factory=Dropped)
    row_keys: "array[int]" = field(default_factory=lambda: array("Q"))
    source_keys: "array[int]" = field(default_factory=lambda: array("Q"))

    def add_row(self, file: str, place: int, row: Mapping[str, Any], problems: list[str]) -> None:
        """Count a row of a file, with what is wrong with it."""
        self.problems += [Problem(file, what, place, row["id"], row["source"]) for what in problems]
        self.num_rows += 1
        self.totals.update(_counted(row))
        self.row_keys.append(row_key(row))


def check_part(path: Path, *, kind: str, manifest: Mapping[str, Any], decode: bool) -> PartReport:
    """Check all rows of a part.

    Args:
        kind: "clips" or "latents".
        manifest: of the corpus.
        decode: whether sound and pictures are decoded.
    """
    report = PartReport()
    try:
        if kind == "latents":
            note = latent_shards.read_note(path)
            _check_latents(path, report, manifest)
        else:
            note = store.read_note(path)
            _check_clips(path, report, manifest, decode, set(note.get("sources", [])))
    except UserError as error:
        report.problems.append(Problem(path.name, str(error).removeprefix(f"{path}: ")))
        return report
    except OSError as error:  # of the disk: the other parts may be read
        report.problems.append(Problem(path.name, f"cannot be read ({error.strerror})"))
        return report
    report.source_keys = array("Q", map(source_key, note.get("sources", [])))
    if kind == "clips":
        _check_dropped(path, note, report)
        for name in ("clips", "rejected", "seconds"):
            if abs(note.get(name, report.totals[name]) - report.totals[name]) > 1e-3:
                what = f"holds {round(report.totals[name], 3)} {name}, its note says {round(note[name], 3)}"
                report.problems.append(Problem(path.name, what))
        report.totals.update(sources=len(report.source_keys), dropped=report.dropped.lines.total())
    return report


def _check_dropped(part: Path, note: Mapping[str, Any], report: PartReport) -> None:
    """Count what was dropped from the sources of the part; its note says how many rows that is."""
    name = store.dropped_path(part).name
    try:
        for table in store.read_dropped(part):
            for row in table.to_pylist():
                report.dropped.add(row)
    except ValueError as error:
        report.problems.append(Problem(name, str(error).partition(": ")[2]))
        return
    found, noted = report.dropped.lines.total(), note.get("dropped", 0)
    if not isinstance(noted, list) and found != noted:
        report.problems.append(Problem(name, f"holds {found} rows, {part.name} says {noted}"))


def row_key(row: Mapping[str, Any]) -> int:
    """A hash of a row's identity in 8 bytes."""
    return _key(f"{row['id']}\n{row.get('copy') or 0}")


def source_key(source: str) -> int:
    """A hash of a source's name in 8 bytes."""
    return _key(source)


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest())


def _schema_problems(schema: pa.Schema, expected: pa.Schema, version: int) -> Iterator[str]:
    for column in expected:
        if column.name not in schema.names:
            if version > 1 or column.name not in NEW_IN_2:
                yield f"lacks the column {column.name}"
        elif schema.field(column.name).type != column.type:
            yield f"has {column.name} as {schema.field(column.name).type}, not {column.type}"
    for name in schema.names:
        if name not in expected.names:
            yield f"has a column {name} that no corpus has"


def _check_clips(path: Path, report: PartReport, manifest: Mapping[str, Any], decode: bool, sources: set[str]) -> None:
    """Add the rows of a part of clips to the report; a row group that cannot be read is one problem."""
    with store.name_damage(path), pq.ParquetFile(path) as file:
        problems = list(_schema_problems(file.schema_arrow, store.CLIP_SCHEMA, manifest["version"]))
        report.problems += [Problem(path.name, what) for what in problems]
        if problems:
            return
        columns, first = None if decode else _light_columns(file), 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            try:
                rows = file.read_row_group(group, columns=columns).to_pylist()
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                what = f"rows {first} to {first + size - 1} cannot be read ({' '.join(str(error).split())})"
                report.problems.append(Problem(path.name, what))
                rows = []
            for place, row in enumerate(rows, first):
                found = list(clip_problems(row, manifest["settings"], decode=decode))
                if row["source"] not in sources:
                    found.append("is of a source that the part does not name among its own")
                report.add_row(path.name, place, row, found)
            first += size


def _check_latents(path: Path, report: PartReport, manifest: Mapping[str, Any]) -> None:
    """Add the rows of a part of latents to the report."""
    first = 0
    for batch in latent_shards.read_batches(path):
        if first == 0:
            problems = list(_schema_problems(batch.schema, latent_shards.LATENT_SCHEMA, manifest["version"]))
            report.problems += [Problem(path.name, what) for what in problems]
            if problems:
                return
        with store.name_damage(path):
            rows = batch.drop_columns(["latents", "embeddings"]).to_pylist()
        for index, row in enumerate(rows):
            found = _latent_row_problems(batch, index, row, manifest)
            report.add_row(path.name, first + index, row, found)
        first += batch.num_rows


def _latent_row_problems(
    batch: pa.RecordBatch, index: int, row: dict[str, Any], manifest: Mapping[str, Any]
) -> list[str]:
    values, embeddings = batch["latents"][index].values, batch["embeddings"][index].values
    if values is None or embeddings is None or any(vector.values is None for vector in embeddings):
        return ["lacks its latents or embeddings"]
    arrays = [vector.values.to_numpy(zero_copy_only=False) for vector in embeddings]
    return list(latent_problems(row, values.to_numpy(zero_copy_only=False), arrays, manifest))


def _counted(row: Mapping[str, Any]) -> dict[str, float]:
    """What a row contributes to the totals."""
    if row.get("reason") is not None:
        return {"rejected": 1}
    return {"clips": 1, "seconds": row["duration_s"] or 0.0}


def _light_columns(file: pq.ParquetFile) -> list[str]:
    """All columns except sound and pictures."""
    schema = file.schema
    leaves = [schema.column(index).path for index in range(len(schema))]
    return [leaf for leaf in leaves if leaf != "audio" and not leaf.endswith(".image")]
