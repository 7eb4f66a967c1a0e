"""Bridges: from the embedding of a text to one that the U-Net was trained on, an image's.

    t    text embedding                   [batch, dim], unit norm
    m_i  image embeddings of the corpus   [memory, dim], unit norm
    e_c  embeddings of any texts          [texts, dim], unit norm

Text and image embeddings lie in two separate cones of CLIP's space, the modality gap (Liang et al. 2022,
arXiv:2203.02053); a U-Net that saw only images' has never been where texts are. Three ways across:

- `IdentityBridge`: none, the text embedding as it is (CLIPSonic-ZS).
- `ShiftBridge`: t + mean(m) - mean(e).
- `RetrievalBridge`: sum_i w_i m_i with w = softmax(t . k_i / temperature), what the corpus shows for the words.
  The key k_i says in texts what picture i shows: the mean of the e_c, weighted by how well each fits the picture
  (softmax(caption_scale m_i . e_c)), with a share of m_i itself. A text is so compared with texts, which the text
  tower was made for, and no picture is found for every text only because it lies near their cone.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from diffaudio.errors import UserError
from diffaudio.safe_loading import load_network, read_json

__all__ = [
    "BRIDGES",
    "Bridge",
    "IdentityBridge",
    "RetrievalBridge",
    "ShiftBridge",
    "fit_bridge",
    "load_bridge",
    "picture_keys",
]


class Bridge(ModelMixin, ConfigMixin):
    """Text embedding [batch, dim] -> embedding to condition on [batch, dim], both of unit norm.

    `familiarity` says how near a text lies to what the corpus showed (higher is nearer), and below
    `config.familiarity_threshold` a user should be warned; None switches that off.
    """

    config_name = "config.json"

    def familiarity(self, text_embeddings: Tensor) -> Tensor:
        """[batch]; zero where a bridge keeps no memory of the corpus."""
        return torch.zeros(len(text_embeddings))


class IdentityBridge(Bridge):
    """The text embedding as it is."""

    @register_to_config
    def __init__(self, embedding_dim: int, familiarity_threshold: float | None = None) -> None:
        super().__init__()
        self.placeholder = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, text_embeddings: Tensor) -> Tensor:
        return text_embeddings


class ShiftBridge(Bridge):
    """Moves texts by the difference of the two means."""

    @register_to_config
    def __init__(self, embedding_dim: int, familiarity_threshold: float | None = None) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(embedding_dim), requires_grad=False)

    def forward(self, text_embeddings: Tensor) -> Tensor:
        return F.normalize(text_embeddings + self.shift.to(text_embeddings), dim=-1)


class RetrievalBridge(Bridge):
    """A weighted mean of the corpus' own image embeddings.

    Args:
        memory_size: how many image embeddings are kept.
        temperature: of the softmax over them; towards 0 it takes the single nearest.
        neighbours: familiarity is the mean similarity to this many nearest keys.
        familiarity_threshold: below it a text lies far from all that was heard.
    """

    @register_to_config
    def __init__(
        self,
        embedding_dim: int,
        memory_size: int,
        temperature: float = 0.01,
        neighbours: int = 8,
        familiarity_threshold: float | None = None,
    ) -> None:
        super().__init__()
        self.memory_keys = nn.Parameter(torch.zeros(memory_size, embedding_dim), requires_grad=False)
        self.memory = nn.Parameter(torch.zeros(memory_size, embedding_dim), requires_grad=False)

    def similarity(self, text_embeddings: Tensor) -> Tensor:
        """t . k_i: [batch, memory]"""
        return text_embeddings @ self.memory_keys.to(text_embeddings).T

    def forward(self, text_embeddings: Tensor) -> Tensor:
        weights = torch.softmax(self.similarity(text_embeddings) / self.config["temperature"], dim=-1)
        return F.normalize(weights @ self.memory.to(text_embeddings), dim=-1)

    def familiarity(self, text_embeddings: Tensor) -> Tensor:
        nearest = min(self.config["neighbours"], self.config["memory_size"])
        return self.similarity(text_embeddings).topk(nearest, dim=-1).values.mean(dim=-1)


def picture_keys(images: Tensor, texts: Tensor, *, caption_scale: float = 40.0, own_share: float = 1.0) -> Tensor:
    """Say in texts what pictures show.

    Args:
        images: [number, dim], unit norm.
        texts: [texts, dim], unit norm; a vocabulary of what pictures may show.
        caption_scale: inverse temperature of the choice among the texts; CLIP's own logit scale is a good one.
        own_share: how much of the picture's embedding goes into its key.

    Returns:
        [number, dim], unit norm.
    """
    captions = F.normalize(torch.softmax(caption_scale * images @ texts.T, dim=-1) @ texts, dim=-1)
    return F.normalize(captions + own_share * images, dim=-1)


BRIDGES: dict[str, type[Bridge]] = {"none": IdentityBridge, "shift": ShiftBridge, "retrieval": RetrievalBridge}


@torch.no_grad()
def fit_bridge(kind: str, image_embeddings: Tensor, text_embeddings: Tensor | None = None, **settings: Any) -> Bridge:
    """Make a bridge from what training saw; no pair of picture and text is needed.

    Args:
        kind: a key of `BRIDGES`.
        image_embeddings: [number, dim] of the corpus' frames.
        text_embeddings: [number, dim] of any texts, what pictures may show or users may write; 'shift' takes their
            mean, 'retrieval' finds pictures through them, or directly where there are none.
        settings: further arguments of the bridge's class.

    Raises:
        ValueError: the kind is unknown, or 'shift' was asked for without texts.
    """
    if kind not in BRIDGES:
        raise UserError(f"bridge '{kind}' is unknown; choose from {', '.join(BRIDGES)}")
    dim = image_embeddings.shape[-1]
    if kind == "none":
        return IdentityBridge(dim, **settings)
    if kind == "shift":
        if text_embeddings is None:
            raise UserError("bridge 'shift' needs texts to take the mean embedding of; give some, or choose another")
        bridge = ShiftBridge(dim, **settings)
        bridge.shift.copy_(image_embeddings.mean(dim=0) - text_embeddings.mean(dim=0))
        return bridge
    bridge = RetrievalBridge(dim, len(image_embeddings), **settings)
    bridge.memory.copy_(image_embeddings)
    keys = image_embeddings if text_embeddings is None else picture_keys(image_embeddings, text_embeddings)
    bridge.memory_keys.copy_(keys)
    return bridge


def load_bridge(folder: str | Path) -> Bridge:
    """Load whichever bridge a folder holds.

    Raises:
        ValueError: config.json is missing or names a class that is no bridge.
    """
    config_file = Path(folder) / "config.json"
    if not config_file.is_file():
        raise UserError(f"{folder}: not a bridge folder, config.json is missing")
    name = read_json(config_file).get("_class_name")
    classes = {bridge.__name__: bridge for bridge in BRIDGES.values()}
    if name not in classes:
        raise UserError(f"{config_file}: bridge '{name}' is unknown; choose from {', '.join(classes)}")
    return load_network(classes[name], Path(folder))
