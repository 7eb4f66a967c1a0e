"""Encoded corpora for training, and the batches drawn from them.

The values stay on disk, mapped into memory (`mapped`); what is kept is an index, of 44 bytes a clip and 36 a copy.
A batch is a function of the clips that are asked for and of the generator: with the clips of a `ClipOrder` and a
generator made from (seed, process, step), a run that is stopped and started again sees what it would have seen.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from diffaudio.corpus import store
from diffaudio.corpus.datasets.mapped import MappedFiles, index_part
from diffaudio.corpus.datasets.splits import is_held_out
from diffaudio.errors import UserError

__all__ = ["LatentDataset", "draw_batch"]


class LatentDataset:
    """The clips of one encoded corpus, or of several, one after the other.

    `dataset[i]` is {"latents": [latent_channels, frames], "embeddings": [pictures, dim]}, float32, of clip i as it
    was recorded. A clip counts once, however many augmented copies of it there are.

    Args:
        folders: of the corpora, made by the same autoencoder and CLIP.
        held_out: share of the sources that are held out from training; see `splits.is_held_out`.
        part: which side to open. Clips that are held out are there as they were recorded, without the copies.

    Attributes:
        folders: of the corpora.
        sizes: number of clips of each corpus.
        autoencoder: what the manifest says of the autoencoder: name, sample_rate, audio_channels, latent_channels,
            latent_rate.
        clip: what it says of CLIP: name, embedding_dim.
        latent_rate: latent frames a second.
        latent_channels: width of the latents.
        embedding_dim: size of an embedding.
        rows: [rows] of type `mapped.ROW`: where the values of each recording lie, and after it those of its copies.
        starts: [clips + 1], the row each clip begins with.

    Raises:
        ValueError: a folder is no finished encoded corpus, holds no clips on this side, or damaged ones; or the
            corpora were made by different models.
    """

    def __init__(
        self, *folders: str | Path, held_out: float = 0.0, part: Literal["train", "held_out"] = "train"
    ) -> None:
        if part not in ("train", "held_out"):
            raise UserError(f"part '{part}' is unknown; choose from train, held_out")
        self.folders = [Path(folder) for folder in folders]
        manifest = _common_manifest(self.folders)
        self.autoencoder: dict[str, Any] = manifest["autoencoder"]
        self.clip: dict[str, Any] = manifest["clip"]
        self.latent_rate: float = self.autoencoder["latent_rate"]
        self.latent_channels: int = self.autoencoder["latent_channels"]
        self.embedding_dim: int = self.clip["embedding_dim"]
        self._files = MappedFiles()
        rows = [self._open(folder, held_out, part) for folder in self.folders]
        self.sizes = tuple(int((of_corpus["copy"] == 0).sum()) for of_corpus in rows)
        self.rows = np.concatenate(rows)
        self.starts = np.append(np.flatnonzero(self.rows["copy"] == 0), len(self.rows))
        if not len(self):
            raise UserError(f"held_out {held_out:g} holds out no source of {', '.join(map(str, folders))}; raise it")

    def _open(self, folder: Path, held_out: float, part: str) -> np.ndarray:
        """The rows of a corpus that are on this side."""
        all_rows, sides = [], []
        for path in store.part_files(folder, "latents"):
            index = index_part(path, self.latent_channels, self.embedding_dim, number=len(self._files))
            self._files.add(path, index.held)
            all_rows.append(index.rows)
            sides.append(_is_on_side(index.rows, index.sources, held_out, part))
        if not sum(map(len, all_rows)):
            raise UserError(f"{folder}: holds no clips; see dropped.csv of the corpus it was encoded from")
        rows = np.concatenate(all_rows)[np.concatenate(sides)]
        if part == "train" and not len(rows):
            raise UserError(f"{folder}: held_out {held_out:g} leaves no clips to train on; lower it")
        return rows

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, clip: int) -> dict[str, Tensor]:
        row = self._row(clip)
        latents, embeddings = self._latents(row).copy(), self._embeddings(row).copy()
        return {
            "latents": torch.from_numpy(latents.view(np.float16)[..., 0]).float(),
            "embeddings": torch.from_numpy(embeddings.view(np.float16)).float(),
        }

    def describe(self, clip: int) -> dict[str, Any]:
        """All other columns of the clip's row, such as id, source, start_s and caption; it takes a millisecond."""
        row = self._row(clip)
        with pq.ParquetFile(self._files.paths[row["part"]]) as file:
            names = [name for name in file.schema_arrow.names if name not in ("latents", "embeddings")]
            return file.read(names).slice(int(row["row"]), 1).to_pylist()[0]

    def pictures(self, most: int | None = None) -> Tensor:
        """Embeddings of the pictures of all recordings, or of so many drawn from them at random: [pictures, dim]."""
        rows = self.rows[self.starts[:-1]]
        ends = rows["pictures"].cumsum(dtype=np.int64)
        chosen = np.arange(ends[-1])
        if most is not None and most < len(chosen):
            chosen = np.sort(np.random.default_rng(0).choice(len(chosen), most, replace=False))
        of_row = np.searchsorted(ends, chosen, side="right")
        picture = chosen - (ends - rows["pictures"])[of_row]
        found = [self._embeddings(row)[place] for row, place in zip(rows[of_row], picture, strict=True)]
        return torch.from_numpy(np.stack(found).view(np.float16)).float()

    def _row(self, clip: int) -> Any:
        if not -len(self) <= clip < len(self):
            raise IndexError(f"there is no clip {clip} among {len(self)}")
        return self.rows[self.starts[:-1][clip]]

    def _latents(self, row: Any) -> np.ndarray:
        """[latent_channels, frames, 2 bytes]"""
        first, num_frames = int(row["latents"]), int(row["frames"])
        end = first + 2 * self.latent_channels * num_frames
        return self._files[int(row["part"])][first:end].reshape(self.latent_channels, num_frames, 2)

    def _embeddings(self, row: Any) -> np.ndarray:
        """[pictures, 2 embedding_dim bytes]"""
        first, num_pictures = int(row["embeddings"]), int(row["pictures"])
        end = first + 2 * self.embedding_dim * num_pictures
        return self._files[int(row["part"])][first:end].reshape(num_pictures, -1)


def draw_batch(
    dataset: LatentDataset,
    clips: Sequence[int] | np.ndarray,
    *,
    num_frames: int,
    generator: torch.Generator,
    tile: bool = True,
) -> tuple[Tensor, Tensor]:
    """Of each clip a stretch of the recording or of one of its copies, and the embedding of one of its pictures.

    Args:
        clips: places in the dataset.
        num_frames: length of the stretch, which begins anywhere.
        generator: a CPU generator; copies, stretches and pictures depend on nothing else.
        tile: whether what is shorter is repeated end to end, beginning anywhere; otherwise it is followed by zeros.

    Returns:
        latents [clips, latent_channels, num_frames] and embeddings [clips, embedding_dim], float32.

    Raises:
        ValueError: there are no clips, or `num_frames` is not positive.
    """
    if len(clips) < 1 or num_frames < 1:
        raise UserError(f"{len(clips)} clips of {num_frames} frames are no batch; both must be at least 1")
    draws = torch.rand(3, len(clips), dtype=torch.float64, generator=generator).numpy()
    first, end = dataset.starts[clips], dataset.starts[np.add(clips, 1)]
    rows = dataset.rows[first + _below(end - first, draws[0])]
    spare = rows["frames"] - num_frames + 1
    starts = _below(np.where(spare > 0, spare, rows["frames"] if tile else 1), draws[1])
    pictures = _below(rows["pictures"], draws[2])

    # bytes, as values in a file need not lie where a processor reads them as numbers
    latents = np.zeros((len(clips), dataset.latent_channels, num_frames, 2), np.uint8)
    embeddings = np.empty((len(clips), 2 * dataset.embedding_dim), np.uint8)
    for item, (row, start, picture) in enumerate(zip(rows, starts.tolist(), pictures.tolist(), strict=True)):
        _lay(dataset._latents(row), latents[item], start, tile)
        embeddings[item] = dataset._embeddings(row)[picture]
    values = torch.from_numpy(latents.view(np.float16)[..., 0]), torch.from_numpy(embeddings.view(np.float16))
    return values[0].float(), values[1].float()


def _lay(whole: np.ndarray, out: np.ndarray, start: int, tile: bool) -> None:
    """Fill `out` [channels, any, 2] with what `whole` [channels, frames, 2] holds from `start` on, then from 0 on."""
    place = 0
    while place < out.shape[1]:
        count = min(whole.shape[1] - start, out.shape[1] - place)
        out[:, place : place + count] = whole[:, start : start + count]
        place, start = (place + count if tile else out.shape[1]), 0


def _below(limits: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Whole numbers below `limits`, from draws in 0..1."""
    return (limits * draws).astype(np.int64)


def _is_on_side(rows: np.ndarray, sources: pa.ChunkedArray, held_out: float, part: str) -> np.ndarray:
    """[rows] bool"""
    if part == "train" and not held_out:
        return np.ones(len(rows), bool)
    encoded = sources.combine_chunks().dictionary_encode()
    sides = np.array([is_held_out(source, held_out) for source in encoded.dictionary.to_pylist()], bool)
    out = sides[encoded.indices.to_numpy()]
    return ~out if part == "train" else out & (rows["copy"] == 0)


def _common_manifest(folders: list[Path]) -> dict[str, Any]:
    """The first manifest, once all are found to name the same models."""
    if not folders:
        raise UserError("no corpus was given; name at least one")
    manifests = [store.read_manifest(folder, *store.FORMATS["latents"]) for folder in folders]
    for folder, manifest in zip(folders, manifests, strict=True):
        if not manifest["finished"]:
            raise UserError(f"{folder}: is not finished; run `diffaudio encode` on it again first")
        for model in ("autoencoder", "clip"):
            first, other = manifests[0][model], manifest[model]
            if first != other:
                names = [f"'{made['name']}' (weights {made.get('weights', 'not named')})" for made in (other, first)]
                raise UserError(
                    f"{folder}: was encoded by {model} {names[0]}, {folders[0]} by {names[1]}; "
                    "what is trained on together must be encoded by the same"
                )
    return manifests[0]
