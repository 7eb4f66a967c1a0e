"""Loading a CLIP from a folder in open_clip's format: which keys its configs may contain, and the text tower alone.

A folder from an unknown source must not decide that open_clip, timm or transformers run code (`tokenizer_kwargs`),
fetch pretrained towers from a hub, or read files elsewhere; all keys that are not listed here are refused.

Importing open_clip takes longer than generating a sound: it imports timm, torchvision and a part of transformers that
imports torch._dynamo. A CLIP that only encodes texts needs none of them if its text tower is BERT (`bert.py`).
"""

import dataclasses
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from diffaudio.errors import UserError
from diffaudio.library_loading import (
    LIBRARY_SLACK,
    check_range,
    check_tokenizer,
    check_transformers_config,
    refuse_adapter,
)
from diffaudio.models.clip.bert import BertConfig, BertTextTower, BertTokenizer
from diffaudio.safe_loading import (
    Weights,
    build_within,
    check_folder,
    check_keys,
    load_weights,
    loading_errors,
    read_json,
    refuse_remote_code,
)

__all__ = ["TextTower", "check_open_clip_config", "load_open_clip"]

SOURCE_PACKAGE = "_diffaudio_open_clip"
MAX_IMAGE_SIZE = 4096
MAX_CONTEXT_LENGTH = 65536

MODEL_KEYS = {
    "embed_dim", "vision_cfg", "text_cfg", "custom_text", "quick_gelu", "init_logit_scale", "init_logit_bias",
    "nonscalar_logit_scale",
}  # fmt: skip
# Fields of open_clip's CLIPVisionCfg, CLIPTextCfg and PreprocessCfg, listed so that they are checked without importing
# them; a test compares the lists with the classes.
VISION_KEYS = {
    "act_kwargs", "attentional_pool", "attn_pooler_heads", "attn_pooler_queries", "block_type", "final_ln_after_pool",
    "head_width", "image_size", "layers", "ls_init_value", "mlp_ratio", "no_ln_pre", "norm_kwargs", "output_tokens",
    "patch_dropout", "patch_size", "pool_type", "pos_embed_type", "qk_norm", "scale_attn", "scale_attn_inner",
    "scale_fc", "scale_heads", "scaled_cosine_attn", "timm_drop", "timm_drop_path", "timm_model_name",
    "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "width",
}  # fmt: skip
TEXT_KEYS = {
    "act_kwargs", "block_type", "context_length", "embed_cls", "eos_id", "final_ln_after_pool", "heads",
    "hf_model_name", "hf_model_pretrained", "hf_pooler_type", "hf_proj_type", "hf_tokenizer_name", "layers",
    "ls_init_value", "mlp_ratio", "no_causal_mask", "norm_kwargs", "output_tokens", "pad_id", "pool_type", "proj_bias",
    "proj_type", "qk_norm", "scale_attn", "scale_attn_inner", "scale_fc", "scale_heads", "scaled_cosine_attn",
    "tokenizer_kwargs", "tokenizer_mode", "vocab_size", "width",
}  # fmt: skip
PREPROCESSING_KEYS = {"fill_color", "interpolation", "mean", "mode", "resize_mode", "size", "std"}
TOKENIZER_ARGUMENTS = {"clean": (str, type(None)), "strip_sep_token": (bool,)}  # those that open_clip handles itself


class TextTower(nn.Module):
    """The text half of an open_clip model, computing what its `encode_text` computes."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text = text

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        features = self.text(tokens)
        return F.normalize(features, dim=-1) if normalize else features


def load_open_clip(folder: Path, *, text_only: bool = False) -> tuple[Any, Any, dict[str, Any]]:
    """Read a CLIP from a folder in open_clip's format: open_clip_config.json, open_clip_model.safetensors, tokenizer.

    Args:
        text_only: leave out the image tower, if the text tower is a BERT; others are built as a whole.

    Returns:
        The network, float32 on the CPU; its tokenizer; and the content of open_clip_config.json.

    Raises:
        UserError: names the file and what is wrong with it.
    """
    file = folder / "open_clip_config.json"
    content = read_json(file)
    check_folder(folder)
    refuse_adapter(folder)
    config, preprocessing = content.get("model_cfg"), content.get("preprocess_cfg") or {}
    if not isinstance(config, dict) or not isinstance(preprocessing, dict):
        raise UserError(f"{file}: model_cfg is missing, or preprocess_cfg holds no settings")
    check_open_clip_config(config, file)
    _check_preprocessing(preprocessing, file)
    text = dict(config["text_cfg"])
    bert = None
    if text.get("hf_model_name"):
        text_config = check_transformers_config(folder / "config.json", set(_source_module("hf_configs").arch_dict))
        if text_only and text.get("hf_pooler_type") == "mean_pooler" and not text.get("output_tokens"):
            bert = BertConfig.read(text_config)
        text |= {"hf_model_name": str(folder.resolve()), "hf_model_pretrained": False}
    weights = Weights.of(folder, "open_clip_model")
    if bert is None:
        network = _build_network(config | {"text_cfg": text}, preprocessing, weights, file)
    else:
        network = _build_text_tower(bert, config, weights, file)
    with loading_errors(folder):
        return network, _load_tokenizer(folder, text, light=bert is not None), content


def _build_network(config: dict[str, Any], preprocessing: dict[str, Any], weights: Weights, file: Path) -> Any:
    from open_clip.model import CLIP, CustomTextCLIP, set_model_preprocess_cfg
    from open_clip.transform import PreprocessCfg

    settings = dict(config)
    has_own_text_tower = settings.pop("custom_text", False) or config["text_cfg"].get("hf_model_name")
    with loading_errors(file), build_within(weights, file, slack=LIBRARY_SLACK):
        network: Any = (CustomTextCLIP if has_own_text_tower else CLIP)(**settings)
    load_weights(network, weights)
    with loading_errors(file.parent):
        preprocessing = dataclasses.asdict(PreprocessCfg()) | preprocessing
        preprocessing["size"] = getattr(network.visual, "image_size", None) or preprocessing["size"]
        set_model_preprocess_cfg(network, preprocessing)
    return network


def _build_text_tower(bert: BertConfig, config: dict[str, Any], weights: Weights, file: Path) -> TextTower:
    with loading_errors(file), build_within(weights, file, slack=LIBRARY_SLACK):
        network = TextTower(BertTextTower(bert, config["embed_dim"], config["text_cfg"].get("hf_proj_type")))
    load_weights(network, weights, ignored=("visual.", "logit_scale", "logit_bias"))
    return network


def _load_tokenizer(folder: Path, text: dict[str, Any], *, light: bool) -> Any:
    tokenizers = _source_module("tokenizer")
    length, arguments = text.get("context_length", 77), text.get("tokenizer_kwargs") or {}
    if not text.get("hf_tokenizer_name"):
        return tokenizers.SimpleTokenizer(context_length=length, **arguments)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # without them, transformers makes one that knows no word
        if not (folder / name).is_file():
            raise UserError(f"{folder}: not a complete CLIP folder, {name} is missing")
    check_tokenizer(folder)
    if light and not arguments and not text.get("tokenizer_mode"):
        tokenizer = BertTokenizer.read(folder, length, tokenizers.get_clean_fn("whitespace"))
        if tokenizer is not None:
            return tokenizer
    return tokenizers.HFTokenizer(
        str(folder),
        context_length=length,
        tokenizer_mode=text.get("tokenizer_mode"),
        trust_remote_code=False,
        local_files_only=True,
        **arguments,
    )


def _source_module(name: str) -> Any:
    """The module open_clip.`name`; before open_clip is imported, its source file as a module of a package of our own.

    Only for modules that import nothing else of open_clip.
    """
    if "open_clip" in sys.modules:
        return importlib.import_module(f"open_clip.{name}")
    if SOURCE_PACKAGE not in sys.modules:
        spec = importlib.util.find_spec("open_clip")
        if spec is None:
            raise ModuleNotFoundError("open_clip is not installed", name="open_clip")
        package = ModuleType(SOURCE_PACKAGE)
        package.__path__ = list(spec.submodule_search_locations or ())
        sys.modules[SOURCE_PACKAGE] = package
    return importlib.import_module(f"{SOURCE_PACKAGE}.{name}")


def check_open_clip_config(config: dict[str, Any], file: Path | str, *, local: bool = True) -> None:
    """Check the config from which open_clip is to build a CLIP, its `model_cfg`.

    Args:
        config: with vision_cfg and text_cfg.
        file: where it is from, for the message.
        local: whether it is from a folder, and so may not name a tower or tokenizer elsewhere; the configs of
            open_clip itself, and of the hub, name those of the Hugging Face hub.

    Raises:
        UserError: names the key that is refused, and why.
    """
    refuse_remote_code(config, file)
    check_keys(config, MODEL_KEYS, file, "model_cfg: ")
    for part, known in (("vision_cfg", VISION_KEYS), ("text_cfg", TEXT_KEYS)):
        settings = config.get(part)
        if not isinstance(settings, dict):
            raise UserError(f"{file}: model_cfg: {part} is missing")
        check_keys(settings, known, file, f"model_cfg: {part}: ")
    _check_vision(config["vision_cfg"], file)
    text = config["text_cfg"]
    for key in ("hf_model_name", "hf_tokenizer_name"):
        if local and text.get(key) not in (None, "", "."):
            raise UserError(f"{file}: {key} is {text[key]!r}; in a folder it may only be '.', the folder itself")
    if local and text.get("hf_model_name") and text.get("hf_model_pretrained"):
        raise UserError(f"{file}: hf_model_pretrained is refused: the weights of the text tower are in the folder")
    check_range(text, "context_length", MAX_CONTEXT_LENGTH, file)
    arguments = text.get("tokenizer_kwargs") or {}
    if not isinstance(arguments, dict):
        raise UserError(f"{file}: tokenizer_kwargs is {arguments!r}; expected settings by name")
    for key, value in arguments.items():
        if key not in TOKENIZER_ARGUMENTS or not isinstance(value, TOKENIZER_ARGUMENTS[key]):
            raise UserError(f"{file}: tokenizer_kwargs: {key} is refused; allowed: {', '.join(TOKENIZER_ARGUMENTS)}")


def _check_vision(vision: dict[str, Any], file: Path | str) -> None:
    if vision.get("timm_model_pretrained"):
        raise UserError(f"{file}: timm_model_pretrained is refused: the weights of the image tower are in the folder")
    name = vision.get("timm_model_name")
    if name is not None and not (isinstance(name, str) and re.fullmatch(r"\w+(\.\w+)?", name)):
        raise UserError(f"{file}: timm_model_name is {name!r}; only names of timm's own models are allowed")
    _check_image_size(vision, "image_size", file)


def _check_preprocessing(config: dict[str, Any], file: Path | str) -> None:
    """Check how open_clip is to preprocess images, its `preprocess_cfg`."""
    check_keys(config, PREPROCESSING_KEYS, file, "preprocess_cfg: ")
    _check_image_size(config, "size", file)


def _check_image_size(config: dict[str, Any], key: str, file: Path | str) -> None:
    size = config.get(key, 224)
    for side in size if isinstance(size, list) else [size]:
        check_range({key: side}, key, MAX_IMAGE_SIZE, file)
