"""The CLIP that training starts from: a sentence encoder and an image tower, as a folder in open_clip's format."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import timm
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from diffaudio.atomic_io import atomic_folder
from diffaudio.errors import UserError
from diffaudio.models.clip import Clip
from diffaudio.training.clip.vocabulary import prune_vocabulary, words_for_things

__all__ = [
    "CONTEXT_LENGTH",
    "TIMM_WEIGHTS",
    "load_classifier",
    "save_model",
    "write_initial_folder",
]

CONTEXT_LENGTH = 64  # tokens
TIMM_WEIGHTS = "timm"  # as `image_weights`: those that timm downloads for the model's name


def load_classifier(model: str, weights: str | None) -> Any:
    """A timm classifier with pretrained weights, or with random ones where `weights` is None.

    Args:
        model: timm's name, with a tag where it has several weights ("tf_efficientnet_lite0.in1k").
        weights: `TIMM_WEIGHTS`, or a safetensors file with timm's own keys, or a folder with model.safetensors.

    Raises:
        ValueError: the model is unknown, or the weights are missing or those of another model.
    """
    if not timm.is_model(model):
        raise UserError(f"image_model '{model}' is not a model of timm's; timm.list_models() names them")
    if weights is None or weights == TIMM_WEIGHTS:
        return timm.create_model(model, pretrained=weights is not None)
    path = Path(weights) / "model.safetensors" if Path(weights).is_dir() else Path(weights)
    if not path.is_file():
        raise UserError(f"image_weights: {path} is missing; give a safetensors file, its folder, or '{TIMM_WEIGHTS}'")
    classifier: Any = timm.create_model(model)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"image_weights: {path} cannot be read as safetensors: {error}") from None
    try:
        classifier.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"image_weights: {path} does not hold the weights of timm's {model}: {first}") from None
    return classifier


def write_initial_folder(
    folder: Path,
    *,
    text_model: Path,
    texts: list[Path],
    vocabulary_size: int,
    image_model: str,
    image_weights: str | None,
    image_size: int,
) -> None:
    """Write the model before training: the pruned sentence encoder, and an image tower with a random projection.

    Raises:
        ValueError: a file of the text model is missing, or the image tower cannot be loaded.
    """
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        if not (text_model / file).is_file():
            raise UserError(f"text_model: {text_model} is not the folder of a sentence encoder, {file} is missing")
    prune_vocabulary(
        text_model, folder, texts=texts, filler=words_for_things(), size=vocabulary_size, max_positions=CONTEXT_LENGTH
    )
    classifier = load_classifier(image_model, image_weights)
    model_config: dict[str, Any] = {
        "embed_dim": json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"],
        "vision_cfg": {
            "timm_model_name": image_model,
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": image_size,
        },
        "text_cfg": {
            "hf_model_name": ".",
            "hf_tokenizer_name": ".",
            "hf_model_pretrained": False,
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": None,
            "context_length": CONTEXT_LENGTH,
        },
        "custom_text": True,
    }
    text_config = model_config["text_cfg"] | {"hf_model_name": str(folder.resolve()), "hf_model_pretrained": True}
    pretrained = classifier.pretrained_cfg
    open_clip_config = {
        "name": f"{image_model}-{text_model.name}",
        "model_cfg": model_config,
        "preprocess_cfg": {
            "mean": list(pretrained["mean"]),
            "std": list(pretrained["std"]),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }
    (folder / "open_clip_config.json").write_text(json.dumps(open_clip_config, indent=2), encoding="utf-8")
    model: Any = open_clip.create_model(f"local-dir:{folder}", text_cfg=text_config, load_weights=False)
    classifier.reset_classifier(0, global_pool="avg")
    model.visual.trunk.load_state_dict(classifier.state_dict())
    (folder / "model.safetensors").unlink()  # the sentence encoder's own file; its weights are in the model's now
    write_weights(model, folder)


def write_weights(model: nn.Module, folder: Path) -> None:
    """Write open_clip_model.safetensors in half precision."""
    halves = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(halves, folder / "open_clip_model.safetensors")


def save_model(clip: Clip, initial: Path, target: Path) -> None:
    """Write the folder for inference: what `initial` says, with the weights as they are now.

    The name ends in a digest of the weights, so that a corpus encoded by one training run is not taken for that of
    another.
    """
    with atomic_folder(target) as folder:
        for file in initial.iterdir():
            if file.name != "open_clip_model.safetensors":
                shutil.copy(file, folder)
        write_weights(clip.model, folder)
        digest = hashlib.sha256((folder / "open_clip_model.safetensors").read_bytes()).hexdigest()[:8]
        path = folder / "open_clip_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["name"] = f"{config['name'].split('@')[0]}@{digest}"
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")
