"""The bundled tagger, or another of its kind, as a backbone."""

from pathlib import Path

import torch
from torch import Tensor

from diffaudio.evaluation.backbones.base import Kinds, sha256
from diffaudio.media.audio import RESAMPLER
from diffaudio.models.tagger import load_tagger

__all__ = ["TaggerBackbone"]

WEIGHTS = "diffusion_pytorch_model.safetensors"


class TaggerBackbone:
    """A `Backbone` with one embedding a sound, and logits."""

    resampler = RESAMPLER
    is_multilabel = False
    kinds: Kinds | None = None

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        self.tagger = load_tagger(folder)
        self.tagger.to(device)  # pyright: ignore[reportArgumentType]
        self.name = self.tagger.name
        self.checkpoint = sha256(folder / WEIGHTS)
        self.sample_rate = self.tagger.sample_rate
        self.embedding_dim = self.tagger.embedding_dim
        self.labels: list[str] | None = self.tagger.labels

    def embed(self, waveforms: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """See `Backbone`."""
        embeddings, logits = self.tagger.tag(waveforms)
        return list(embeddings[:, None]), logits
