"""A bridge for a model in training: fitted to the pictures of its corpus, and to texts that it is given."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from diffaudio.config import Count
from diffaudio.corpus.datasets.latents import LatentDataset
from diffaudio.errors import UserError
from diffaudio.models.bridge.closed_form import Bridge, fit_bridge
from diffaudio.models.clip import Clip

__all__ = ["BridgeSettings", "make_bridge", "read_lines"]

PICTURES_FOR_THE_MEAN = 100_000  # their mean is good to a third of a percent of their spread


@dataclass
class BridgeSettings:
    """How a text's embedding is carried to where pictures' lie; see `diffaudio.models.bridge.closed_form`.

    Attributes:
        texts: what pictures may show or users may write; see `fit_bridge` for what each kind makes of them.
        texts_file: more of them, one a line.
        max_pictures: how many of the corpus' pictures `retrieval` remembers at most, drawn at random.
        temperature: of `retrieval`; None takes its default.
        familiarity_threshold: below it a prompt is far from all that was heard; None never says so.
    """

    kind: Literal["none", "shift", "retrieval"] = "retrieval"
    texts: list[str] = field(default_factory=list)
    texts_file: Path | None = None
    max_pictures: Count = 4096
    temperature: float | None = None
    familiarity_threshold: float | None = None


def make_bridge(settings: BridgeSettings, dataset: LatentDataset, clip: Clip) -> Bridge:
    """Fit the bridge to the pictures of the corpus.

    Raises:
        ValueError: a setting has no effect with this kind.
    """
    given: dict[str, Any] = {"familiarity_threshold": settings.familiarity_threshold}
    if settings.temperature is not None:
        if settings.kind != "retrieval":
            raise UserError(f"bridge.temperature has no effect with bridge.kind {settings.kind}; leave it out")
        given["temperature"] = settings.temperature
    most = {"none": 1, "shift": PICTURES_FOR_THE_MEAN, "retrieval": settings.max_pictures}[settings.kind]
    sentences = settings.texts + read_lines(settings.texts_file)
    batches = [clip.encode_text(sentences[start : start + 64]) for start in range(0, len(sentences), 64)]
    return fit_bridge(settings.kind, dataset.picture_embeddings(most), torch.cat(batches) if batches else None, **given)


def read_lines(path: Path | None) -> list[str]:
    """The lines of a text file that hold something, None being no file.

    Raises:
        ValueError: it cannot be read.
    """
    if path is None:
        return []
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"bridge.texts_file: {path} cannot be read: {error.strerror}") from None
