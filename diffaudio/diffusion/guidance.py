"""Guidance: combining several U-Net predictions into one.

w    guidance scale; 0 unconditional, 1 conditional, above 1 extrapolated
D_c  prediction with the embedding                                   [batch, channels, frames]
D_0  prediction to steer away from: with the null embedding or a     [batch, channels, frames]
     negative embedding, or a weaker model's with the embedding
x    clean latents by a prediction: x_c by D_c, x_0 by D_0           [batch, channels, frames]
s    noise level sigma / (alpha + sigma), from 1 (noise) to 0 (clean)

classifier-free    D_0 + w (D_c - D_0): Ho & Salimans 2022 (arXiv:2207.12598), eq. 6, whose w is ours minus 1.
                   Every prediction type is linear in the score at a given noise level, so it applies to all
autoguidance       the same with a weaker model's D_0: Karras et al. 2024 (arXiv:2406.02507), eq. 3
rescale            the result, rescaled to the standard deviation of D_c: Lin et al. 2023 (arXiv:2305.08891), sec. 3.4
interval           w only within a range of noise levels, else 1: Kynkäänniemi et al. 2024 (arXiv:2404.07724), sec. 3
schedule           w varies with the noise level: Wang et al. 2024 (arXiv:2404.13040)
projected (APG)    x_c - x_0 without its component parallel to x_c: Sadat et al. 2024 (arXiv:2410.02416)
CFG-Zero*          D_0 scaled to the best fit of D_c, and zero-init, which skips the first steps: Fan et al. 2025
                   (arXiv:2503.18886)
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffaudio.diffusion.loss import clean_and_noise, prediction_of
from diffaudio.diffusion.settings import PLAIN_CFG, Guidance, Projection
from diffaudio.errors import UserError

__all__ = ["Guide"]


class Guide:
    """Guided predictions for one run of a sampler; keeps APG's running difference.

    Args:
        unet: called as `unet(latents, timestep, embedding, condition_mask)`.
        embedding: [batch, embedding_dim].
        scale: 0 or more.
        predicts: the prediction type, as `prediction_type` returns it.
        negative_embedding: [batch, embedding_dim], to steer away from; None is the null embedding.
        weak_unet: a weaker model of the same kind, to steer away from instead.

    Raises:
        ValueError: the scale is out of range, or an option would have no effect or contradicts another.
    """

    def __init__(
        self,
        unet: Callable[..., Tensor],
        embedding: Tensor,
        *,
        scale: float,
        predicts: str,
        options: Guidance = PLAIN_CFG,
        negative_embedding: Tensor | None = None,
        weak_unet: Callable[..., Tensor] | None = None,
    ) -> None:
        _check(options, scale, predicts, negative=negative_embedding is not None, weak=weak_unet is not None)
        self.unet, self.embedding, self.scale, self.predicts = unet, embedding, scale, predicts
        self.options, self.negative_embedding, self.weak_unet = options, negative_embedding, weak_unet
        self._difference, self._before, self._level = 0.0, 0.0, math.inf

    def __call__(self, z: Tensor, timestep: Tensor | float, alpha: float, sigma: float) -> Tensor:
        """Guided prediction: one U-Net evaluation per item where that suffices, otherwise two.

        Args:
            z: [batch, channels, frames], alpha x + sigma e.
            timestep: the same for all items.

        Returns:
            [batch, channels, frames].
        """
        options = self.options
        level = round(sigma / (alpha + sigma), 6)  # so that rounding cannot decide the side of a bound
        scale = options.scale_at(level, self.scale)
        if scale == 1:
            return self.unet(z, timestep, self.embedding)
        if scale == 0:
            return self.unet(z, timestep)
        conditional, other = self._both(z, timestep)
        if options.projection is not None:
            x_c, e_c = clean_and_noise(conditional, z, alpha, sigma, self.predicts)
            x_0, _ = clean_and_noise(other, z, alpha, sigma, self.predicts)
            x = x_c + (scale - 1) * self._projected(x_c - x_0, x_c, level, options.projection)
            e = e_c - (x - x_c) * (alpha / sigma)  # z stays alpha x + sigma e
            guided = prediction_of(x, e, alpha, sigma, self.predicts)
        else:
            if options.zero_star:
                other = other * _best_scale(conditional, other)
            guided = other + scale * (conditional - other)
        return guided if options.rescale == 0 else _rescaled(guided, conditional, options.rescale)

    def _both(self, z: Tensor, timestep: Tensor | float) -> tuple[Tensor, Tensor]:
        """D_c and D_0."""
        if self.weak_unet is not None:
            return self.unet(z, timestep, self.embedding), self.weak_unet(z, timestep, self.embedding)
        twice = torch.cat([z, z])
        if self.negative_embedding is None:
            condition_mask = torch.arange(len(twice), device=z.device) < len(z)
            prediction = self.unet(twice, timestep, torch.cat([self.embedding, self.embedding]), condition_mask)
        else:
            prediction = self.unet(twice, timestep, torch.cat([self.embedding, self.negative_embedding]))
        conditional, other = prediction.chunk(2)
        return conditional, other

    def _projected(self, difference: Tensor, x_c: Tensor, level: float, how: Projection) -> Tensor:
        """The difference x_c - x_0 after APG: momentum, norm threshold and projection.

        The running sum advances once per noise level: where a sampler evaluates the same level twice, as Heun's method
        does, the second evaluation replaces the first, so that momentum means the same for all samplers.
        """
        if level != self._level:
            self._before, self._level = self._difference, level
        self._difference = difference = difference + how.momentum * self._before
        if how.threshold is not None:
            size = difference.square().mean(dim=(1, 2), keepdim=True).sqrt()
            difference = difference * (how.threshold / size).clamp(max=1)
        parallel = x_c * _inner(difference, x_c) / _inner(x_c, x_c)
        return difference - (1 - how.parallel) * parallel


def _best_scale(conditional: Tensor, other: Tensor) -> Tensor:
    """The factor s* for D_0 that minimises its distance to D_c: [batch, 1, 1]."""
    return _inner(conditional, other) / _inner(other, other)


def _rescaled(guided: Tensor, conditional: Tensor, amount: float) -> Tensor:
    """The guided prediction with each item's standard deviation interpolated towards that of D_c."""
    factor = conditional.std(dim=(1, 2), keepdim=True) / guided.std(dim=(1, 2), keepdim=True)
    return guided * (amount * factor + 1 - amount)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per item: two [batch, channels, frames] tensors -> [batch, 1, 1]."""
    return (a * b).sum(dim=(1, 2), keepdim=True)


def _check(options: Guidance, scale: float, predicts: str, *, negative: bool, weak: bool) -> None:
    if not 0 <= scale < math.inf:
        raise UserError(
            f"guidance_scale is {scale}; it must be at least 0 "
            "(0 ignores the prompt, 1 follows it, above 1 follows it more closely)"
        )
    needs_more = {
        "a negative prompt": negative,
        "a weaker model": weak,
        "guidance rescale": options.rescale > 0,
        "a guidance interval": options.interval is not None,
        "a guidance schedule": options.schedule != "constant",
        "APG": options.projection is not None,
        "CFG-Zero*": options.zero_star,
    }
    for name, is_set in needs_more.items():
        if is_set and scale <= 1:
            raise UserError(
                f"{name} has no effect at guidance scale {scale:g}; raise the scale above 1 or leave it out"
            )
    if negative and weak:
        raise UserError("a negative prompt has no effect beside a weaker model, which takes its place; choose one")
    if (options.zero_star or options.zero_init) and predicts != "flow_prediction":
        raise UserError(f"CFG-Zero* is for models of flow matching; this one's prediction is {predicts}")
