"""Removing, or marking, clips whose sound is already in the corpus from another source.

The parts that contain them are rewritten, each atomically. A clip is removed because of one that stays, so a run that
is interrupted and started again gives the same result.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from diffaudio.corpus import store
from diffaudio.corpus.prepare.fingerprints import find_duplicates

__all__ = ["drop_duplicates"]

COLUMNS = ["id", "source", "start_s", "duration_s", "fingerprint", "reason"]


def drop_duplicates(parts: dict[Path, dict[str, Any]], max_distance: float, *, keep: bool) -> None:
    """Remove clips that repeat an earlier clip of another source.

    Args:
        parts: all parts of a corpus of clips in order, with their notes, which are updated.
        max_distance: see `fingerprints.find_duplicates`.
        keep: whether duplicates stay in the corpus, marked with the reason "duplicate".
    """
    tables = [_fingerprints(part, number) for number, part in enumerate(parts)]
    rows = pa.concat_tables(tables).combine_chunks() if tables else None
    if rows is None or rows.num_rows == 0:
        return
    twins = find_duplicates(rows["fingerprint"].to_pylist(), rows["source"].to_pylist(), max_distance=max_distance)
    found: dict[int, list[dict[str, Any]]] = {}
    for index, twin in enumerate(twins):
        if twin is not None:
            row, same = (rows.slice(at, 1).to_pylist()[0] for at in (index, twin))
            detail = f"sounds like {same['source']} at {same['start_s']:g} s (clip {same['id']})"
            found.setdefault(row["part"], []).append(row | {"reason": "duplicate", "detail": detail})
    for number, (part, note) in enumerate(parts.items()):
        if number in found:
            _rewrite(part, note, found[number], keep=keep)


def _fingerprints(part: Path, number: int) -> pa.Table:
    """Rows that have a fingerprint, with the number of their part."""
    table = pa.concat_tables([store.CLIP_SCHEMA.empty_table().select(COLUMNS), *store.read_tables(part, COLUMNS)])
    table = table.filter(table["fingerprint"].is_valid())
    return table.append_column("part", pa.array([number] * table.num_rows, pa.int32()))


def _without(tables: Iterable[pa.Table], duplicates: list[dict[str, Any]]) -> Iterator[pa.Table]:
    """The dropped rows without these duplicates, which an earlier, interrupted run may have recorded already."""
    noted = {(row["source"], row["start_s"]) for row in duplicates}
    for table in tables:
        rows = zip(*(table[name].to_pylist() for name in ("source", "start_s", "reason")), strict=True)
        keep = [reason != "duplicate" or (source, start_s) not in noted for source, start_s, reason in rows]
        yield table.filter(pa.array(keep, pa.bool_()))


def _rewrite(part: Path, note: dict[str, Any], duplicates: list[dict[str, Any]], *, keep: bool) -> None:
    ids = {row["id"] for row in duplicates}
    place = store.CLIP_SCHEMA.get_field_index("reason")

    def tables() -> Iterator[pa.Table]:
        for table in store.read_tables(part, rejected=True):
            is_duplicate = [identity in ids for identity in table["id"].to_pylist()]
            if keep:
                before = table["reason"].to_pylist()
                reasons = ["duplicate" if one else reason for one, reason in zip(is_duplicate, before, strict=True)]
                yield table.set_column(place, store.CLIP_SCHEMA.field("reason"), pa.array(reasons, pa.string()))
            else:
                yield table.filter(pa.array([not one for one in is_duplicate], pa.bool_()))

    dropped = pa.Table.from_pylist(duplicates, store.DROPPED_SCHEMA)
    note["dropped"] = store.write_dropped(part, [*_without(store.read_dropped(part), duplicates), dropped])
    note["clips"] -= len(duplicates)
    note["rejected"] += len(duplicates) if keep else 0
    note["seconds"] -= sum(row["duration_s"] for row in duplicates)
    store.write_tables(part, tables(), note)
