"""From a query to the embedding that the U-Net is conditioned on.

    text ──templates, CLIP──▶ bridge ───┐
    image, video ──CLIP──▶ image bridge ┴▶ weighted mean ──▶ interpolation ──▶ [1, dim], unit norm

The U-Net was trained on image embeddings: images need no bridge, texts do. A mixture is the weighted mean of its parts'
embeddings after their bridges, renormalised to unit norm; an interpolation follows the great circle between two such
embeddings (Shoemake 1985, slerp).
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffaudio.diffusion.settings import check_prompt
from diffaudio.errors import UserError
from diffaudio.file_names import shorten
from diffaudio.media.images import read_image, read_video
from diffaudio.models.bridge.bridges import Bridge, RetrievalBridge
from diffaudio.models.bridge.folder import choose_bridge, kind_of_bridge
from diffaudio.models.clip import Clip
from diffaudio.prompt_templates import check_templates, fill
from diffaudio.queries.query import Part, Query, queries_of

__all__ = ["QueryEncoder", "interpolate", "slerp"]

logger = logging.getLogger(__name__)

LINEAR_ANGLE = 1e-4  # on such a short arc, linear interpolation is as accurate


@dataclass(frozen=True)
class QueryEncoder:
    """Computes the embeddings of queries, [number, embedding_dim] each, with unit norm.

    Attributes:
        clip: the model's CLIP.
        own_bridge: the model's own bridge, which knows whether a text is far from the training corpus.
        bridge: the bridge that texts cross.
        templates: the sentences in which CLIP reads a text.
        image_bridge: maps the embeddings of images and videos to the mean of the training images that resemble them
            most; None leaves them unchanged.
    """

    clip: Clip
    own_bridge: Bridge
    bridge: Bridge
    templates: tuple[str, ...]
    image_bridge: RetrievalBridge | None = None

    @classmethod
    def choose(
        cls,
        clip: Clip,
        own_bridge: Bridge,
        *,
        bridge: str | None = None,
        templates: Sequence[str] | None = None,
        image_bridge: str | None = None,
    ) -> "QueryEncoder":
        """Look up bridges by the names that `--bridge` accepts; None, or no templates, is the model's own.

        Raises:
            UserError: the model has no such bridge, one was made for another CLIP, or a template lacks its {}.
        """
        device = clip.device
        chosen = own_bridge if bridge is None else choose_bridge(bridge, own_bridge, clip.name)
        of_images = None
        if image_bridge is not None:
            of_images = choose_bridge(image_bridge, own_bridge, clip.name)
            if not isinstance(of_images, RetrievalBridge):
                raise UserError(
                    f"image bridge '{image_bridge}' maps texts only; a retrieval bridge has training images to compare "
                    "with, so choose 'retrieval' where the model has one"
                )
            torch.nn.Module.to(of_images, device=device)
        torch.nn.Module.to(chosen, device=device)
        return cls(clip, own_bridge, chosen, check_templates(list(templates or clip.templates)), of_images)

    def describe(self) -> dict[str, Any]:
        """The kind of bridge and the templates that texts pass, for the JSON beside a sound."""
        return {"text_bridge": kind_of_bridge(self.bridge), "text_templates": list(self.templates)}

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], *, warn_if_far: bool = False) -> Tensor:
        """Embeddings of texts, mapped by the bridge.

        Args:
            warn_if_far: log a warning for a text that is far from the training corpus.

        Raises:
            UserError: a text is empty.
        """
        for text in texts:
            check_prompt(text)
        embeddings = self.clip.encode_prompts(list(texts), self.templates)
        if warn_if_far:
            self._warn_if_far(texts, embeddings)
        return self._by_tokens(texts) if self.bridge.reads_tokens else self.bridge(embeddings)

    def _by_tokens(self, texts: Sequence[str]) -> Tensor:
        """Embeddings by a bridge that reads the tokens of a text, averaged over the templates."""
        bridge: Any = self.bridge
        of_templates = [
            # "" is what it guides away from
            bridge.from_tokens(*self.clip.encode_tokens([*(fill(template, text) for text in texts), ""]))
            for template in self.templates
        ]
        return F.normalize(torch.stack(of_templates).mean(0), dim=-1) if len(of_templates) > 1 else of_templates[0]

    @torch.no_grad()
    def encode_media(self, parts: Sequence[Part]) -> Tensor:
        """Embeddings of images and videos; that of several frames is the mean of theirs.

        Raises:
            UserError: one cannot be read.
        """
        pixels_of: dict[int, Tensor] = {}  # small, unlike the images, of which only one is held at a time
        for part in parts:
            if id(part) not in pixels_of:
                read = read_image if part.kind == "image" else read_video
                pixels_of[id(part)] = self.clip.preprocess(read(part.content))
        pixels = [pixels_of[id(part)] for part in parts]
        if all(len(each) == 1 for each in pixels):
            embeddings = self.clip.encode_pixels(torch.cat(pixels))
        else:
            means = [self.clip.encode_pixels(each).mean(dim=0) for each in pixels]
            embeddings = torch.stack([mean / mean.norm() for mean in means])
        return embeddings if self.image_bridge is None else _nearest_images(self.image_bridge, embeddings)

    def encode_negative(
        self, *, prompt: str | Query | list[str | Query] | None = None, image: Any = None
    ) -> Tensor | None:
        """Embeddings of what to guide away from, a text or an image; None if neither is given."""
        if prompt is None and image is None:
            return None
        if prompt is not None and image is not None:
            raise UserError("give one of negative_prompt and negative_image, not both")
        return self.encode_queries(queries_of(prompt, image))

    def encode_queries(self, queries: Sequence[Query], *, warn_if_far: bool = False) -> Tensor:
        """Embeddings of queries, of any kinds.

        Args:
            warn_if_far: see `encode_texts`.

        Raises:
            UserError: a file cannot be read, the parts of a mixture cancel out, or the two ends of an interpolation are
                opposite.
        """
        if not queries:
            raise UserError("the list of queries is empty")
        parts = [part for query in queries for part in query.all_parts]
        texts, media = ([part for part in parts if (part.kind == "text") is is_text] for is_text in (True, False))
        of_texts = self.encode_texts([part.content for part in texts], warn_if_far=warn_if_far) if texts else ()
        of_media = self.encode_media(media) if media else ()
        remaining = {"text": iter(of_texts), "media": iter(of_media)}

        def mixed(parts: Sequence[Part]) -> Tensor:
            embeddings = [next(remaining["text" if part.kind == "text" else "media"]) for part in parts]
            return _weighted_mean(embeddings, [part.weight for part in parts])

        ends = [(mixed(query.parts), mixed(query.to) if query.to else None) for query in queries]
        return torch.stack(
            [
                first if last is None else slerp(first, last, query.position)
                for (first, last), query in zip(ends, queries, strict=True)
            ]
        )

    def _warn_if_far(self, texts: Sequence[str], embeddings: Tensor) -> None:
        threshold = self.own_bridge.config.get("familiarity_threshold")
        if threshold is None:
            return
        for text, familiarity in zip(texts, self.own_bridge.familiarity(embeddings).tolist(), strict=True):
            if familiarity < threshold:
                logger.warning(
                    "%r lies far from everything this model was trained on (familiarity %.2f, usually above %.2f); "
                    "the sound may have little to do with it",
                    shorten(text),
                    familiarity,
                    threshold,
                )


def slerp(first: Tensor, last: Tensor, position: float) -> Tensor:
    """The embedding at a position between two, along the great circle through them.

    Args:
        first, last: [dim], unit norm.
        position: 0 (first) to 1 (last).

    Returns:
        [dim], unit norm.

    Raises:
        UserError: the two are opposite, so that no great circle is the shortest.
    """
    a, b = first.double(), last.double()
    angle = torch.acos((a * b).sum().clamp(-1, 1))
    if angle > math.pi - 1e-3:
        raise UserError("the two queries are opposite to each other; nothing lies between them")
    if angle < LINEAR_ANGLE:
        return F.normalize(torch.lerp(a, b, position), dim=-1).to(first)
    point = torch.sin((1 - position) * angle) * a + torch.sin(position * angle) * b
    return F.normalize(point, dim=-1).to(first)


def interpolate(first: Tensor, last: Tensor, count: int) -> Tensor:
    """Equally spaced embeddings along the great circle between two embeddings.

    Args:
        first, last: [1, dim], unit norm.
        count: number of embeddings, including both ends.

    Returns:
        [count, dim], unit norm.

    Raises:
        UserError: `count` is below 2, or the two are opposite.
    """
    if count < 2:
        raise UserError(f"an interpolation of {count} has no two ends; give 2 or more")
    return torch.stack([slerp(first[0], last[0], index / (count - 1)) for index in range(count)])


def _weighted_mean(embeddings: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """[dim], unit norm; a single embedding is returned unchanged."""
    if len(embeddings) == 1:
        return embeddings[0]
    total = sum(weights)
    mean = torch.stack([w / total * F.normalize(e, dim=-1) for w, e in zip(weights, embeddings, strict=True)]).sum(0)
    if mean.norm() < 1e-4:
        raise UserError("the parts of the query cancel each other out; change the weights or leave one out")
    return F.normalize(mean, dim=-1)


def _nearest_images(bridge: RetrievalBridge, embeddings: Tensor) -> Tensor:
    """The mean of the bridge's stored images, weighted by their similarity: softmax(x . m_i / temperature)."""
    memory = bridge.memory.to(embeddings)
    weights = torch.softmax(embeddings @ memory.T / bridge.config["temperature"], dim=-1)
    return F.normalize(weights @ memory, dim=-1)
