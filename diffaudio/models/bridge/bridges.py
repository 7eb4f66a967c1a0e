"""Bridges: mapping a text embedding to an image embedding, the kind that the U-Net was trained on.

    t    text embedding                    [batch, dim], unit norm
    m_i  image embeddings of the corpus    [memory, dim], unit norm
    e_c  embeddings of any texts           [texts, dim], unit norm
    mu, sigma  mean and standard deviation of each dimension, over the m_i or the e_c

Text and image embeddings occupy two separate cones of CLIP's space, the modality gap (Liang et al. 2022,
arXiv:2203.02053); a U-Net trained on image embeddings alone has never been given a text embedding. The bridges:

- `IdentityBridge` ("none"): the text embedding unchanged (CLIPSonic-ZS; Dong et al. 2023, arXiv:2306.09635).
- `ShiftBridge` ("shift"): t + mu_image - mu_text.
- `SpreadBridge` ("spread"): mu_image + (t - mu_text) sigma_image / sigma_text, so that the variance matches too.
- `NoiseBridge` ("noise"): the same, with unCLIP's noise augmentation (`noise_embeddings`); for a U-Net that was
  trained on image embeddings with the same noise, which masks the gap.
- `RetrievalBridge` ("retrieval"): sum_i w_i m_i with w = softmax(t . k_i / temperature), the corpus images that
  match the text, like DeCap's projection onto texts (Li et al. 2023, arXiv:2303.03032). The key k_i describes image i
  by texts: the mean of the e_c, weighted by how well each matches the image (softmax(caption_scale m_i . e_c)), plus
  a share of m_i itself. Texts are thus compared with texts, as the text tower was trained to be, and no image is
  retrieved for every text merely because it is near the texts' cone.
- `PriorBridge` ("prior") in `prior.py` beside this file: a diffusion prior draws an image embedding for the text.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from diffaudio.errors import UserError
from diffaudio.models.bridge.familiarity import familiarity
from diffaudio.models.bridge.noise import fixed_noise, noise_embeddings

__all__ = [
    "BRIDGES",
    "Bridge",
    "IdentityBridge",
    "NoiseBridge",
    "RetrievalBridge",
    "ShiftBridge",
    "SpreadBridge",
    "fit_bridge",
    "picture_keys",
]


class Bridge(ModelMixin, ConfigMixin):
    """Text embedding [batch, dim] -> embedding to condition on [batch, dim], both of unit norm.

    Every bridge has in its config

        embedding_dim           size of an embedding
        familiarity_threshold   texts with lower familiarity should trigger a warning; None never warns
        known_size, background_size   number of texts `familiarity` compares with, 0 for none

    and `clip_name`, the CLIP model that it was fitted to, None if not recorded.

    Attributes:
        alternatives: other bridges for the same model, by the names that `--bridge` accepts; a path is a bridge not yet
            loaded. They are saved in folders of these names.
    """

    config_name = "config.json"
    reads_tokens = False  # whether it maps texts by `from_tokens`, which takes what `Clip.encode_tokens` returns

    def __init__(self) -> None:
        super().__init__()
        self.alternatives: dict[str, Bridge | Path] = {}

    def save_pretrained(self, save_directory: str | Path, **settings: Any) -> None:
        super().save_pretrained(save_directory, **settings)
        for name, bridge in self.alternatives.items():
            if isinstance(bridge, Path):
                shutil.copytree(bridge, Path(save_directory) / name)
            else:
                bridge.save_pretrained(Path(save_directory) / name)

    def _make_vocabulary(self, known_size: int, background_size: int, embedding_dim: int) -> None:
        for name, size in (("known_texts", known_size), ("background_texts", background_size)):
            values = nn.Parameter(torch.zeros(size, embedding_dim), requires_grad=False) if size else None
            self.register_parameter(name, values)

    def familiarity(self, text_embeddings: Tensor) -> Tensor:
        """How close each text is to the content of the corpus, [batch]; higher is closer.

        See `diffaudio.models.bridge.familiarity`; zero if the bridge stores no texts to compare with.
        """
        known, background = self.known_texts, self.background_texts
        if known is None or background is None:
            return torch.zeros(len(text_embeddings))
        return familiarity(text_embeddings, known.to(text_embeddings), background.to(text_embeddings))


class IdentityBridge(Bridge):
    """Returns the text embedding unchanged."""

    @register_to_config
    def __init__(
        self, embedding_dim: int, familiarity_threshold: float | None = None, known_size: int = 0,
        background_size: int = 0, clip_name: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._make_vocabulary(known_size, background_size, embedding_dim)
        self.placeholder = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, text_embeddings: Tensor) -> Tensor:
        return text_embeddings


class ShiftBridge(Bridge):
    """Shifts text embeddings by the difference between the image and text means."""

    @register_to_config
    def __init__(
        self, embedding_dim: int, familiarity_threshold: float | None = None, known_size: int = 0,
        background_size: int = 0, clip_name: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._make_vocabulary(known_size, background_size, embedding_dim)
        self.shift = nn.Parameter(torch.zeros(embedding_dim), requires_grad=False)

    def forward(self, text_embeddings: Tensor) -> Tensor:
        return F.normalize(text_embeddings + self.shift.to(text_embeddings), dim=-1)


class SpreadBridge(Bridge):
    """Matches the mean and standard deviation of text embeddings to those of images, per dimension."""

    @register_to_config
    def __init__(
        self, embedding_dim: int, familiarity_threshold: float | None = None, known_size: int = 0,
        background_size: int = 0, clip_name: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._make_spread(embedding_dim, known_size, background_size)

    def _make_spread(self, embedding_dim: int, known_size: int, background_size: int) -> None:
        self._make_vocabulary(known_size, background_size, embedding_dim)
        for name in ("text_mean", "image_mean"):
            self.register_parameter(name, nn.Parameter(torch.zeros(embedding_dim), requires_grad=False))
        for name in ("text_std", "image_std"):
            self.register_parameter(name, nn.Parameter(torch.ones(embedding_dim), requires_grad=False))

    def standardise(self, text_embeddings: Tensor) -> Tensor:
        """[batch, dim]: each dimension standardised by the mean and standard deviation of texts."""
        return (text_embeddings - self.text_mean.to(text_embeddings)) / self.text_std.to(text_embeddings)

    def to_images(self, standardised: Tensor) -> Tensor:
        """The inverse, with the mean and standard deviation of images; unit norm."""
        return F.normalize(self.image_mean.to(standardised) + self.image_std.to(standardised) * standardised, dim=-1)

    def forward(self, text_embeddings: Tensor) -> Tensor:
        return self.to_images(self.standardise(text_embeddings))


class NoiseBridge(SpreadBridge):
    """`SpreadBridge` with noise added between its two halves; the same noise for every text.

    Args:
        level: noise level, from 0 (no noise) to below 1 (only noise); see `noise_embeddings`.
        seed: seed of the noise.
    """

    @register_to_config
    def __init__(
        self, embedding_dim: int, familiarity_threshold: float | None = None, known_size: int = 0,
        background_size: int = 0, clip_name: str | None = None, level: float = 0.3, seed: int = 0,
    ) -> None:  # fmt: skip
        super(SpreadBridge, self).__init__()
        if not 0 <= level < 1:
            raise UserError(f"bridge 'noise': the level is {level}; it must lie between 0 (no noise) and 1")
        self._make_spread(embedding_dim, known_size, background_size)

    def forward(self, text_embeddings: Tensor) -> Tensor:
        noise = fixed_noise(self.config["seed"], text_embeddings)
        return self.to_images(noise_embeddings(self.standardise(text_embeddings), self.config["level"], noise))


class RetrievalBridge(Bridge):
    """A weighted mean of the corpus's image embeddings.

    Args:
        memory_size: number of image embeddings stored.
        temperature: temperature of the softmax over them; towards 0 it selects the single nearest.
        neighbours: if the bridge has no vocabulary, familiarity is the mean similarity to this many nearest keys.
    """

    @register_to_config
    def __init__(
        self, embedding_dim: int, memory_size: int, temperature: float = 0.01, neighbours: int = 8,
        familiarity_threshold: float | None = None, known_size: int = 0, background_size: int = 0,
        clip_name: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._make_vocabulary(known_size, background_size, embedding_dim)
        self.memory_keys = nn.Parameter(torch.zeros(memory_size, embedding_dim), requires_grad=False)
        self.memory = nn.Parameter(torch.zeros(memory_size, embedding_dim), requires_grad=False)

    def similarity(self, text_embeddings: Tensor) -> Tensor:
        """t . k_i: [batch, memory]"""
        return text_embeddings @ self.memory_keys.to(text_embeddings).T

    def forward(self, text_embeddings: Tensor) -> Tensor:
        weights = torch.softmax(self.similarity(text_embeddings) / self.config["temperature"], dim=-1)
        return F.normalize(weights @ self.memory.to(text_embeddings), dim=-1)

    def familiarity(self, text_embeddings: Tensor) -> Tensor:
        if self.background_texts is not None:
            return super().familiarity(text_embeddings)
        nearest = min(self.config["neighbours"], self.config["memory_size"])
        return self.similarity(text_embeddings).topk(nearest, dim=-1).values.mean(dim=-1)


def picture_keys(images: Tensor, texts: Tensor, *, caption_scale: float = 40.0, own_share: float = 1.0) -> Tensor:
    """Retrieval keys that describe images by texts.

    Args:
        images: [number, dim], unit norm.
        texts: [texts, dim], unit norm; a vocabulary of possible image content.
        caption_scale: inverse temperature of the choice among the texts; CLIP's own logit scale is a good choice.
        own_share: weight of the image's own embedding in its key.

    Returns:
        [number, dim], unit norm.
    """
    captions = F.normalize(torch.softmax(caption_scale * images @ texts.T, dim=-1) @ texts, dim=-1)
    return F.normalize(captions + own_share * images, dim=-1)


BRIDGES: dict[str, type[Bridge]] = {
    "none": IdentityBridge,
    "shift": ShiftBridge,
    "spread": SpreadBridge,
    "noise": NoiseBridge,
    "retrieval": RetrievalBridge,
}


@torch.no_grad()
def fit_bridge(
    kind: str,
    image_embeddings: Tensor,
    text_embeddings: Tensor | None = None,
    *,
    vocabulary: tuple[Tensor, Tensor] | None = None,
    **settings: Any,
) -> Bridge:
    """Fit a bridge to the embeddings of the training corpus; no image-text pairs are needed.

    Args:
        kind: a key of `BRIDGES`.
        image_embeddings: [number, dim], of the corpus's video frames.
        text_embeddings: [number, dim], of any texts that describe possible images or prompts; 'shift', 'spread' and
            'noise' use their mean (and standard deviation); 'retrieval' matches images through them, or directly if
            None.
        vocabulary: known and background texts for `Bridge.familiarity`, [number, dim] each; see
            `diffaudio.models.bridge.familiarity.divide_texts`.
        settings: further arguments of the bridge's class.

    Raises:
        ValueError: the kind is unknown, or it needs texts and none were given.
    """
    if kind not in BRIDGES:
        raise UserError(f"bridge '{kind}' is unknown; choose from {', '.join(BRIDGES)}")
    if text_embeddings is None and kind in ("shift", "spread", "noise"):
        raise UserError(f"bridge '{kind}' needs texts to take the mean embedding of; give some, or choose another")
    if vocabulary is not None:
        settings |= {"known_size": len(vocabulary[0]), "background_size": len(vocabulary[1])}
    if kind == "retrieval":
        settings["memory_size"] = len(image_embeddings)
    cls: Any = BRIDGES[kind]
    bridge: Any = cls(image_embeddings.shape[-1], **settings)
    if vocabulary is not None:
        bridge.known_texts.copy_(vocabulary[0])
        bridge.background_texts.copy_(vocabulary[1])
    if kind == "retrieval":
        keys = image_embeddings if text_embeddings is None else picture_keys(image_embeddings, text_embeddings)
        bridge.memory.copy_(image_embeddings)
        bridge.memory_keys.copy_(keys)
    elif kind == "shift" and text_embeddings is not None:
        bridge.shift.copy_(image_embeddings.mean(dim=0) - text_embeddings.mean(dim=0))
    elif text_embeddings is not None and isinstance(bridge, SpreadBridge):
        for name, embeddings in (("text", text_embeddings), ("image", image_embeddings)):
            getattr(bridge, f"{name}_mean").copy_(embeddings.mean(dim=0))
            getattr(bridge, f"{name}_std").copy_(embeddings.std(dim=0, correction=0).clamp(min=1e-6))
    return bridge
