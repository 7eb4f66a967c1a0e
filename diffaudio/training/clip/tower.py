"""The part of a CLIP that is trained: the image tower and the scale of the logits."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffaudio.errors import UserError

__all__ = ["ImageTower"]


class ImageTower(nn.Module):
    """The image tower and the scale of the logits.

    pixels [batch, 3, size, size] -> embeddings [batch, dim] of unit norm, and the scale.

    Args:
        model: open_clip's.
        initial_scale: of the logits; None keeps the model's.
        pretrained: the tower stays in evaluation mode, so that the statistics of its batch normalisation stay as they
            were.
    """

    def __init__(self, model: Any, *, initial_scale: float | None, pretrained: bool) -> None:
        super().__init__()
        self.visual = model.visual.to(memory_format=torch.channels_last)
        self.logit_scale = model.logit_scale
        if initial_scale is not None:
            nn.init.constant_(self.logit_scale, math.log(initial_scale))
        self.train(not pretrained)

    def freeze(self, names: Sequence[str]) -> None:
        """Exclude modules of the tower from training.

        Raises:
            ValueError: the tower has no module of that name.
        """
        modules = dict(self.visual.trunk.named_modules())
        for name in names:
            if name not in modules:
                parts = ", ".join(part for part in modules if part and part.count(".") <= 1)
                raise UserError(f"train.frozen_parts: '{name}' is not a part of the image model; its parts: {parts}")
            modules[name].requires_grad_(False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.project(self.visual.trunk(pixels.contiguous(memory_format=torch.channels_last)))

    def project(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The same as `forward`, for features [batch, features] of the trunk."""
        return F.normalize(self.visual.head(features).float(), dim=-1), self.logit_scale.exp().clamp(max=100)
