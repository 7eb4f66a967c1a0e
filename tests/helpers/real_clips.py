"""CLIPs of the architectures that people use, one layer high, with random weights and local tokenizers."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

__all__ = ["NAMES", "write_real_clips"]

NAMES = ("ViT-B-32", "SigLIP", "Hugging Face")


def write_real_clips(base: Path, tiny_clip: Path) -> dict[str, Path]:
    """CLIPSonic's ViT-B-32, a SigLIP whose padding is also its end of text, and a Hugging Face text tower.

    Args:
        base: folder to put theirs into.
        tiny_clip: made by `write_tiny_clip`; gives the tokenizer.
    """
    sep = tokenizer_with_padding(base / "sep", tiny_clip, "[SEP]")
    mask = tokenizer_with_padding(base / "mask", tiny_clip, "[MASK]")
    vit = short_tower("ViT-B-32")
    siglip = short_tower("ViT-B-16-SigLIP", hf_tokenizer_name=".", vocab_size=200)
    hugging = json.loads((tiny_clip / "open_clip_config.json").read_text())["model_cfg"]
    squash = {"size": 224, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    return {
        "ViT-B-32": as_folder(base / "vit", "ViT-B-32/random", vit, {}, base / "none"),
        "SigLIP": as_folder(base / "siglip", "ViT-B-16-SigLIP/random", siglip, squash, sep),
        "Hugging Face": as_folder(base / "hugging", "hugging/random", hugging, {}, mask),
    }


def short_tower(name: str, **text: object) -> dict[str, Any]:
    """The configuration of a real CLIP with one layer in each tower, so that random weights take a moment."""
    config = copy.deepcopy(open_clip.get_model_config(name))
    assert config is not None
    config["vision_cfg"] |= {"layers": 1} if "layers" in config["vision_cfg"] else {"timm_model_name": "test_vit"}
    if config["vision_cfg"].get("timm_model_name") == "test_vit":
        config["embed_dim"] = 64  # the width of that tower, which has no projection
    config["text_cfg"] |= {"layers": 1} | text
    return config


def as_folder(folder: Path, name: str, config: dict[str, Any], preprocess: dict[str, Any], tokenizer: Path) -> Path:
    """Random weights of a model as a CLIP folder with a local tokenizer."""
    folder.mkdir()
    for file in tokenizer.glob("*.json"):
        if file.name != "open_clip_config.json":
            shutil.copy(file, folder)
    index = {"name": name, "model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(index))
    text = config["text_cfg"]
    if "hf_model_name" in text:
        text = text | {"hf_model_name": str(folder.resolve()), "hf_model_pretrained": False}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(f"local-dir:{folder}", text_cfg=text, load_weights=False)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def tokenizer_with_padding(folder: Path, source: Path, pad: str) -> Path:
    """The tiny CLIP's tokenizer, padding with another token than the one with number 0."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"pad_token": pad}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    pieces = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    model = json.loads((folder / "config.json").read_text()) | {"pad_token_id": pieces[pad]}
    (folder / "config.json").write_text(json.dumps(model))
    return folder
