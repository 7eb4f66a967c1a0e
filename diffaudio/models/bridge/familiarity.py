"""Familiarity: how close a text is to what a model's corpus holds, for the warning about prompts that are far from it.

    K    texts that describe the corpus (known)                  [known, dim], unit norm
    B    texts about other things (background)                   [background, dim], unit norm
    t    a prompt                                                [dim], unit norm

    familiarity(t)  =  mean of the 3 largest t . K  -  0.8 x mean of the 3 largest t . B

Either half alone is misleading, since the similarity of two texts also depends on their wording. The known texts are
given, or found without labels: CLIP determines which captions match the corpus's images (`divide_texts`).
"""

import torch
from torch import Tensor

from diffaudio.errors import UserError

__all__ = ["divide_texts", "familiarity", "fit_threshold"]

NEIGHBOURS = 3
BACKGROUND_WEIGHT = 0.8


def familiarity(texts: Tensor, known: Tensor, background: Tensor) -> Tensor:
    """[texts]; see above.

    Args:
        texts: [texts, dim], unit norm.
        known, background: K and B.
    """
    return _nearest(texts @ known.T) - BACKGROUND_WEIGHT * _nearest(texts @ background.T)


def fit_threshold(known: Tensor, background: Tensor, share: float) -> float:
    """The familiarity below which a prompt is warned about.

    Args:
        share: of the known texts that would be warned about if the model did not store them: each is compared with all
            others. It estimates how many prompts that the model can serve will be warned about.

    Raises:
        ValueError: there are too few known texts to tell.
    """
    if len(known) < 2 * NEIGHBOURS:
        raise UserError(f"{len(known)} known texts are too few to fit a threshold to; give at least {2 * NEIGHBOURS}")
    similarity = known @ known.T
    # a text that is there twice is left out twice
    similarity = similarity.masked_fill(similarity > 1 - 1e-4, -1.0)
    left_out = _nearest(similarity) - BACKGROUND_WEIGHT * _nearest(known @ background.T)
    return float(torch.quantile(left_out.double(), share))


def _nearest(similarity: Tensor) -> Tensor:
    """Mean of the largest few values in each row."""
    return similarity.topk(min(NEIGHBOURS, similarity.shape[1]), dim=1).values.mean(dim=1)


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
