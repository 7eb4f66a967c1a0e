"""Familiarity: dividing texts into those that describe a model's corpus and those that describe something else.

`Bridge.familiarity` compares a prompt with both. The corpus needs no labels: CLIP determines which captions match
its images.
"""

import torch
from torch import Tensor

from diffaudio.errors import UserError

__all__ = ["divide_texts"]


def divide_texts(
    images: Tensor,
    captions: Tensor,
    background: Tensor,
    *,
    min_share: float = 0.001,
    synonym: float = 0.75,
    distance: float = 0.55,
) -> tuple[Tensor, Tensor]:
    """Divide texts into known ones, which describe the corpus, and background ones, which do not.

    Args:
        images: [pictures, dim] of the corpus, unit norm.
        captions: [captions, dim], possible image content.
        background: [texts, dim], about sounds and things of all kinds.
        min_share: a caption is known if it is the nearest to this share of the images, and to at least 2.
        synonym: captions at least this similar to a known one are also known.
        distance: a background text is retained if it is less similar than this to every known one.

    Returns:
        known and background texts, [number, dim] each.

    Raises:
        ValueError: one of the two would be empty.
    """
    counts = torch.bincount((images @ captions.T).argmax(dim=1), minlength=len(captions))
    shown = captions[counts >= max(2, min_share * len(images))]
    if not len(shown):
        raise UserError("no caption is the nearest to two pictures of the corpus; give captions of what it shows")
    known = captions[(captions @ shown.T).amax(dim=1) >= synonym]
    others = background[(background @ known.T).amax(dim=1) < distance]
    if not len(others):
        raise UserError("every background text says what the corpus shows; give texts about other things too")
    return known, others
