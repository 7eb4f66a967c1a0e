"""CLIP: text, images and video frames embedded in one space (Radford et al. 2021, arXiv:2103.00020).

Any open_clip model works: a built-in name with a pretrained tag ("ViT-B-32", "openai", which is
CLIPSonic's), an `hf-hub:` id, or a local folder in open_clip's own format, which is how a
checkpoint stores one:

    open_clip_config.json       model, preprocessing and prompt templates
    open_clip_model.safetensors the weights
    config.json, tokenizer.json those of the text tower, if it is a Hugging Face model

Prompt templates ("the sound of {}") are ours: the embedding of a text is the mean of its embeddings in all templates,
normalised to unit norm (prompt ensembling, section 3.1.4 of the paper).
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from diffaudio.errors import UserError
from diffaudio.file_names import shorten
from diffaudio.models.clip.loading import TextTower, check_open_clip_config, load_open_clip
from diffaudio.prompt_templates import PLAIN, check_templates, fill
from diffaudio.safe_loading import loading_errors

__all__ = ["Clip"]

logger = logging.getLogger(__name__)


class Clip(nn.Module):
    """An open_clip model with its tokenizer and image transform; embeddings have unit norm.

    Attributes:
        transform: image -> pixels; None where only the text tower was loaded.
        name: the model's identity, as recorded in a corpus: name and tag, hub id, or the
            folder's own `name` entry.
        embedding_dim: size of an embedding.
        context_length: maximum number of tokens of a text.
        model_config: open_clip's configuration of the model, its `model_cfg`.
        templates: sentences with {} as the placeholder of a text; a single "{}" leaves texts unchanged.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str, embedding_dim: int, model_config: dict[str, Any],
        templates: Sequence[str] = PLAIN,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.transform: Any = None if isinstance(model, TextTower) else _image_transform(model)
        self.name = name
        self.embedding_dim = embedding_dim
        self.context_length: int = tokenizer.context_length
        self.model_config = model_config
        self.templates = check_templates(templates)
        self.eval()  # open_clip leaves a text tower built from its config alone in training mode, with dropout

    @classmethod
    def from_pretrained(
        cls, model: str | Path, tag: str | None = None, *, device: str = "cpu", text_only: bool = False
    ) -> "Clip":
        """Load a local folder, an `hf-hub:` id, or a built-in open_clip model with its tag.

        Args:
            text_only: leave out the image tower of a folder whose text tower is a BERT, which saves seconds of imports;
                such a CLIP neither encodes images nor can be saved.

        Raises:
            ValueError: the folder lacks a file or open_clip does not know the name.
        """
        folder = Path(model)
        if not folder.is_dir():
            return cls._from_open_clip(str(model), tag, device)
        _require(folder, "open_clip_config.json", "open_clip_model.safetensors")
        network, tokenizer, config = load_open_clip(folder, text_only=text_only)
        return cls(
            network.to(device),
            tokenizer,
            name=str(config.get("name", folder.name)),
            embedding_dim=config["model_cfg"]["embed_dim"],
            model_config=config["model_cfg"],
            templates=check_templates(config.get("prompt_templates", PLAIN), f"{folder / 'open_clip_config.json'}: "),
        )

    @classmethod
    def _from_open_clip(cls, model: str, tag: str | None, device: str) -> "Clip":
        import open_clip  # it takes seconds, and a folder's text tower does without
        from transformers import AutoConfig

        on_hub = model.startswith("hf-hub:")
        if not on_hub and model not in open_clip.list_models():
            raise UserError(
                f"CLIP '{model}' is neither a folder, nor an 'hf-hub:' id, nor a model of open_clip's "
                "(such as ViT-B-32 with tag openai; open_clip.list_models() names them)"
            )
        with loading_errors(model):
            model_config: dict[str, Any] = open_clip.get_model_config(model) or {}
        check_open_clip_config(model_config, model, local=False)
        text_config = model_config["text_cfg"]
        # OpenAI's weights, under any model name, were trained with a different activation from open_clip's own
        if (open_clip.get_pretrained_cfg(model, tag or "") or {}).get("quick_gelu"):
            model_config["quick_gelu"] = True
        with loading_errors(f"{model}/{tag}" if tag else model):
            if text_config.get("hf_model_name"):  # checked first, since open_clip would offer to run code from the hub
                AutoConfig.from_pretrained(text_config["hf_model_name"], trust_remote_code=False)
            network: Any = open_clip.create_model(
                model,
                pretrained=tag,
                device=device,
                require_pretrained=True,
                force_quick_gelu=model_config.get("quick_gelu", False),
            )
        with torch.no_grad():
            arguments: dict[str, Any] = {"trust_remote_code": False} if "hf_tokenizer_name" in text_config else {}
            tokenizer = open_clip.get_tokenizer(model, **arguments)
            embedding_dim = network.encode_text(tokenizer(["a sound"]).to(device)).shape[-1]
        name = f"{model}/{tag}" if tag else model
        return cls(network, tokenizer, name=name, embedding_dim=embedding_dim, model_config=model_config)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as a local folder that `from_pretrained` reads, however it was loaded.

        Raises:
            ValueError: it was loaded without its image tower.
        """
        self._check_has_image_tower()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text_config = dict(self.model_config["text_cfg"])
        text_config |= {key: "." for key in ("hf_model_name", "hf_tokenizer_name") if text_config.get(key)}
        text_config |= {"hf_model_pretrained": False} if text_config.get("hf_model_name") else {}
        vision_config = dict(self.model_config["vision_cfg"])
        vision_config |= {"timm_model_pretrained": False} if vision_config.get("timm_model_name") else {}
        model_config = self.model_config | {"text_cfg": text_config, "vision_cfg": vision_config}
        config = {"name": self.name, "model_cfg": model_config, "preprocess_cfg": self.model.visual.preprocess_cfg}
        if self.templates != PLAIN:
            config["prompt_templates"] = list(self.templates)
        (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        weights = {name: value.contiguous() for name, value in self.model.state_dict().items()}
        save_file(weights, folder / "open_clip_model.safetensors")
        if "hf_model_name" in self.model_config["text_cfg"]:
            self.model.text.config.save_pretrained(folder)
        if hasattr(self.tokenizer, "save_pretrained"):
            self.tokenizer.save_pretrained(folder)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def encode_prompts(self, prompts: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """[len(prompts), embedding_dim]: the mean over prompt templates, normalised to unit norm.

        Args:
            templates: None is the model's own.
        """
        templates = self.templates if templates is None else templates
        embeddings = [self.encode_text([fill(template, prompt) for prompt in prompts]) for template in templates]
        return F.normalize(torch.stack(embeddings).mean(dim=0), dim=-1) if len(embeddings) > 1 else embeddings[0]

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Tensor:
        """[len(texts), embedding_dim]; texts longer than `context_length` tokens are truncated, with a warning."""
        for text in texts:
            if self.is_too_long(text):
                short = shorten(text)
                logger.warning("CLIP reads %d tokens of a text; the rest is ignored: %r", self.context_length, short)
        tokens = self.tokenizer(texts).to(self.device)
        if "hf_model_name" in self.model_config["text_cfg"]:  # such a tower masks its padding, so it can be dropped
            tokens = tokens[:, : int((tokens != self.model.text.config.pad_token_id).sum(dim=1).max())]
        return self.model.encode_text(tokens, normalize=True).float()

    @torch.no_grad()
    def encode_tokens(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """What a pretrained diffusion prior reads of texts.

        Returns:
            The text embeddings as projected, not normalised, [texts, embedding_dim]; the last hidden states of the text
            transformer, after its final layer norm, [texts, context_length, width]; and a mask that is True up to the
            end of each text, [texts, context_length].

        Raises:
            ValueError: this CLIP's text tower is not a causal transformer such as OpenAI's.
        """
        tower = getattr(self.model, "text", self.model)
        norm = getattr(tower, "ln_final", None)
        if (
            norm is None
            or getattr(tower, "attn_mask", None) is None
            or "hf_model_name" in self.model_config["text_cfg"]
        ):
            raise UserError(
                f"CLIP '{self.name}' has no causal text transformer; a pretrained diffusion prior needs one, such as "
                "that of ViT-L-14/openai"
            )
        captured: list[Tensor] = []
        hook = norm.register_forward_hook(lambda module, inputs, output: captured.append(output))
        try:
            tokens = self.tokenizer(texts).to(self.device)
            pooled = self.model.encode_text(tokens, normalize=False)
        finally:
            hook.remove()
        # the end of a text has the highest token number (Radford et al. 2021)
        mask = torch.arange(tokens.shape[1], device=tokens.device) <= tokens.argmax(dim=1, keepdim=True)
        return pooled.float(), captured[0].float(), mask

    def encode_image(self, pictures: Sequence[Image.Image]) -> Tensor:
        """[len(pictures), embedding_dim]"""
        return self.encode_pixels(self.preprocess(pictures))

    def preprocess(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Images preprocessed for `encode_pixels`, on the CPU: [len(pictures), 3, height, width]."""
        self._check_has_image_tower()
        return torch.stack([self.transform(picture.convert("RGB")) for picture in pictures])

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """[batch, 3, height, width] -> [batch, embedding_dim]"""
        self._check_has_image_tower()
        return self.model.encode_image(pixels.to(self.device), normalize=True).float()

    def encode_video(self, frames: Sequence[Image.Image]) -> Tensor:
        """[1, embedding_dim]: the mean of the frames' embeddings, renormalised to unit norm."""
        mean = self.encode_image(frames).mean(dim=0, keepdim=True)
        return mean / mean.norm(dim=-1, keepdim=True)

    def is_too_long(self, text: str) -> bool:
        """Whether `encode_text` would truncate `text`: with a context one token longer, the leading tokens differ."""
        tokens = self.tokenizer([text], context_length=self.context_length)[0]
        wider = self.tokenizer([text], context_length=self.context_length + 1)[0]
        return not torch.equal(tokens, wider[:-1])

    def _check_has_image_tower(self) -> None:
        if self.transform is None:
            raise UserError(f"CLIP '{self.name}' was loaded for texts only; load it without text_only=True")


def _image_transform(model: Any) -> Any:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    return image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)


def _require(folder: Path, *files: str) -> None:
    for file in files:
        if not (folder / file).is_file():
            raise UserError(f"{folder}: not a complete CLIP folder, {file} is missing")
