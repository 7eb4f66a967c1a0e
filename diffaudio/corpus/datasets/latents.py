"""Encoded corpora for training, and the batches drawn from them.

The values stay on disk, mapped into memory; what is kept is an index, of 44 bytes a clip and 36 an augmented copy.
A batch is a function of the clips that are asked for and of its `BatchDraws`: with the clips of a `ClipOrder`, a
resumed run draws what an uninterrupted one would have drawn.
"""

import copy
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from diffaudio.corpus import latent_shards, store
from diffaudio.corpus.datasets.shard_index import MappedParts, index_part
from diffaudio.corpus.datasets.splits import is_held_out
from diffaudio.errors import UserError
from diffaudio.seeding import BatchDraws

__all__ = ["MAX_PICTURES_FOR_STATISTICS", "LatentDataset", "draw_batch"]

MAX_PICTURES_FOR_STATISTICS = 100_000  # the error of their mean is a third of a percent of their standard deviation


class LatentDataset:
    """The clips of one encoded corpus, or of several, one after the other.

    `dataset[i]` is {"latents": [latent_channels, frames], "embeddings": [pictures, dim]}, float32, of clip i as it
    was recorded. A clip counts once, however many augmented copies it has.

    Args:
        folders: of the corpora, encoded by the same autoencoder and CLIP.
        held_out: share of the sources that are held out from training; see `splits.is_held_out`.
        split: which side to open. The held-out side has no augmented copies.

    Attributes:
        folders: of the corpora.
        sizes: number of clips of each corpus.
        autoencoder: what the manifest says of the autoencoder: name, sample_rate, audio_channels, latent_channels,
            latent_rate.
        clip: what it says of CLIP: name, embedding_dim.
        latent_rate: latent frames a second.
        latent_channels: width of the latents.
        embedding_dim: size of an embedding.
        rows: [rows] of type `shard_index.ROW`: each recording, followed by its copies.
        starts: [clips + 1], the first row of each clip.

    Raises:
        ValueError: a folder is no finished encoded corpus, is damaged or has no clips on this side; or the corpora
            were encoded by different models.
    """

    def __init__(
        self, *folders: str | Path, held_out: float = 0.0, split: Literal["train", "held_out"] = "train"
    ) -> None:
        if split not in ("train", "held_out"):
            raise UserError(f"split '{split}' is unknown; choose from train, held_out")
        self.folders = [Path(folder) for folder in folders]
        manifest = _common_manifest(self.folders)
        self.autoencoder: dict[str, Any] = manifest["autoencoder"]
        self.clip: dict[str, Any] = manifest["clip"]
        self.latent_rate: float = self.autoencoder["latent_rate"]
        self.latent_channels: int = self.autoencoder["latent_channels"]
        self.embedding_dim: int = self.clip["embedding_dim"]
        self._parts = MappedParts()
        self._draws_crops = True
        rows = [self._open(folder, held_out, split) for folder in self.folders]
        self.sizes = tuple(int((of_corpus["copy"] == 0).sum()) for of_corpus in rows)
        self.rows = np.concatenate(rows)
        self.starts = np.append(np.flatnonzero(self.rows["copy"] == 0), len(self.rows))
        if not len(self):
            raise UserError(f"held_out {held_out:g} holds out no source of {', '.join(map(str, folders))}; raise it")

    def _open(self, folder: Path, held_out: float, split: str) -> np.ndarray:
        """The rows of a corpus that are on this side of the split."""
        all_rows, sides = [], []
        for path in store.part_files(folder, "latents"):
            index = index_part(path, self.latent_channels, self.embedding_dim, number=len(self._parts))
            self._parts.paths.append(path)
            all_rows.append(index.rows)
            sides.append(_is_in_split(index.rows, index.sources, held_out, split))
        if not sum(map(len, all_rows)):
            raise UserError(f"{folder}: holds no clips; see dropped.csv of the corpus it was encoded from")
        rows = np.concatenate(all_rows)[np.concatenate(sides)]
        if split == "train" and not len(rows):
            raise UserError(f"{folder}: held_out {held_out:g} leaves no clips to train on; lower it")
        return rows

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, clip: int) -> dict[str, Tensor]:
        row = self._row(clip)
        values = self._latents(row), self._embeddings(row)
        latents, embeddings = (torch.from_numpy(each.astype(np.float32)) for each in values)
        if not (_is_finite(latents) and _is_finite(embeddings)):
            raise self._not_finite(row)
        return {"latents": latents, "embeddings": embeddings}

    def first_crops_of(self, number: int) -> "LatentDataset":
        """`number` of the recordings, evenly spaced over all; batches of it always begin with the clip and its picture.

        Raises:
            ValueError: there are fewer.
        """
        if not 1 <= number <= len(self):
            raise UserError(f"{number} clips were asked for; {self.folders[0]} has {len(self)}")
        chosen = np.linspace(0, len(self) - 1, number).round().astype(int)
        smaller = copy.copy(self)
        smaller.rows = self.rows[self.starts[:-1][chosen]]
        smaller.starts, smaller.sizes, smaller._draws_crops = np.arange(number + 1), (number,), False
        return smaller

    def describe(self, clip: int) -> dict[str, Any]:
        """All other columns of the clip's row, such as id, source, start_s and caption; it takes a millisecond."""
        return self._describe(self._row(clip))

    def picture_embeddings(self, max_count: int | None = None) -> Tensor:
        """Embeddings of the pictures of all recordings, or of `max_count` drawn at random: [pictures, dim]."""
        rows = self.rows[self.starts[:-1]]
        ends = rows["pictures"].cumsum(dtype=np.int64)
        if max_count is None or max_count >= ends[-1]:
            chosen = np.arange(ends[-1])
        else:
            chosen = np.sort(np.random.default_rng(0).choice(ends[-1], max_count, replace=False))
        row_of = np.searchsorted(ends, chosen, side="right")
        picture = chosen - (ends - rows["pictures"])[row_of]
        found = [self._embeddings(row)[index] for row, index in zip(rows[row_of], picture, strict=True)]
        embeddings = torch.from_numpy(np.stack(found)).float()
        if not _is_finite(embeddings):
            finite = embeddings.isfinite().all(dim=1)
            raise self._not_finite(rows[row_of][int((~finite).nonzero()[0])])
        return embeddings

    @cached_property
    def embedding_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each dimension of the pictures' embeddings, [dim] each."""
        embeddings = self.picture_embeddings(MAX_PICTURES_FOR_STATISTICS)
        return embeddings.mean(dim=0), embeddings.std(dim=0, correction=0).clamp(min=1e-6)

    def describe_all(self, *columns: str) -> list[dict[str, Any]]:
        """Columns such as source and caption of each clip's row, in the order of the clips."""
        recordings = self.rows[self.starts[:-1]]
        of_part: dict[int, list[dict[str, Any]]] = {}
        for part in np.unique(recordings["part"]).tolist():
            batches = latent_shards.read_batches(self._parts.paths[part], list(columns))
            of_part[part] = [row for batch in batches for row in batch.to_pylist()]
        return [of_part[int(row["part"])][int(row["row"])] for row in recordings]

    def _row(self, clip: int) -> Any:
        if not -len(self) <= clip < len(self):
            raise IndexError(f"there is no clip {clip} among {len(self)}")
        return self.rows[self.starts[:-1][clip]]

    def _describe(self, row: Any) -> dict[str, Any]:
        index, path = int(row["row"]), self._parts.paths[row["part"]]
        names = [name for name in latent_shards.LATENT_SCHEMA.names if name not in ("latents", "embeddings")]
        for batch in latent_shards.read_batches(path, names):
            if index < batch.num_rows:
                return batch.slice(index, 1).to_pylist()[0]
            index -= batch.num_rows
        raise AssertionError

    def _latents(self, row: Any) -> np.ndarray:
        """[latent_channels, frames] float16, in the file."""
        first, num_frames = int(row["latents"]), int(row["frames"])
        end = first + self.latent_channels * num_frames
        return self._parts[int(row["part"])][first:end].reshape(self.latent_channels, num_frames)

    def _embeddings(self, row: Any) -> np.ndarray:
        """[pictures, embedding_dim] float16, in the file."""
        first, num_pictures = int(row["embeddings"]), int(row["pictures"])
        end = first + self.embedding_dim * num_pictures
        return self._parts[int(row["part"])][first:end].reshape(num_pictures, self.embedding_dim)

    def _not_finite(self, row: Any) -> UserError:
        described, path = self._describe(row), self._parts.paths[row["part"]]
        return UserError(
            f"{path}: clip {described['id']} of {described['source']} (copy {described['copy']}) has latents or "
            f"embeddings that are not finite; `diffaudio validate {path.parent}` lists all such clips, delete their "
            "parts and run `diffaudio encode` again"
        )


def draw_batch(
    dataset: LatentDataset,
    clips: Sequence[int] | np.ndarray,
    *,
    num_frames: int,
    draws: BatchDraws,
    tile: bool = True,
) -> tuple[Tensor, Tensor]:
    """Draw a segment of each clip, from its recording or one of its copies, and the embedding of one of its pictures.

    Args:
        clips: indices into the dataset.
        num_frames: length of the segments, which begin anywhere.
        draws: for these clips; copies, segments and pictures depend on nothing else.
        tile: whether a shorter clip is repeated end to end, from a random frame on; otherwise zeros follow it.

    Returns:
        latents [clips, latent_channels, num_frames] and embeddings [clips, embedding_dim], float32.

    Raises:
        ValueError: there are no clips, `num_frames` is not positive, or what was drawn is not finite.
    """
    if len(clips) < 1 or num_frames < 1:
        raise UserError(f"{len(clips)} clips of {num_frames} frames are no batch; both must be at least 1")
    drawn = draws.uniform(3).numpy()
    if not dataset._draws_crops:
        drawn = np.zeros_like(drawn)
    first, end = dataset.starts[clips], dataset.starts[np.add(clips, 1)]
    rows = dataset.rows[first + _below(end - first, drawn[0])]
    spare = rows["frames"] - num_frames + 1
    starts = _below(np.where(spare > 0, spare, rows["frames"] if tile else 1), drawn[1])
    pictures = _below(rows["pictures"], drawn[2])

    latents = np.zeros((len(clips), dataset.latent_channels, num_frames), np.float16)
    embeddings = np.empty((len(clips), dataset.embedding_dim), np.float16)
    for item, (row, start, picture) in enumerate(zip(rows, starts.tolist(), pictures.tolist(), strict=True)):
        _copy_segment(dataset._latents(row), latents[item], start, tile)
        embeddings[item] = dataset._embeddings(row)[picture]
    batch = torch.from_numpy(latents).float(), torch.from_numpy(embeddings).float()
    if not (_is_finite(batch[0]) and _is_finite(batch[1])):
        finite = batch[0].isfinite().all(dim=2).all(dim=1) & batch[1].isfinite().all(dim=1)
        raise dataset._not_finite(rows[int((~finite).nonzero()[0])])
    return batch


def _copy_segment(source: np.ndarray, out: np.ndarray, start: int, tile: bool) -> None:
    """Fill `out` [channels, any] with what `source` [channels, frames] holds from `start` on, then from 0 on."""
    filled = 0
    while filled < out.shape[1]:
        count = min(source.shape[1] - start, out.shape[1] - filled)
        out[:, filled : filled + count] = source[:, start : start + count]
        filled, start = (filled + count if tile else out.shape[1]), 0


def _is_finite(values: Tensor) -> bool:
    """Whether all of some float32 values that come from float16 are finite, whose sum cannot overflow."""
    return math.isfinite(float(values.sum()))


def _below(limits: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Whole numbers below `limits`, from draws in 0..1."""
    return (limits * draws).astype(np.int64)


def _is_in_split(rows: np.ndarray, sources: list[str], held_out: float, split: str) -> np.ndarray:
    """[rows] bool"""
    if split == "train" and not held_out:
        return np.ones(len(rows), bool)
    by_source = {source: is_held_out(source, held_out) for source in set(sources)}
    out = np.array([by_source[source] for source in sources], bool)
    return ~out if split == "train" else out & (rows["copy"] == 0)


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
            shared = first.keys() & other.keys() if "half_weights" in first.keys() ^ other.keys() else {*first, *other}
            if any(first.get(name) != other.get(name) for name in shared):
                names = [f"'{made['name']}' (weights {made.get('weights', 'not named')})" for made in (other, first)]
                raise UserError(
                    f"{folder}: was encoded by {model} {names[0]}, {folders[0]} by {names[1]}; "
                    "what is trained on together must be encoded by the same"
                )
    return manifests[0]
