"""Queries: texts, pictures and videos, alone or as weighted mixtures, as one embedding each.

    "a dog barking::0.7"   a text, picture or video with its weight, 1 by default

The embedding of a mixture is the weighted mean of its parts' embeddings, renormalised to unit norm. Text embeddings are
mapped by the model's bridge to the image embeddings that the U-Net was trained on; mixing takes place in that space.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diffaudio.errors import UserError
from diffaudio.media.images import read_image, read_video
from diffaudio.pipeline import DiffAudioPipeline

__all__ = ["Part", "encode_query", "interpolate", "parse_part"]

SEPARATOR = "::"


@dataclass(frozen=True)
class Part:
    """A part of a query: a text, or the file of a picture or a video, and its weight."""

    kind: Literal["text", "image", "video"]
    content: str
    weight: float = 1.0


def parse_part(argument: str, kind: Literal["text", "image", "video"] = "text") -> Part:
    """Parse "content::weight", or "content" with a weight of 1.

    Raises:
        ValueError: the content is empty, or the weight is not a number above 0.
    """
    content, separator, weight = argument.rpartition(SEPARATOR)
    if not separator:
        content, weight = argument, "1"
    if not content.strip():
        raise UserError(f"'{argument}': the {kind} is empty; write it before '{SEPARATOR}' and its weight")
    try:
        value = float(weight)
    except ValueError:
        raise UserError(
            f"'{argument}': the weight '{weight}' is not a number; write the {kind}, '{SEPARATOR}' and a number above 0"
        ) from None
    if not 0 < value < math.inf:
        raise UserError(f"'{argument}': the weight is {weight}; a number above 0 is needed")
    return Part(kind, content.strip(), value)


@torch.no_grad()
def encode_query(pipe: DiffAudioPipeline, parts: Sequence[Part], *, warn_if_far: bool = False) -> Tensor:
    """[1, embedding_dim], unit norm: for the pipeline's `prompt_embeds` or `negative_prompt_embeds`.

    Args:
        warn_if_far: log a warning for a text that is far from the training corpus.

    Raises:
        ValueError: there are no parts, a file cannot be read, or the parts cancel each other out.
    """
    if not parts:
        raise UserError("the query is empty; give a text, a picture or a video")
    texts = [part.content for part in parts if part.kind == "text"]
    of_texts = iter(pipe.encode_prompt(texts, warn_if_far=warn_if_far) if texts else ())
    mean = torch.zeros(pipe.clip.embedding_dim, device=pipe.device)
    for part in parts:
        if part.kind == "text":
            embedding = next(of_texts)
        else:
            frames = read_image(Path(part.content)) if part.kind == "image" else read_video(Path(part.content))
            embedding = pipe.clip.encode_video(frames)[0]
        mean = mean + part.weight * F.normalize(embedding, dim=-1)
    if mean.norm() < 1e-4 * sum(part.weight for part in parts):
        raise UserError("the parts of the query cancel each other out; change the weights or leave one out")
    return F.normalize(mean[None], dim=-1)


def interpolate(first: Tensor, last: Tensor, count: int) -> Tensor:
    """Equally spaced embeddings along the great circle between two embeddings (Shoemake 1985, slerp).

    Args:
        first, last: [1, dim], unit norm.
        count: number of embeddings, including both ends.

    Returns:
        [count, dim], unit norm.

    Raises:
        ValueError: `count` is below 2, or the two are opposite, so that no great circle is the shortest.
    """
    if count < 2:
        raise UserError(f"an interpolation of {count} has no two ends; give 2 or more")
    angle = torch.acos((first * last).sum().clamp(-1, 1).double())
    if angle > math.pi - 1e-3:
        raise UserError("the two queries are opposite to each other; nothing lies between them")
    share = torch.linspace(0, 1, count, dtype=torch.float64, device=first.device)[:, None]
    if angle < 1e-4:  # on such a short arc, linear interpolation is as accurate
        return F.normalize(torch.lerp(first.double(), last.double(), share), dim=-1).to(first)
    weights = [torch.sin((1 - share) * angle), torch.sin(share * angle)]
    return F.normalize(weights[0] * first.double() + weights[1] * last.double(), dim=-1).to(first)
