"""What a backbone is: a network that turns sounds into embeddings to compare them by.

Its name, the hash of its weights, its sample rate and how sounds are brought there belong to every number.
"""

import hashlib
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from diffaudio.metrics.results import BackboneCard

__all__ = ["Backbone", "TextBackbone", "card", "sha256"]


class Backbone(Protocol):
    """Sounds in, embeddings out.

    Attributes:
        name: in lower case with underscores; it becomes part of the metrics' names.
        checkpoint: sha256 of the weights file.
        sample_rate: of the waveforms it takes, in Hz.
        resampler: how sounds of other rates are brought there.
        embedding_dim: size of an embedding.
        labels: its classes; None where it is no classifier.
    """

    name: str
    checkpoint: str
    sample_rate: int
    resampler: str
    embedding_dim: int
    labels: list[str] | None

    def hear(self, waveforms: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """Embed sounds of any length; no sound's numbers depend on the others.

        Args:
            waveforms: each [samples], mono, at `sample_rate`.

        Returns:
            For each sound its embeddings [windows, embedding_dim]: one window for a network that takes sounds
            whole, several for one that hears them piece by piece. And logits [sounds, classes], where it classifies.
        """
        ...


@runtime_checkable
class TextBackbone(Protocol):
    """A backbone whose space has texts in it too."""

    def read(self, texts: list[str]) -> Tensor:
        """Embeddings [len(texts), embedding_dim]."""
        ...


def card(backbone: Backbone) -> BackboneCard:
    """What a report says of a backbone."""
    return BackboneCard(
        name=backbone.name,
        checkpoint=backbone.checkpoint,
        sample_rate=backbone.sample_rate,
        resampler=backbone.resampler,
        embedding_dim=backbone.embedding_dim,
        classes=len(backbone.labels or ()),
    )


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
