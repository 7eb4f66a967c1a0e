"""The diffusion prior: samples an image embedding given a text embedding.

    z_0  standardised image embedding          [batch, dim], mean 0 and std 1 in each dimension
    z_n  the same with noise of level n        [batch, dim]
    t    text embedding                        [batch, dim], unit norm

As in unCLIP (Ramesh et al. 2022, arXiv:2204.06125, section 2.2) a transformer predicts z_0 itself, and the loss is
E ||f(z_n, n, t) - z_0||^2; CLIPSonic-PD uses it as its bridge. Transformer and scheduler are diffusers'
(`PriorTransformer`, `UnCLIPScheduler`); the transformer reads one token of text, the text's embedding, since
every CLIP provides that.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import PriorTransformer, UnCLIPScheduler
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from diffaudio.models.bridge.bridges import Bridge
from diffaudio.models.bridge.noise import fixed_noise

__all__ = ["PriorBridge", "prior_loss", "sample_prior"]

TRAINING_LEVELS = 1000


class PriorBridge(Bridge):
    """Text embeddings -> image embeddings sampled by the prior, with the same initial noise for every text.

    Args:
        num_layers, num_attention_heads, attention_head_dim: of diffusers' `PriorTransformer`.
        steps: number of sampling steps.
        guidance_scale: classifier-free guidance; 1 is none.
        seed: seed of the initial noise.
    """

    @register_to_config
    def __init__(
        self, embedding_dim: int, familiarity_threshold: float | None = None, known_size: int = 0,
        background_size: int = 0, clip_name: str | None = None, num_layers: int = 4, num_attention_heads: int = 6,
        attention_head_dim: int = 64, steps: int = 25, guidance_scale: float = 1.0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self._make_vocabulary(known_size, background_size, embedding_dim)
        self.transformer = PriorTransformer(
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            num_layers=num_layers,
            embedding_dim=embedding_dim,
            num_embeddings=1,
            additional_embeddings=4,  # the text, the noise level, z_n and the token that predicts
        )

    @property
    def image_mean(self) -> Tensor:
        return self.transformer.clip_mean

    @property
    def image_std(self) -> Tensor:
        return self.transformer.clip_std

    def predict(self, noisy: Tensor, level: Tensor | int, text_embeddings: Tensor) -> Tensor:
        """z_0 predicted by the transformer from z_n, [batch, dim]; a zero text embedding is the null condition."""
        # sqrt(dim): the values of a unit vector are small, those of z are about 1
        text = text_embeddings * text_embeddings.shape[-1] ** 0.5
        return self.transformer(
            noisy, timestep=level, proj_embedding=text, encoder_hidden_states=text[:, None]
        ).predicted_image_embedding

    @torch.no_grad()
    def forward(self, text_embeddings: Tensor) -> Tensor:
        text, scale = text_embeddings.float(), self.config["guidance_scale"]

        def guided(latents: Tensor, level: Tensor) -> Tensor:
            predicted = self.predict(latents, level, text)
            if scale == 1:
                return predicted
            null = self.predict(latents, level, torch.zeros_like(text))
            return null + scale * (predicted - null)

        noise = fixed_noise(self.config["seed"], text)
        latents = sample_prior(guided, noise, prior_scheduler(), self.config["steps"])
        return F.normalize(self.image_mean + self.image_std * latents, dim=-1).to(text_embeddings)


def prior_scheduler() -> UnCLIPScheduler:
    """unCLIP's noise schedule, with the image embedding itself as the prediction target."""
    return UnCLIPScheduler(num_train_timesteps=TRAINING_LEVELS, prediction_type="sample", clip_sample=False)


def sample_prior(
    predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, scheduler: UnCLIPScheduler, steps: int
) -> Tensor:
    """Sample z_0 from noise in deterministic steps (DDIM, Song et al. 2021, arXiv:2010.02502, eq. 12).

    Args:
        predict: (z_n [batch, dim], n) -> predicted z_0 [batch, dim].
        noise: [batch, dim].
        scheduler: gives the noise levels, and the range that predictions are clipped to.
        steps: number of noise levels, at least 2.
    """
    settings: Any = scheduler.config
    scheduler.set_timesteps(steps)
    latents = noise
    for index, level in enumerate(scheduler.timesteps):
        predicted = predict(latents, level)
        if settings["clip_sample"]:
            predicted = predicted.clamp(-settings["clip_sample_range"], settings["clip_sample_range"])
        latents = _towards(predicted, latents, scheduler, index)
    return latents


def _towards(predicted: Tensor, noisy: Tensor, scheduler: Any, index: int) -> Tensor:
    """One step from a level to the next."""
    levels = scheduler.timesteps
    a = scheduler.alphas_cumprod[levels[index]]
    noise = (noisy - a.sqrt() * predicted) / (1 - a).sqrt()
    if index + 1 == len(levels):
        return predicted
    b = scheduler.alphas_cumprod[levels[index + 1]]
    return b.sqrt() * predicted + (1 - b).sqrt() * noise


def prior_loss(
    prior: Any, bridge: PriorBridge, text_embeddings: Tensor, image_embeddings: Tensor, generator: torch.Generator,
    *, null_share: float = 0.1,
) -> Tensor:  # fmt: skip
    """The mean squared error of z_0, at noise levels drawn uniformly.

    Args:
        prior: `bridge.predict`, or a wrapper of it that several processes share.
        text_embeddings, image_embeddings: [batch, dim], pairs of unit norm.
        generator: on the CPU; draws levels, noise, and which texts are left out.
        null_share: fraction of texts replaced by the null condition, for guidance.
    """
    images = (image_embeddings - bridge.image_mean) / bridge.image_std
    batch = len(images)
    level = torch.randint(TRAINING_LEVELS, (batch,), generator=generator)
    noise = torch.randn(images.shape, generator=generator).to(images)
    left_out = torch.rand(batch, 1, generator=generator) < null_share
    a = prior_scheduler().alphas_cumprod[level][:, None].to(images)
    noisy = a.sqrt() * images + (1 - a).sqrt() * noise
    texts = text_embeddings.masked_fill(left_out.to(text_embeddings.device), 0)
    return F.mse_loss(prior(noisy, level.to(images.device), texts), images)
