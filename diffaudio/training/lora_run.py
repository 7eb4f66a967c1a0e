"""A run that trains an adapter in place of a U-Net: what it begins with, and what it saves."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffaudio.adapters import describe_model, remember
from diffaudio.corpus.datasets.latents import LatentDataset
from diffaudio.errors import UserError
from diffaudio.models.bridge.bridges import RetrievalBridge, fit_bridge
from diffaudio.models.lora import Conditions
from diffaudio.pipeline import DiffAudioPipeline
from diffaudio.training.batches import Batch
from diffaudio.training.lora import LoraSettings, add_lora, save_lora
from diffaudio.training.lora_preservation import PreservedSounds, generate_preserved

__all__ = ["LoraRun", "begin_lora"]

MAX_PICTURES = 1024


@dataclass(frozen=True)
class LoraRun:
    """What is saved with the adapter, and what it must not change.

    Attributes:
        model: what identifies the model.
        conditions: of the new sounds; None where no texts were given.
        words: what the bridge makes of the texts of the new sounds, [texts, embedding_dim]; None where none were given.
        words_share: of the new sounds that are conditioned on them.
        preserved: None where the adapter may change everything.
    """

    model: dict[str, Any]
    conditions: Conditions | None
    words: Tensor | None
    words_share: float
    preserved: PreservedSounds | None

    def put_words_into(self, batch: Batch) -> Batch:
        """The batch with some pictures replaced by words; which is a function of the batch's draws."""
        if self.words is None or not self.words_share:
            return batch
        generator, size = batch.draws.generator("words"), len(batch.embeddings)
        chosen = torch.randint(len(self.words), (size,), generator=generator)
        is_replaced = (torch.rand(size, generator=generator) < self.words_share).to(batch.embeddings.device)
        dim, embeddings = self.words.shape[1], batch.embeddings.clone()
        words = self.words[chosen].to(embeddings)
        embeddings[:, :dim] = torch.where(is_replaced[:, None], words, embeddings[:, :dim])
        embeddings[:, dim:] = torch.where(is_replaced[:, None], 0.0, embeddings[:, dim:])  # noise level, where told
        return replace(batch, embeddings=embeddings)

    def save(self, folder: Path, pipe: DiffAudioPipeline) -> None:
        """Write the adapter of the pipeline's U-Net."""
        save_lora(folder, pipe.unet, trained_on=self.model, conditions=self.conditions)


def begin_lora(
    pipe: DiffAudioPipeline,
    settings: LoraSettings,
    dataset: LatentDataset,
    texts: list[str],
    *,
    num_frames: int,
    seed: int,
) -> LoraRun:
    """Add an adapter to the pipeline's U-Net, once it has generated what is to be preserved.

    Args:
        pipe: the model to adapt.
        dataset: the new sounds.
        texts: that describe them, by which prompts will find them.
        num_frames: of a training crop.
    """
    model = describe_model(pipe.unet, pipe.autoencoder, pipe.clip)
    preserved = generate_preserved(
        pipe, texts, number=settings.preserve_sounds, share=settings.preserve, num_frames=num_frames, seed=seed
    )
    conditions = _conditions(pipe, dataset, texts)
    if conditions is not None:
        remember(pipe.bridge, conditions)
    words = pipe.encode_prompt(texts).cpu() if texts else None
    add_lora(pipe.unet, settings, seed)
    return LoraRun(model, conditions, words, settings.words, preserved)


@torch.no_grad()
def _conditions(pipe: DiffAudioPipeline, dataset: LatentDataset, texts: list[str]) -> Conditions | None:
    """The new pictures as a retrieval bridge remembers them."""
    if not texts:
        if isinstance(pipe.bridge, RetrievalBridge):
            raise UserError(
                "lora needs words by which prompts find the new sounds; give bridge.texts or bridge.texts_file"
            )
        return None
    described = pipe.clip.encode_text(texts)
    bridge: Any = fit_bridge("retrieval", dataset.picture_embeddings(MAX_PICTURES).to(described), described)
    return Conditions(bridge.memory.detach(), bridge.memory_keys.detach(), described)
