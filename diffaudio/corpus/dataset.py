"""An encoded corpus for training, and the batches drawn from it.

A batch is a function of its generator alone: give one that is made from (seed, process, step), and a run that is
stopped and started again sees what it would have seen.
"""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

from diffaudio.corpus import encode, store

__all__ = ["LatentDataset", "draw_batch"]


class LatentDataset:
    """The clips of an encoded corpus, in memory in half precision (2.3 GB for 100 hours at 3,200 values a second).

    `dataset[i]` is {"id": str, "latents": [latent_channels, frames] float32, "embeddings": [pictures, dim] float32}.

    Attributes:
        autoencoder: what the manifest says of the autoencoder: name, sample_rate, audio_channels, latent_channels,
            latent_rate.
        clip: what it says of CLIP: name, embedding_dim.
        latent_rate: latent frames a second.
        latent_channels: width of the latents.
        embedding_dim: size of an embedding.

    Raises:
        ValueError: `folder` is no finished encoded corpus, holds no clips, or a damaged one.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        manifest = store.read_manifest(folder, encode.FORMAT, encode.VERSION)
        if not manifest["finished"]:
            raise ValueError(f"{folder}: is not finished; run `diffaudio encode` on it again first")
        self.autoencoder: dict[str, Any] = manifest["autoencoder"]
        self.clip: dict[str, Any] = manifest["clip"]
        self.latent_rate: float = self.autoencoder["latent_rate"]
        self.latent_channels: int = self.autoencoder["latent_channels"]
        self.embedding_dim: int = self.clip["embedding_dim"]
        self._ids: list[str] = []
        self._latents: list[Tensor] = []
        self._embeddings: list[Tensor] = []
        for part in store.part_files(folder, "latents"):
            self._read(part)
        if not self._ids:
            raise ValueError(f"{folder}: holds no clips; see dropped.csv of the corpus it was encoded from")

    def _read(self, part: Path) -> None:
        table = pq.read_table(part, columns=["id", "num_latent_frames", "latents", "embeddings"])
        if table.num_rows == 0:
            return
        pictures = table["embeddings"].combine_chunks()
        num_pictures = pictures.value_lengths().to_pylist()
        latents = torch.from_numpy(table["latents"].combine_chunks().flatten().to_numpy(zero_copy_only=False).copy())
        embeddings = torch.from_numpy(pictures.flatten().flatten().to_numpy(zero_copy_only=False).copy())
        num_values = [frames * self.latent_channels for frames in table["num_latent_frames"].to_pylist()]
        whole = sum(num_values) == latents.numel() and sum(num_pictures) * self.embedding_dim == embeddings.numel()
        if not whole or min(num_values) == 0 or min(num_pictures) == 0:
            raise ValueError(f"{part}: sizes do not agree with manifest.json; encode the corpus again")
        self._ids += table["id"].to_pylist()
        self._latents += [latent.view(self.latent_channels, -1) for latent in latents.split(num_values)]
        self._embeddings += embeddings.view(-1, self.embedding_dim).split(num_pictures)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "id": self._ids[index],
            "latents": self._latents[index].float(),
            "embeddings": self._embeddings[index].float(),
        }

    def all_embeddings(self) -> Tensor:
        """[all pictures of all clips, embedding_dim]"""
        return torch.cat(self._embeddings).float()


def draw_batch(
    dataset: LatentDataset, *, batch_size: int, num_frames: int, generator: torch.Generator, tile: bool = True
) -> tuple[Tensor, Tensor]:
    """Draw clips with replacement, and of each a stretch of its latents with the embedding of one of its pictures.

    Args:
        num_frames: length of the stretch, which begins anywhere in the clip.
        generator: a CPU generator; the batch depends on nothing else.
        tile: whether a shorter clip is repeated end to end, beginning anywhere; otherwise it is followed by zeros.

    Returns:
        latents [batch_size, latent_channels, num_frames] and embeddings [batch_size, embedding_dim].

    Raises:
        ValueError: `batch_size` or `num_frames` is not positive.
    """
    if batch_size < 1 or num_frames < 1:
        raise ValueError(f"batch_size is {batch_size} and num_frames is {num_frames}; both must be at least 1")

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    latents, embeddings = [], []
    for _ in range(batch_size):
        item = dataset[below(len(dataset))]
        latents.append(_stretch(item["latents"], num_frames, below, tile))
        embeddings.append(item["embeddings"][below(len(item["embeddings"]))])
    return torch.stack(latents), torch.stack(embeddings)


def _stretch(latents: Tensor, num_frames: int, below: Any, tile: bool) -> Tensor:
    """[channels, any] -> [channels, num_frames]"""
    available = latents.shape[1]
    if available >= num_frames:
        start = below(available - num_frames + 1)
        return latents[:, start : start + num_frames]
    if tile:
        return latents[:, (below(available) + torch.arange(num_frames)) % available]
    return torch.nn.functional.pad(latents, (0, num_frames - available))
