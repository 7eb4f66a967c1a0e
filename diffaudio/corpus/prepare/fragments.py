"""The clips of one media file, and its dropped segments, before they are merged into a part: two Arrow streams.

Rows are written one by one and memory-mapped when they are read, so they take hardly any memory.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import pyarrow as pa

from diffaudio.corpus.prepare.quality_filters import DropReason
from diffaudio.corpus.prepare.sources import Media
from diffaudio.corpus.store import CLIP_SCHEMA, DROPPED_SCHEMA

__all__ = ["CutReport", "Fragment", "remove_fragment", "write_empty_fragment", "write_fragment"]

NOTE = "note"
DROPPED_ROWS = 4096  # rows written at a time


class _Rows(Protocol):
    """A list, or a file to which rows are written."""

    def append(self, row: dict[str, Any], /) -> None: ...


@dataclass
class CutReport:
    """The outcome of cutting a media file, apart from its clips.

    Attributes:
        dropped: rows of `store.DROPPED_SCHEMA`.
        media_seconds: duration of the sound that was examined.
        read_to: the byte at which the demuxer reported the end of the file; None if it was not read to the end.
    """

    media: Media
    dropped: _Rows = field(default_factory=list)
    media_seconds: float = 0.0
    read_to: int | None = None

    def drop(self, start_s: float, duration_s: float | None, why: DropReason) -> None:
        """Record that a segment, or the entire file, was dropped."""
        reason, detail = why
        row = {"source": self.media.name, "start_s": start_s, "duration_s": duration_s}
        self.dropped.append(row | {"reason": reason, "detail": detail})


class _DroppedStream:
    """The dropped rows, written a few thousand at a time."""

    def __init__(self, path: Path) -> None:
        self._file = pa.OSFile(str(path), "wb")
        self._stream = pa.ipc.new_stream(self._file, DROPPED_SCHEMA)
        self._rows: list[dict[str, Any]] = []

    def append(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == DROPPED_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._stream.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=DROPPED_SCHEMA))
        self._rows = []

    def __enter__(self) -> "_DroppedStream":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._flush()
            self._stream.close()
        self._file.close()


def write_fragment(path: Path, rows: Iterable[dict[str, Any]], report: CutReport) -> None:
    """Write the clips of a media file, then its report as it is after the last clip.

    Args:
        rows: rows of `store.CLIP_SCHEMA`; producing them adds to `report.dropped`, which this function sets.

    Raises:
        OSError: the fragment cannot be written.
    """
    with (
        _DroppedStream(_dropped_path(path)) as report.dropped,
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_stream(file, CLIP_SCHEMA) as stream,
    ):
        for row in rows:
            stream.write_batch(pa.RecordBatch.from_pylist([row], schema=CLIP_SCHEMA))
        last = pa.RecordBatch.from_pylist([], schema=CLIP_SCHEMA)
        stream.write_batch(last, custom_metadata={NOTE: json.dumps({"media_seconds": report.media_seconds})})


def write_empty_fragment(path: Path, media: Media, reason: DropReason) -> None:
    """Write the fragment of a media file without clips, for a reason that concerns the file as a whole."""
    report = CutReport(media)

    def no_rows() -> Iterator[dict[str, Any]]:
        report.drop(media.segments[0].start_s, None, reason)
        yield from ()

    write_fragment(path, no_rows(), report)


@dataclass(frozen=True)
class Fragment:
    """A fragment on disk, opened for reading; its rows stay in the file until they are used."""

    clips: pa.Table
    dropped: pa.Table
    media_seconds: float

    @staticmethod
    def read(path: Path) -> "Fragment":
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
            batches, note = [], None
            while note is None:
                batch, note = stream.read_next_batch_with_custom_metadata()
                batches.append(batch)
        with pa.memory_map(str(_dropped_path(path))) as file, pa.ipc.open_stream(file) as stream:
            dropped = stream.read_all()
        return Fragment(pa.Table.from_batches(batches, CLIP_SCHEMA), dropped, json.loads(note[NOTE])["media_seconds"])


def remove_fragment(path: Path) -> None:
    """Remove a fragment, and anything that a worker that died left of one, such as a copy of a remote file."""
    for file in path.parent.glob(f"{path.stem}.*"):
        file.unlink(missing_ok=True)


def _dropped_path(path: Path) -> Path:
    return path.with_suffix(".dropped")
