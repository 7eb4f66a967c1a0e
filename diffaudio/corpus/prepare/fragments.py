"""The clips of one media file on their way into a part: an Arrow stream of `store.CLIP_SCHEMA`, and a note.

Rows are written one by one and mapped into memory where they are read, so that they cost next to nothing.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from diffaudio.corpus.prepare.filters import Verdict
from diffaudio.corpus.prepare.sources import Media
from diffaudio.corpus.store import CLIP_SCHEMA

__all__ = ["dropped_row", "new_note", "read_fragment", "write_fragment"]

NOTE = "note"


def new_note(media: Media) -> dict[str, Any]:
    """What is to be told of a file beside its rows: rows of dropped.csv, and seconds of sound that were looked at."""
    return {"sources": [media.name], "dropped": [], "media_seconds": 0.0}


def dropped_row(media: Media, start_s: float, duration_s: float | None, verdict: Verdict) -> dict[str, Any]:
    """A row of dropped.csv."""
    reason, detail = verdict
    return {"source": media.name, "start_s": start_s, "duration_s": duration_s, "reason": reason, "detail": detail}


def write_fragment(path: Path, rows: Iterable[dict[str, Any]], note: dict[str, Any]) -> None:
    """Write rows, and after the last the note: the rows' generator may still add to it."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, CLIP_SCHEMA) as stream:
        for row in rows:
            stream.write_batch(pa.RecordBatch.from_pylist([row], schema=CLIP_SCHEMA))
        last = pa.RecordBatch.from_pylist([], schema=CLIP_SCHEMA)
        stream.write_batch(last, custom_metadata={NOTE: json.dumps(note, ensure_ascii=False)})


def read_fragment(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """The rows, which stay in the file until they are used, and the note."""
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
        batches, note = [], None
        while note is None:
            batch, note = stream.read_next_batch_with_custom_metadata()
            batches.append(batch)
    return pa.Table.from_batches(batches, CLIP_SCHEMA), json.loads(note[NOTE])
