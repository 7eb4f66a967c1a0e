"""Where the values of encoded clips lie in the files of a corpus, which are mapped into memory.

pyarrow reads the record batches of a mapped part without copying them, so the address of a batch's values, less that
of the map, is their place in the file. The index of these places is all that is kept of a part; a crop of a clip is a
slice of the map.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diffaudio.corpus.latent_shards import LATENT_SCHEMA, map_part
from diffaudio.corpus.store import name_damage
from diffaudio.errors import UserError

__all__ = ["ROW", "MappedParts", "PartIndex", "index_part"]

# Where the values of a row begin, in float16 values from the start of its part; how many frames and pictures it has.
ROW = np.dtype(
    {
        "names": ["latents", "embeddings", "part", "row", "copy", "frames", "pictures"],
        "formats": ["i8", "i8", "i4", "i4", "i4", "i4", "i4"],
    }
)
COLUMNS = ("source", "copy", "num_latent_frames", "num_pictures", "latents", "embeddings")


class MappedParts:
    """The values of parts, mapped into memory when they are first asked for.

    Args:
        max_maps: how many parts are mapped at once; Linux allows a process 65,530 maps.
    """

    def __init__(self, *, max_maps: int = 16_384) -> None:
        self.paths: list[Path] = []
        self._max_maps = max_maps
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> np.ndarray:
        """[values] float16: the whole file, of which an index says where values are."""
        values = self._maps.get(number)
        if values is None:
            if len(self._maps) >= self._max_maps:
                del self._maps[next(iter(self._maps))]
            values = self._maps[number] = np.frombuffer(map_part(self.paths[number]), np.float16)
        return values

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}  # another process maps the files itself


@dataclass
class PartIndex:
    """What is known of a part once it has been opened.

    Attributes:
        rows: [rows] of type `ROW`.
        sources: [rows], the file each clip was cut from.
    """

    rows: np.ndarray
    sources: list[str]


def index_part(path: Path, latent_channels: int, embedding_dim: int, *, number: int = 0) -> PartIndex:
    """Find the values of a part.

    Args:
        number: of the part, for the index.

    Raises:
        ValueError: the part is damaged or compressed, or its sizes are not those of the manifest.
    """
    data, indexes, sources = map_part(path), [np.empty(0, ROW)], list[str]()
    with name_damage(path), pa.ipc.open_stream(data) as reader:
        for name in COLUMNS:
            if reader.schema.field(name).type != LATENT_SCHEMA.field(name).type:
                raise ValueError(f"column {name} is of type {reader.schema.field(name).type}")
        for batch in reader:
            batch.validate(full=True)
            if any(batch[name].null_count for name in COLUMNS):
                raise ValueError("a row lacks a value")
            indexes.append(_index_batch(batch, data, path, latent_channels, embedding_dim))
            sources += batch["source"].to_pylist()
    rows = np.concatenate(indexes)
    rows["part"], rows["row"] = number, np.arange(len(rows))
    if len(rows) and (min(rows["frames"].min(), rows["pictures"].min()) < 1 or rows["copy"][0] != 0):
        raise UserError(f"{path}: holds a clip without latents, pictures or recording; encode the corpus again")
    return PartIndex(rows, sources)


def _index_batch(batch: pa.RecordBatch, data: pa.Buffer, path: Path, channels: int, dim: int) -> np.ndarray:
    """[rows] of type `ROW`, without part and row."""
    rows = np.zeros(batch.num_rows, ROW)
    for name, column in (("copy", "copy"), ("frames", "num_latent_frames"), ("pictures", "num_pictures")):
        rows[name] = batch[column].to_numpy()
    latents, pictures = batch["latents"], batch["embeddings"]
    latent_offsets, picture_offsets = latents.offsets.to_numpy(), pictures.offsets.to_numpy().astype(np.int64)
    embedding_offsets = pictures.values.offsets.to_numpy()
    if (
        (np.diff(latent_offsets) != channels * rows["frames"].astype(np.int64)).any()
        or (np.diff(picture_offsets) != rows["pictures"]).any()
        or (np.diff(embedding_offsets) != dim).any()
    ):
        raise UserError(f"{path}: sizes do not agree with manifest.json; encode the corpus again")
    if latents.values.null_count or pictures.values.null_count or pictures.values.values.null_count:
        raise ValueError("latents or embeddings lack a value")
    rows["latents"] = _place(latents.values, data, path) + latent_offsets[:-1]
    first_embedding = embedding_offsets[0] if len(embedding_offsets) else 0
    rows["embeddings"] = _place(pictures.values.values, data, path) + first_embedding + dim * picture_offsets[:-1]
    return rows


def _place(values: pa.Array, data: pa.Buffer, path: Path) -> int:
    """How many values from the start of the file the first of an array lies, in float16 values."""
    buffer = values.buffers()[1]
    if buffer is None:
        return 0  # no row, or rows without values
    place = buffer.address - data.address
    if not 0 <= place <= data.size - buffer.size:
        raise UserError(f"{path}: is compressed, and so cannot be mapped into memory; encode the corpus again")
    return place // 2 + values.offset
