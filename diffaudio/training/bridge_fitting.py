"""A bridge for a model in training: fitted to the pictures of its corpus, and to texts that it is given."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from diffaudio.config import Count, Share
from diffaudio.corpus.datasets.latents import MAX_PICTURES_FOR_STATISTICS, LatentDataset
from diffaudio.errors import UserError
from diffaudio.models.bridge.bridges import Bridge, fit_bridge
from diffaudio.models.bridge.familiarity import divide_texts, fit_threshold
from diffaudio.models.clip import Clip

__all__ = ["BridgeSettings", "make_bridge", "read_lines"]

SAME_TEXT = 0.95  # similarity above which a background text says what a known one says

Kind = Literal["none", "shift", "spread", "noise", "retrieval"]


@dataclass
class BridgeSettings:
    """How a text's embedding is carried to where pictures' lie; see `diffaudio.models.bridge.bridges`.

    Attributes:
        texts: what pictures may show or users may write; see `fit_bridge` for what each kind makes of them.
        texts_file: more of them, one a line.
        background_file: texts about sounds and things of all kinds, one a line; with them a prompt is familiar if it is
            closer to what the corpus shows than to these.
        known_file: texts about what the corpus holds, one a line, for the same purpose; None lets CLIP find them among
            the texts above, by the corpus' pictures.
        alternatives: further kinds to fit, saved in bridge/NAME of the model folder.
        max_pictures: how many of the corpus' pictures `retrieval` remembers at most, drawn at random.
        temperature: of `retrieval`; None takes its default.
        noise_level: of `noise`, 0 (none) to 1; None takes its default.
        familiarity_threshold: a prompt below it is warned about; None never warns.
        familiarity_share: sets the threshold so that this share of the known texts would be warned about if they were
            not stored; needs a background_file.
    """

    kind: Kind = "retrieval"
    texts: list[str] = field(default_factory=list)
    texts_file: Path | None = None
    background_file: Path | None = None
    known_file: Path | None = None
    alternatives: list[Kind] = field(default_factory=list)
    max_pictures: Count = 4096
    temperature: float | None = None
    noise_level: Share | None = None
    familiarity_threshold: float | None = None
    familiarity_share: Share | None = None


def make_bridge(settings: BridgeSettings, dataset: LatentDataset, clip: Clip) -> Bridge:
    """Fit the bridge to the pictures of the corpus.

    Raises:
        ValueError: a setting has no effect with this kind.
    """
    kinds = [settings.kind, *settings.alternatives]
    for name, value, kind in (
        ("temperature", settings.temperature, "retrieval"),
        ("noise_level", settings.noise_level, "noise"),
    ):
        if value is not None and kind not in kinds:
            raise UserError(f"bridge.{name} has no effect with bridge.kind {settings.kind}; leave it out")
    images = dataset.picture_embeddings(MAX_PICTURES_FOR_STATISTICS)
    texts = _encode(clip, settings.texts + read_lines(settings.texts_file))
    vocabulary, threshold = _make_vocabulary(settings, images, texts, clip)
    bridges = {}
    for kind in dict.fromkeys(kinds):
        own: dict[str, Any] = {"clip_name": clip.name}
        if kind == settings.kind:  # whichever is chosen, the model's own gives the warning
            own |= {"vocabulary": vocabulary, "familiarity_threshold": threshold}
        if kind == "retrieval" and settings.temperature is not None:
            own["temperature"] = settings.temperature
        if kind == "noise" and settings.noise_level is not None:
            own["level"] = settings.noise_level
        pictures = dataset.picture_embeddings(settings.max_pictures) if kind == "retrieval" else images
        bridges[kind] = fit_bridge(kind, pictures, texts, **own)
    bridge = bridges.pop(settings.kind)
    bridge.alternatives.update(bridges)
    return bridge


def _make_vocabulary(
    settings: BridgeSettings, images: Tensor, texts: Tensor | None, clip: Clip
) -> tuple[tuple[Tensor, Tensor] | None, float | None]:
    """Known and background texts, and the familiarity below which a prompt is warned about.

    Raises:
        ValueError: a setting has no effect, or texts are missing.
    """
    if settings.familiarity_share is not None and settings.familiarity_threshold is not None:
        raise UserError("give one of bridge.familiarity_share and bridge.familiarity_threshold, not both")
    background = _encode(clip, read_lines(settings.background_file, "bridge.background_file"))
    known = _encode(clip, read_lines(settings.known_file, "bridge.known_file"))
    if background is None:
        for name in ("known_file", "familiarity_share"):
            if getattr(settings, name) is not None:
                raise UserError(f"bridge.{name} has no effect without bridge.background_file; give it too")
        return None, settings.familiarity_threshold
    if known is not None:
        background = background[(background @ known.T).amax(dim=1) < SAME_TEXT]
    elif texts is not None:
        known, background = divide_texts(images, texts, background)
    else:
        raise UserError("bridge.background_file needs texts that say what the corpus shows; give bridge.known_file")
    threshold = settings.familiarity_threshold
    if settings.familiarity_share is not None:
        threshold = fit_threshold(known, background, settings.familiarity_share)
    return (known, background), threshold


def _encode(clip: Clip, texts: list[str]) -> Tensor | None:
    batches = [clip.encode_prompts(texts[start : start + 64]) for start in range(0, len(texts), 64)]
    return torch.cat(batches) if batches else None


def read_lines(path: Path | None, setting: str = "bridge.texts_file") -> list[str]:
    """The lines of a text file that hold something, None being no file.

    Raises:
        ValueError: it cannot be read.
    """
    if path is None:
        return []
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{setting}: {path} cannot be read: {error.strerror}") from None
