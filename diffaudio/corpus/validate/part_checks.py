"""One part of a corpus, checked row by row; and the totals by which it is compared with the others."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diffaudio.corpus import store
from diffaudio.corpus.validate.row_checks import clip_problems, latent_problems
from diffaudio.tables import csv_text

__all__ = ["Dropped", "PartReport", "Problem", "check_part", "row_key", "source_key"]

NEW_IN_2 = {"caption", "fingerprint", "reason", "copy", "num_pictures"}  # columns that corpora of version 1 lack


@dataclass(frozen=True)
class Problem:
    """Something wrong with a corpus.

    Attributes:
        file: in its folder.
        what: a sentence.
        row: of the file, from 0; None where it concerns all of it.
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
    """What was dropped, so that two lists of it can be compared without keeping either.

    Attributes:
        lines: how many, by reason.
        sums: of their keys, by reason.
    """

    lines: Counter[str] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row of `store.DROPPED_COLUMNS`, as it is or as CSV has it.

        Raises:
            TypeError, ValueError: it is damaged.
        """
        duration_s = None if row["duration_s"] in (None, "") else float(row["duration_s"])
        texts = csv_text(row["source"]), csv_text(row["detail"])
        key = _key(str((texts[0], float(row["start_s"]), duration_s, texts[1])))
        self.lines[row["reason"]] += 1
        self.sums[row["reason"]] += key

    def merge(self, other: "Dropped") -> None:
        """Count also all that `other` has counted."""
        self.lines.update(other.lines)
        self.sums.update(other.sums)


@dataclass
class PartReport:
    """What was found in a part.

    Attributes:
        num_rows: that could be read.
        totals: of what manifest.json adds up, by the same names.
        row_keys: [rows] uint64.
        source_keys: [sources] uint64, of what its note says.
    """

    problems: list[Problem] = field(default_factory=list)
    num_rows: int = 0
    totals: Counter[str] = field(default_factory=Counter)
    dropped: Dropped = field(default_factory=Dropped)
    row_keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    source_keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))


def check_part(path: Path, *, kind: str, manifest: Mapping[str, Any], decode: bool) -> PartReport:
    """Check all rows of a part.

    Args:
        kind: "clips" or "latents".
        manifest: of the corpus.
        decode: whether sound and pictures are decoded.
    """
    report = PartReport()
    try:
        note = store.read_note(path)
        with pq.ParquetFile(path) as file:
            wrong = list(_schema_problems(file.schema_arrow, kind, manifest["version"]))
            report.problems += [Problem(path.name, what) for what in wrong]
            if not wrong:
                sources = set(note.get("sources", [])) if kind == "clips" else None
                _check_rows(file, report, path.name, kind, manifest, decode, sources)
    except ValueError as error:
        report.problems.append(Problem(path.name, str(error).removeprefix(f"{path}: ")))
        return report
    report.source_keys = np.array([source_key(source) for source in note.get("sources", [])], np.uint64)
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
    """Of a row's identity: 8 bytes in the place of a text."""
    return _key(f"{row['id']}\n{row.get('copy') or 0}")


def source_key(source: str) -> int:
    """Of a source's name."""
    return _key(source)


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest())


def _schema_problems(schema: pa.Schema, kind: str, version: int) -> Iterator[str]:
    wanted = store.SCHEMAS[kind]
    for column in wanted:
        if column.name not in schema.names:
            if version > 1 or column.name not in NEW_IN_2:
                yield f"lacks the column {column.name}"
        elif schema.field(column.name).type != column.type:
            yield f"has {column.name} as {schema.field(column.name).type}, not {column.type}"
    for name in schema.names:
        if name not in wanted.names:
            yield f"has a column {name} that no corpus has"


def _check_rows(
    file: pq.ParquetFile,
    report: PartReport,
    name: str,
    kind: str,
    manifest: Mapping[str, Any],
    decode: bool,
    sources: set[str] | None,
) -> None:
    """Add the rows to the report; what a row group that cannot be read held is lost."""
    first, keys = 0, []
    columns = None if decode or kind == "latents" else _light_columns(file)
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        try:
            table = file.read_row_group(group, columns=columns)
        except (pa.ArrowException, OSError) as error:
            what = f"rows {first} to {first + size - 1} cannot be read ({' '.join(str(error).split())})"
            report.problems.append(Problem(name, what))
        else:
            rows = table.drop_columns([c for c in ("latents", "embeddings") if c in table.column_names]).to_pylist()
            checks = _clip_checks(rows, manifest, decode) if kind == "clips" else _latent_checks(table, rows, manifest)
            for place, (row, found) in enumerate(zip(rows, checks, strict=True), first):
                if sources is not None and row["source"] not in sources:
                    found.append("is of a source that the part does not name among its own")
                report.problems += [Problem(name, what, place, row["id"], row["source"]) for what in found]
                report.num_rows += 1
                report.totals.update(_counted(row))
                keys.append(row_key(row))
        first += size
    report.row_keys = np.array(keys, np.uint64)


def _counted(row: Mapping[str, Any]) -> dict[str, float]:
    """What a row adds to the totals."""
    if row.get("reason") is not None:
        return {"rejected": 1}
    return {"clips": 1, "seconds": row["duration_s"] or 0.0}


def _light_columns(file: pq.ParquetFile) -> list[str]:
    """All columns but sound and pictures."""
    schema = file.schema
    leaves = [schema.column(index).path for index in range(len(schema))]
    return [leaf for leaf in leaves if leaf != "audio" and not leaf.endswith(".image")]


def _clip_checks(rows: list[dict[str, Any]], manifest: Mapping[str, Any], decode: bool) -> Iterator[list[str]]:
    for row in rows:
        yield list(clip_problems(row, manifest["settings"], decode=decode))


def _latent_checks(table: pa.Table, rows: list[dict[str, Any]], manifest: Mapping[str, Any]) -> Iterator[list[str]]:
    latents, pictures = table["latents"].combine_chunks(), table["embeddings"].combine_chunks()
    for index, row in enumerate(rows):
        values, embeddings = latents[index].values, pictures[index].values
        if values is None or embeddings is None or any(vector.values is None for vector in embeddings):
            yield ["lacks its latents or embeddings"]
            continue
        arrays = [vector.values.to_numpy(zero_copy_only=False) for vector in embeddings]
        yield list(latent_problems(row, values.to_numpy(zero_copy_only=False), arrays, manifest))
