"""Batches of the diffusion training, drawn by a thread while the step before is computed."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from diffaudio.corpus.datasets.latents import LatentDataset, draw_batch
from diffaudio.seeding import BatchDraws
from diffaudio.training.conditions import noisy_embeddings

__all__ = ["Batch", "draw_ahead", "draw_noisy_batch"]

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """What the U-Net is trained on at a step, or at one of its micro-batches.

    Attributes:
        latents: [clips, channels, frames].
        embeddings: unit norm [clips, embedding_dim], or with their noise levels [clips, embedding_dim + 1].
        noise: [clips, channels, frames].
        draws: for what else is drawn for these clips.
    """

    latents: Tensor
    embeddings: Tensor
    noise: Tensor
    draws: BatchDraws

    def to(self, device: torch.device) -> "Batch":
        """The same on a device, without waiting for the copy where the memory is pinned."""
        return self._each(lambda values: values.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The same in memory that a GPU reads by itself."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(change(self.latents), change(self.embeddings), change(self.noise), self.draws)


def draw_noisy_batch(
    dataset: LatentDataset,
    clips: np.ndarray,
    draws: BatchDraws,
    *,
    num_frames: int,
    embedding_noise: float,
    max_noise_level: float = 0.0,
) -> Batch:
    """Draw segments, pictures and noise for some clips.

    Args:
        draws: for these clips; the result depends on nothing else.
        num_frames: length of the segments.
        embedding_noise, max_noise_level: see `noisy_embeddings`.

    Raises:
        ValueError: what was drawn is not finite.
    """
    latents, embeddings = draw_batch(dataset, clips, num_frames=num_frames, draws=draws)
    embeddings = noisy_embeddings(dataset, embeddings, draws, norm=embedding_noise, max_level=max_noise_level)
    return Batch(latents, embeddings, draws.normal(*latents.shape[1:]), draws)


def draw_ahead(draw: Callable[[int], T], steps: Iterable[int], *, ahead: int = 2) -> Generator[T]:
    """`draw(step)` of each step in order, `ahead` of them drawn by a thread before they are asked for.

    An error of `draw` is raised where its result would have come.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="draw_ahead")
    pending: deque[Future[T]] = deque()
    try:
        for step in steps:
            pending.append(pool.submit(draw, step))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
