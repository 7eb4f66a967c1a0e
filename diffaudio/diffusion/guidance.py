"""Guidance: how several predictions of the U-Net become one.

    w    guidance scale; 0 unconditional, 1 conditional, above 1 extrapolated
    D_c  prediction with the embedding                                [batch, channels, frames]
    D_0  prediction with the null embedding, or a negative embedding  [batch, channels, frames]

Classifier-free guidance is D_0 + w (D_c - D_0): Ho & Salimans 2022 (arXiv:2207.12598), eq. 6, whose
w is ours minus 1. What the U-Net predicts is linear in the score at a given noise level, so the
formula holds for every prediction type.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["guided_prediction"]


def guided_prediction(
    unet: Callable[..., Tensor],
    latents: Tensor,
    timestep: Tensor | float,
    embedding: Tensor,
    *,
    scale: float,
    negative_embedding: Tensor | None = None,
) -> Tensor:
    """Predict with classifier-free guidance; one pass over the items at scale 0 and 1, otherwise two in one call.

    Args:
        unet: called as `unet(latents, timestep, embedding, keep)`.
        latents: [batch, channels, frames].
        timestep: one for all items.
        embedding: [batch, embedding_dim].
        negative_embedding: [batch, embedding_dim], to be led away from; None is the null embedding.

    Returns:
        [batch, channels, frames].
    """
    if scale == 1:
        return unet(latents, timestep, embedding)
    if scale == 0:
        return unet(latents, timestep, negative_embedding)
    both = torch.cat([latents, latents])
    if negative_embedding is None:
        keep = torch.arange(len(both), device=both.device) < len(latents)
        prediction = unet(both, timestep, torch.cat([embedding, embedding]), keep)
    else:
        prediction = unet(both, timestep, torch.cat([embedding, negative_embedding]))
    conditional, unconditional = prediction.chunk(2)
    return unconditional + scale * (conditional - unconditional)
