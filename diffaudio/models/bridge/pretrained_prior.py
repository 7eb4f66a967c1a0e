"""Pretrained diffusion priors in diffusers' format, such as Karlo's and Kandinsky's, as bridges.

    t    text embedding, not normalised                      [texts, dim]
    h    last hidden states of CLIP's text transformer       [texts, context, dim]
    z_0  image embedding, standardised by the prior's own mean and standard deviation

A prior's folder is laid out as diffusers' pipelines write it, of which these parts are read:

    prior/          config.json of class PriorTransformer, diffusion_pytorch_model.safetensors
    prior_scheduler/ or scheduler/   scheduler_config.json of class UnCLIPScheduler
    text_encoder/   config.json; it names the CLIP that the prior was trained for

A folder that holds the PriorTransformer itself is read too. Unlike `PriorBridge`, such a prior reads all tokens of a
text (unCLIP, Ramesh et al. 2022, arXiv:2204.06125, section 2.2), so it needs a CLIP with a causal text transformer.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import PriorTransformer, UnCLIPScheduler
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from diffaudio.errors import UserError
from diffaudio.library_loading import read_scheduler
from diffaudio.models.bridge.bridges import Bridge
from diffaudio.models.bridge.noise import fixed_noise
from diffaudio.models.bridge.prior import sample_prior
from diffaudio.safe_loading import load_network, read_json

__all__ = ["PretrainedPriorBridge", "find_prior", "load_pretrained_prior"]

# Hugging Face ids of CLIPs that priors were trained for, and open_clip's names of the same weights.
SAME_CLIP = {
    "openai/clip-vit-base-patch32": "ViT-B-32/openai",
    "openai/clip-vit-base-patch16": "ViT-B-16/openai",
    "openai/clip-vit-large-patch14": "ViT-L-14/openai",
    "openai/clip-vit-large-patch14-336": "ViT-L-14-336/openai",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": "ViT-H-14/laion2b_s32b_b79k",
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k": "ViT-bigG-14/laion2b_s39b_b160k",
}


class PretrainedPriorBridge(Bridge):
    """Texts -> image embeddings sampled by a prior that reads their tokens.

    Args:
        prior: settings of diffusers' `PriorTransformer`.
        scheduler: settings of diffusers' `UnCLIPScheduler`.
        steps: number of sampling steps.
        guidance_scale: classifier-free guidance, away from the empty text; 1 is none.
        seed: seed of the initial noise, the same for every text.
    """

    reads_tokens = True

    @register_to_config
    def __init__(
        self, embedding_dim: int, familiarity_threshold: float | None = None, known_size: int = 0,
        background_size: int = 0, clip_name: str | None = None, prior: dict[str, Any] | None = None,
        scheduler: dict[str, Any] | None = None, steps: int = 25, guidance_scale: float = 4.0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self._make_vocabulary(known_size, background_size, embedding_dim)
        self.transformer = PriorTransformer(**prior or {})

    def from_tokens(self, pooled: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
        """Image embeddings of all texts but the last, which is the empty one: [texts - 1, dim], unit norm.

        Args:
            pooled: [texts, dim], text embeddings as CLIP's projection yields them, not normalised.
            hidden: [texts, context, dim], the last hidden states of the text transformer.
            mask: [texts, context], True up to the end of each text.

        Raises:
            ValueError: their sizes are not those that the prior was trained on.
        """
        settings = self.transformer.config
        expected = settings["num_embeddings"], settings["embedding_dim"]
        if tuple(hidden.shape[1:]) != expected:
            raise UserError(
                f"the prior reads {expected[0]} tokens of {expected[1]} values, the text transformer of the model's "
                f"CLIP has {hidden.shape[1]} of {hidden.shape[2]}; they do not fit"
            )
        scale = self.config["guidance_scale"]
        count, last = len(pooled) - 1, [len(pooled) - 1]

        def predict(latents: Tensor, level: Tensor, rows: slice | list[int]) -> Tensor:
            pooled_rows, hidden_rows, mask_rows = (
                part[rows].expand(count, *part.shape[1:]) for part in (pooled, hidden, mask)
            )
            return self.transformer(
                latents,
                timestep=level,
                proj_embedding=pooled_rows,
                encoder_hidden_states=hidden_rows,
                attention_mask=mask_rows,
            ).predicted_image_embedding

        def guided(latents: Tensor, level: Tensor) -> Tensor:
            predicted = predict(latents, level, slice(count))
            if scale == 1:
                return predicted
            null = predict(latents, level, last)
            return null + scale * (predicted - null)

        with torch.no_grad():
            noise = fixed_noise(self.config["seed"], pooled[:count])
            scheduler = UnCLIPScheduler(**self.config["scheduler"] or {})
            latents = sample_prior(guided, noise, scheduler, self.config["steps"])
            return F.normalize(self.transformer.post_process_latents(latents), dim=-1)

    def forward(self, text_embeddings: Tensor) -> Tensor:
        raise TypeError("a pretrained prior reads the tokens of a text; call from_tokens")


def find_prior(folder: Path) -> Path | None:
    """The folder of a PriorTransformer: `folder` itself or its prior/; None if there is none."""
    for candidate in (folder / "prior", folder):
        file = candidate / "config.json"
        if file.is_file() and read_json(file).get("_class_name") == "PriorTransformer":
            return candidate
    return None


def load_pretrained_prior(folder: Path) -> PretrainedPriorBridge:
    """Load a prior in diffusers' format as a bridge.

    Args:
        folder: in one of the two layouts above.

    Raises:
        ValueError: a file is missing or damaged, or the prior's image and text embeddings differ in size.
    """
    place = find_prior(folder)
    if place is None:
        raise UserError(f"{folder}: holds no diffusion prior; prior/config.json of class PriorTransformer is missing")
    network = load_network(PriorTransformer, place)
    settings = {name: value for name, value in network.config.items() if not name.startswith("_")}
    dim = settings["embedding_dim"]
    for name in ("clip_embed_dim", "embedding_proj_dim"):
        if (settings[name] or dim) != dim:
            raise UserError(f"{place / 'config.json'}: {name} is {settings[name]} where embedding_dim is {dim}")
    if not (settings["added_emb_type"] and settings["encoder_hid_proj_type"]):
        raise UserError(
            f"{place / 'config.json'}: this transformer reads no text tokens, so it is no text-to-image prior"
        )
    scheduler = _scheduler_settings(folder)
    bridge = PretrainedPriorBridge(dim, clip_name=_clip_name(folder), prior=settings, scheduler=scheduler)
    bridge.transformer.load_state_dict(network.state_dict())
    return bridge.eval()


def _scheduler_settings(folder: Path) -> dict[str, Any]:
    """Settings of the UnCLIPScheduler in the folder, or those that Karlo and Kandinsky have."""
    for name in ("prior_scheduler", "scheduler"):
        file = folder / name / "scheduler_config.json"
        if file.is_file():
            scheduler = read_scheduler(file)
            if not isinstance(scheduler, UnCLIPScheduler) or scheduler.config["prediction_type"] != "sample":
                raise UserError(f"{file}: a prior needs an UnCLIPScheduler that predicts the sample")
            return {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    return {"prediction_type": "sample", "clip_sample": True, "clip_sample_range": 5.0}


def _clip_name(folder: Path) -> str | None:
    """The CLIP that a prior was trained for, by open_clip's name where it has one; None where no file tells."""
    for part in ("text_encoder", "image_encoder"):
        file = folder / part / "config.json"
        name = read_json(file).get("_name_or_path") if file.is_file() else None
        # it may also be the path of whoever saved the prior, which tells nothing
        if isinstance(name, str) and name.count("/") == 1 and "clip" in name.lower():
            return SAME_CLIP.get(name, name)
    return None
