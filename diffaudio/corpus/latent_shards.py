"""Parts of an encoded corpus: Arrow IPC streams, as Hugging Face's `datasets` writes and maps them.

latents-00000.arrow holds one row an encoded clip (LATENT_SCHEMA) in record batches; the schema's metadata carries a
note in JSON. Values are not compressed, so that training reads them where they lie in the file mapped into memory.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from diffaudio.atomic_io import atomic_file
from diffaudio.corpus.store import CLIP_IDENTITY, NOTE, name_damage

__all__ = ["LATENT_SCHEMA", "count_rows", "map_part", "read_batches", "read_note", "write_part"]

LATENT_SCHEMA = pa.schema(
    [
        *CLIP_IDENTITY,
        ("caption", pa.string()),
        ("copy", pa.int32()),  # 0 as recorded, 1 … augmented
        ("num_latent_frames", pa.int32()),
        ("num_pictures", pa.int32()),
        ("latents", pa.list_(pa.float16())),
        ("embeddings", pa.list_(pa.list_(pa.float16()))),
    ]
)
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
MAX_BATCH_BYTES = 2**25  # of latents in one record batch, so that long clips do not pile up in memory


def write_part(path: Path, rows: Iterable[dict[str, Any]], note: dict[str, Any], *, rows_per_batch: int = 32) -> None:
    """Write one part whole, holding at most `rows_per_batch` rows, or about 32 MB of them, in memory.

    Args:
        rows: as in LATENT_SCHEMA; latents are arrays [values], embeddings lists of arrays [dim].
        note: kept in the file's metadata.
    """
    schema = LATENT_SCHEMA.with_metadata({NOTE: json.dumps(note, ensure_ascii=False)})
    with atomic_file(path) as temporary, pa.ipc.new_stream(temporary, schema) as writer:
        batch: list[dict[str, Any]] = []
        num_bytes = 0
        for row in rows:
            batch.append(row)
            num_bytes += 2 * len(row["latents"] if row["latents"] is not None else ())
            if len(batch) == rows_per_batch or num_bytes >= MAX_BATCH_BYTES:
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
                batch, num_bytes = [], 0
        if batch:
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))


def map_part(path: Path) -> pa.Buffer:
    """The bytes of a part, mapped into memory; no file stays open.

    Raises:
        ValueError: the file is cut off.
    """
    with name_damage(path), pa.memory_map(str(path)) as file:
        size = file.size()
        data = file.read_buffer() if size else pa.py_buffer(b"")  # an empty file cannot be mapped
        # a stream that ends early reads as one with fewer rows, without an error
        if bytes(data[max(0, size - 8) :]) != END_OF_STREAM:
            raise ValueError("the end of the file is missing")
    return data


def read_note(path: Path) -> dict[str, Any]:
    """The note that a part was written with.

    Raises:
        ValueError: the part is damaged, or was not written by `write_part`.
    """
    with _stream(path) as reader:
        return json.loads(reader.schema.metadata[NOTE])


def read_batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a part, one record batch after the other, mapped and not copied.

    Raises:
        ValueError: the part is damaged.
    """
    with _stream(path) as reader:
        for name in columns or reader.schema.names:  # also sees that the names are UTF-8
            reader.schema.field(name)
        for batch in reader:
            batch.validate(full=True)
            yield batch if columns is None else batch.select(columns)


def count_rows(path: Path) -> tuple[int, float]:
    """Number of rows of a part, and the seconds of sound in them."""
    durations_s = [value for batch in read_batches(path, ["duration_s"]) for value in batch[0].to_pylist()]
    return len(durations_s), sum(durations_s)


@contextmanager
def _stream(path: Path) -> Iterator[pa.RecordBatchReader]:
    data = map_part(path)
    with name_damage(path), pa.ipc.open_stream(data) as reader:
        yield reader
