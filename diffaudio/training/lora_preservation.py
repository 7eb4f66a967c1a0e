"""Keeping an adapted U-Net at what it predicted before, for everything but the new sounds.

A few sounds of the model itself, generated from conditions that it knows, stand in for a part of each batch. There the
target is the prediction of the model without the adapter, for a kept condition as for a dropped one (distillation of
the prior, as DreamBooth's preservation loss: Ruiz et al. 2022, arXiv:2208.12242, eq. 2, with less variance than
training on what was generated). The new sounds' own conditions are then never dropped, so that the unconditional
prediction, which guidance subtracts for all sounds, stays as it was.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from diffaudio.diffusion.loss import DiffusionLoss
from diffaudio.errors import UserError
from diffaudio.models.bridge.bridges import RetrievalBridge
from diffaudio.pipeline import DiffAudioPipeline
from diffaudio.seeding import seeded_generator
from diffaudio.training.batches import Batch
from diffaudio.training.lora import without_lora

__all__ = ["PreservedSounds", "generate_preserved", "preserving_loss"]

STEPS, SAMPLER, BATCH_SIZE = 12, "dpm++2m", 16


@dataclass(frozen=True)
class PreservedSounds:
    """Sounds of the model before it was adapted.

    Attributes:
        latents: [sounds, channels, frames].
        embeddings: what they were generated from, [sounds, embedding_dim].
        share: of each batch that they take.
    """

    latents: Tensor
    embeddings: Tensor
    share: float

    def count(self, batch_size: int) -> int:
        """How many items of a batch they take; at least one is left for the new sounds."""
        return min(round(self.share * batch_size), batch_size - 1)

    def put_into(self, batch: Batch) -> Batch:
        """The batch with its first items replaced; which sounds is a function of the batch's draws."""
        count = self.count(len(batch.latents))
        if not count:
            return batch
        chosen = torch.randint(len(self.latents), (count,), generator=batch.draws.generator("preserved sounds"))
        latents, embeddings = batch.latents.clone(), batch.embeddings.clone()
        latents[:count] = self.latents[chosen].to(latents)
        dim = self.embeddings.shape[1]
        embeddings[:count, :dim] = self.embeddings[chosen].to(embeddings)
        embeddings[:count, dim:] = 0.0  # a noise level, where the U-Net is told one
        return replace(batch, latents=latents, embeddings=embeddings)


@torch.no_grad()
def generate_preserved(
    pipe: DiffAudioPipeline, texts: list[str], *, number: int, share: float, num_frames: int, seed: int
) -> PreservedSounds | None:
    """Generate sounds with a model that is about to be adapted, unguided.

    Args:
        texts: conditions to draw from where the bridge does not remember pictures.
        num_frames: of the latents.

    Returns:
        None where `share` is 0.

    Raises:
        UserError: there is nothing to draw conditions from.
    """
    if not share:
        return None
    known = pipe.bridge.memory if isinstance(pipe.bridge, RetrievalBridge) else None
    if known is None and not texts:
        raise UserError(
            "lora.preserve needs conditions of other sounds, and this model's bridge remembers no pictures; "
            "give some texts as bridge.texts, or set lora.preserve 0"
        )
    known = pipe.encode_prompt(texts) if known is None else known.detach()
    chosen = torch.randint(len(known), (number,), generator=seeded_generator(seed, "preserved conditions"))
    embeddings = known[chosen.to(known.device)].float()
    latents = []
    for start in range(0, number, BATCH_SIZE):
        part = embeddings[start : start + BATCH_SIZE]
        output: Any = pipe(
            prompt_embeds=part,
            num_inference_steps=STEPS,
            guidance_scale=1.0,
            sampler=SAMPLER,
            audio_length_in_s=num_frames / pipe.autoencoder.latent_rate,
            generator=[seeded_generator(seed, "preserved", start + index) for index in range(len(part))],
            output_type="latent",
        )
        latents.append(output.audios.cpu())
    return PreservedSounds(torch.cat(latents), embeddings.cpu(), share)


def preserving_loss(
    loss_of: Callable[[Callable[..., Tensor]], DiffusionLoss], network: nn.Module, num_preserved: int
) -> DiffusionLoss:
    """The loss of a batch whose first items are preserved sounds.

    Args:
        loss_of: computes the loss of the batch for a network, see `diffusion_loss`.
        network: the adapted U-Net.
    """
    predictions: list[tuple[Tensor, Tensor]] = []

    def network_and_teacher(latents: Tensor, timestep: Tensor, embedding: Tensor, mask: Tensor) -> Tensor:
        mask = mask.clone()
        mask[num_preserved:] = True
        with torch.no_grad(), without_lora(network), _evaluating(network):
            preserved = (x[:num_preserved] for x in (latents, timestep, embedding, mask))
            teacher = network(*preserved)
        prediction = network(latents, timestep, embedding, mask)
        predictions.append((prediction[:num_preserved], teacher))
        return prediction

    loss = loss_of(network_and_teacher)
    prediction, teacher = predictions[0]
    preserved = (prediction.float() - teacher.float()).square().mean(dim=(1, 2))
    items = torch.cat([preserved, loss.items[num_preserved:]])
    return DiffusionLoss(items, loss.levels, items.mean())


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """While the block runs, a network's dropout is off."""
    before = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(before)
