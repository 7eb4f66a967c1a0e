"""The float16 values of encoded clips, read where they lie in the Parquet files.

`store.write_part` writes the columns `latents` and `embeddings` uncompressed and in one piece a row group:

    [page header][length][repetition levels][length][definition levels][values]

so that the values of row i are some of the last bytes of the column chunk, and a crop of them is a slice of the
file mapped into memory. Where that is so the page header says, by the format's own description (Apache Parquet,
parquet.thrift, in Thrift's compact protocol). Parts that were laid out otherwise are read into memory instead.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from diffaudio.errors import UserError

__all__ = ["ROW", "MappedFiles", "PartIndex", "index_part"]

# Where the values of a row begin, in bytes from the start of its part, and how many frames and pictures they are of.
ROW = np.dtype(
    {
        "names": ["latents", "embeddings", "part", "row", "copy", "frames", "pictures"],
        "formats": ["i8", "i8", "i4", "i4", "i4", "i4", "i4"],
    }
)
LATENTS, EMBEDDINGS = "latents.list.element", "embeddings.list.element.list.element"
_INT, _DATA_PAGE = 0x15, 0x2C  # fields in Thrift's compact protocol: the next one, a number; the next but one, a struct


class MappedFiles:
    """The bytes of files, mapped into memory as they are asked for.

    Args:
        most: how many are mapped at once; Linux allows a process 65,530 maps.
    """

    def __init__(self, *, most: int = 16_384) -> None:
        self.paths: list[Path] = []
        self._most = most
        self._held: dict[int, np.ndarray] = {}
        self._mapped: dict[int, np.ndarray] = {}

    def add(self, path: Path, held: np.ndarray | None = None) -> None:
        """One more file, or bytes [bytes] uint8 that are held in memory in its place."""
        if held is not None:
            self._held[len(self.paths)] = held
        self.paths.append(path)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> np.ndarray:
        """[bytes] uint8"""
        found = self._mapped.get(number)
        if found is None:
            found = self._held.get(number)
        if found is None:
            if len(self._mapped) >= self._most:
                del self._mapped[next(iter(self._mapped))]
            found = self._mapped[number] = map_file(self.paths[number])
        return found

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": {}}  # a map cannot go to another process, but is quickly made there


def map_file(path: Path) -> np.ndarray:
    """[bytes] uint8"""
    # unlike `mmap`, torch keeps no open file beside the map, of which a process may have a thousand
    return torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8).numpy()


@dataclass
class PartIndex:
    """What is known of a part once it has been opened.

    Attributes:
        rows: [rows] of type `ROW`.
        sources: [rows] strings.
        held: [bytes] uint8, what the offsets count from; None where that is the file.
    """

    rows: np.ndarray
    sources: pa.ChunkedArray
    held: np.ndarray | None = None


def index_part(path: Path, latent_channels: int, embedding_dim: int, *, number: int = 0) -> PartIndex:
    """Find the values of a part.

    Args:
        number: of the part, for the index.

    Raises:
        ValueError: the part is damaged, or its sizes are others.
    """
    try:
        with pq.ParquetFile(path) as file:
            wanted = ("source", "copy", "num_latent_frames", "num_pictures")
            columns = file.read([name for name in wanted if name in file.schema_arrow.names], use_threads=False)
            rows = np.zeros(columns.num_rows, ROW)
            rows["part"], rows["row"] = number, np.arange(len(rows))
            rows["frames"] = columns["num_latent_frames"].to_numpy()
            index = PartIndex(rows, columns["source"])
            is_found = False
            if "num_pictures" in columns.column_names and not columns["num_pictures"].null_count:
                rows["copy"], rows["pictures"] = columns["copy"].to_numpy(), columns["num_pictures"].to_numpy()
                is_found = _find(rows, file.metadata, map_file(path), latent_channels, embedding_dim)
            if not is_found:
                index.held = _read(rows, file, path, latent_channels, embedding_dim)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(f"{path}: is damaged; delete it and run `diffaudio encode` again") from error
    if len(rows) and (min(rows["frames"].min(), rows["pictures"].min()) < 1 or rows["copy"][0] != 0):
        raise UserError(f"{path}: holds a clip without latents, pictures or recording; encode the corpus again")
    return index


def _find(rows: np.ndarray, metadata: pq.FileMetaData, data: np.ndarray, channels: int, dim: int) -> bool:
    """Fill in where the values lie in the file; False where they do not lie in one piece a row group."""
    first = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = {chunk.path_in_schema: chunk for chunk in map(group.column, range(group.num_columns))}
        of_group = rows[first : first + group.num_rows]
        for name, path, num_values in (
            ("latents", LATENTS, channels * of_group["frames"].astype(np.int64)),
            ("embeddings", EMBEDDINGS, dim * of_group["pictures"].astype(np.int64)),
        ):
            begin = _values_begin(data, chunks[path]) if path in chunks else None
            if begin is None or begin + 2 * num_values.sum() != _end(chunks[path]):
                return False
            of_group[name] = begin + 2 * (num_values.cumsum() - num_values)
        first += group.num_rows
    return True


def _read(rows: np.ndarray, file: pq.ParquetFile, path: Path, channels: int, dim: int) -> np.ndarray:
    """Read the values of a part, and fill in where they lie among the bytes that are returned."""
    values = file.read(["latents", "embeddings"])
    latents, pictures = (values[name].combine_chunks() for name in ("latents", "embeddings"))
    rows["pictures"] = pictures.value_lengths().to_numpy(zero_copy_only=False)
    latents, embeddings = latents.flatten(), pictures.flatten().flatten()
    num_bytes = [2 * size * rows[count].astype(np.int64) for size, count in ((channels, "frames"), (dim, "pictures"))]
    if [2 * len(latents), 2 * len(embeddings)] != [number.sum() for number in num_bytes]:
        raise UserError(f"{path}: sizes do not agree with manifest.json; encode the corpus again")
    rows["latents"] = num_bytes[0].cumsum() - num_bytes[0]
    rows["embeddings"] = 2 * len(latents) + num_bytes[1].cumsum() - num_bytes[1]
    both = [column.to_numpy(zero_copy_only=False).view(np.uint8) for column in (latents, embeddings)]
    return np.concatenate(both)


def _end(chunk: pq.ColumnChunkMetaData) -> int:
    return chunk.data_page_offset + chunk.total_compressed_size


def _values_begin(data: np.ndarray, chunk: pq.ColumnChunkMetaData) -> int | None:
    """Where the values of a column chunk begin, which reach to its end; None where they are not one plain page."""
    header = _page_header(bytes(data[chunk.data_page_offset : chunk.data_page_offset + 64]))
    if header is None or chunk.compression != "UNCOMPRESSED":
        return None
    kind, num_bytes, _, num_values, encoding = header
    begin = _end(chunk) - num_bytes
    header_size = begin - chunk.data_page_offset
    if (kind, num_values, encoding) != (0, chunk.num_values, 0) or not 0 < header_size < 256:
        return None
    for _ in ("repetition levels", "definition levels"):
        begin += 4 + int.from_bytes(bytes(data[begin : begin + 4]), "little")
    return begin


def _page_header(data: bytes) -> list[int] | None:
    """Kind (0 is data), bytes, bytes when compressed, number of values, encoding (0 is plain) of a data page."""
    numbers, place = [], 0
    for field in (_INT, _INT, _INT, _DATA_PAGE, _INT, _INT):
        if data[place] != field:
            return None
        place += 1
        if field == _INT:
            number, place = _varint(data, place)
            numbers.append(number)
    return numbers


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number of variable length, the sign in its last bit; and where it ends."""
    value = shift = 0
    while True:
        value |= (data[place] & 0x7F) << shift
        shift, place = shift + 7, place + 1
        if data[place - 1] < 0x80:
            return (value >> 1) ^ -(value & 1), place
