"""Backbone: a network that turns sounds into embeddings, by which they are compared.

Its name, the hash of its weights, its sample rate and its resampler belong to every number.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from diffaudio import safe_loading
from diffaudio.errors import UserError
from diffaudio.evaluation.backbones.published import load_tensors, read_published
from diffaudio.evaluation.report import BackboneInfo
from diffaudio.file_names import slug

__all__ = [
    "Backbone",
    "Kinds",
    "TextBackbone",
    "at_least",
    "backbone_info",
    "load_weights",
    "logit_of_mean_score",
    "metric_part",
    "of_equal_length",
    "sha256",
]


@dataclass(frozen=True)
class Kinds:
    """Which classes of a classifier stand for the kinds of sound that labels name.

    Attributes:
        classes: by label, the numbers of the classes that are right for it.
        ignored: classes too generic to count for or against a sound, such as "Animal"; left out of the ranking
            except where they are right.
    """

    classes: dict[str, list[int]]
    ignored: list[int]


class Backbone(Protocol):
    """Sounds in, embeddings out.

    Attributes:
        name: in lower case with underscores; it becomes part of the metrics' names.
        checkpoint: sha256 of the weights file.
        sample_rate: of the waveforms it takes, in Hz.
        resampler: how sounds of other rates are converted.
        embedding_dim: size of an embedding.
        labels: the names of its classes; None where they are not known, or it is no classifier.
        is_multilabel: whether a sound can have several of its classes, so that a score is a logit's sigmoid.
        kinds: which classes stand for which labels, where the classes are not the labels themselves.
    """

    name: str
    checkpoint: str
    sample_rate: int
    resampler: str
    embedding_dim: int
    labels: list[str] | None
    is_multilabel: bool
    kinds: Kinds | None

    def embed(self, waveforms: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """Embed sounds of any length; no sound's numbers depend on the others.

        Args:
            waveforms: each [samples], mono, at `sample_rate`.

        Returns:
            For each sound its embeddings [windows, embedding_dim]: one window for a network that takes sounds
            whole, several for one that takes them piece by piece. And logits [sounds, classes], where it classifies.
        """
        ...


@runtime_checkable
class TextBackbone(Protocol):
    """A backbone that embeds texts in the same space."""

    def embed_text(self, texts: list[str]) -> Tensor:
        """Embeddings [len(texts), embedding_dim]."""
        ...


def backbone_info(backbone: Backbone) -> BackboneInfo:
    """A backbone as a report describes it."""
    return BackboneInfo(
        name=backbone.name,
        checkpoint=backbone.checkpoint,
        sample_rate=backbone.sample_rate,
        resampler=backbone.resampler,
        embedding_dim=backbone.embedding_dim,
    )


def sha256(path: Path) -> str:
    """Hash of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def metric_part(name: str) -> str:
    """A name as part of a metric's name: lower-case letters and digits, joined by underscores."""
    return slug(name, separator="_", max_length=100)


def load_weights(network: nn.Module, path: Path, ignored: Sequence[str] = ()) -> None:
    """Load a file of weights into a network, and set it to evaluation.

    Args:
        path: safetensors, or a file as published; see `published.read_published`.
        ignored: prefixes of keys in the file that are not needed, such as a fixed front end's.

    Raises:
        ValueError: the file is missing or damaged, or holds other weights than the network's.
    """
    if not path.is_file():
        raise UserError(f"{path}: there are no weights; put the published file there, or safetensors with its keys")
    if path.suffix == ".safetensors":
        safe_loading.load_weights(network, safe_loading.Weights.of(path.parent, path.stem), ignored)
    else:
        load_tensors(network, read_published(path), path, ignored)
    network.eval().requires_grad_(False)


def of_equal_length(waveforms: list[Tensor], batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
    """Batches [at most batch_size, samples] of sounds of one length, with their places in the list."""
    places: dict[int, list[int]] = defaultdict(list)
    for index, waveform in enumerate(waveforms):
        places[len(waveform)].append(index)
    for indices in places.values():
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            yield batch, torch.stack([waveforms[index] for index in batch])


def logit_of_mean_score(logits: Tensor) -> Tensor:
    """[patches, classes] -> the logit of the mean score [classes], which no rounding of a score cuts off."""
    count = math.log(len(logits))
    yes, no = logsigmoid(logits.double()).logsumexp(dim=0), logsigmoid(-logits.double()).logsumexp(dim=0)
    return ((yes - count) - (no - count)).float()


def at_least(waveform: Tensor, samples: int) -> Tensor:
    """A waveform [samples] with silence after it, where it is shorter."""
    return nn.functional.pad(waveform, (0, max(0, samples - len(waveform))))
