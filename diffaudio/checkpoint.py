"""The model folder: a trained model on disk, and loading it with precise error messages.

    model_index.json             names of the parts, and version of this layout
    unet/ autoencoder/ bridge/   config.json, diffusion_pytorch_model.safetensors
    scheduler/                   scheduler_config.json, which includes the U-Net's prediction type
    clip/                        open_clip_config.json, open_clip_model.safetensors, the text tower's own files

The layout resembles diffusers', but is loaded here: `DiffusionPipeline.from_pretrained` downloads from a hub only
parts whose classes belong to diffusers or transformers, and leaves missing weights randomly initialised.
"""

import copy
import json
import shutil
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from diffaudio.atomic_io import atomic_folder
from diffaudio.diffusion.loss import prediction_type
from diffaudio.errors import UserError
from diffaudio.hub import fetch, is_hub_id
from diffaudio.library_loading import read_scheduler
from diffaudio.models.autoencoders import Autoencoder, load_autoencoder
from diffaudio.models.bridge.folder import load_bridge
from diffaudio.models.clip import Clip
from diffaudio.models.unet import UNet1D
from diffaudio.safe_loading import check_folder, load_network, loading_errors, read_json

__all__ = [
    "FORMAT_VERSION",
    "bundled_model",
    "find_model",
    "load_clip",
    "load_coder",
    "load_encoders",
    "load_parts",
    "load_weak_unet",
    "save_parts",
]

FORMAT_VERSION = 1

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_FILES = {
    "unet": ("config.json", _WEIGHTS),
    "scheduler": ("scheduler_config.json",),
    "autoencoder": ("config.json", _WEIGHTS),
    "clip": ("open_clip_config.json", "open_clip_model.safetensors"),
    "bridge": ("config.json", _WEIGHTS),
}


@runtime_checkable
class Quantised(Protocol):
    """An autoencoder that can quantise its latents before decoding, such as `EncodecAutoencoder`."""

    def set_bandwidth(self, bandwidth: float | None) -> None: ...


def bundled_model() -> Path:
    """The folder of the model bundled with diffaudio.

    Raises:
        ValueError: this installation has none.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "checkpoints" / "mini", package.parent / "checkpoints" / "mini"):
        if (folder / "model_index.json").is_file():
            return folder
    raise UserError("this installation of diffaudio comes without a model; name one with --model")


def find_model(model: str | Path, **hub_settings: Any) -> Path:
    """The local folder of a model: the given folder, or a download from the hub.

    Args:
        model: a folder, or a hub id such as `owner/name`.
        hub_settings: arguments of `huggingface_hub.snapshot_download`, such as `revision`, `token`, `local_files_only`.

    Raises:
        ValueError: there is no such folder, or the hub does not have it.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    if not is_hub_id(model):
        raise UserError(f"{model}: there is no such model folder")
    return fetch(model, **hub_settings)


def load_parts(
    folder: Path, dtype: torch.dtype, *, only: Collection[str] = tuple(_FILES), text_only: bool = False
) -> dict[str, Any]:
    """Load the parts of a model.

    Args:
        folder: a folder written by `save_parts`.
        dtype: dtype of the U-Net; the other parts account for little of the run time and stay in float32.
        only: names of the parts to load.
        text_only: load CLIP without its image tower, see `Clip.from_pretrained`.

    Raises:
        ValueError: a file is missing or damaged, or the folder was written by a newer diffaudio.
    """
    _check_index(folder)
    for part, files in _FILES.items():
        for file in files:
            if not (folder / part / file).is_file():
                raise UserError(f"{folder / part}: the model is not complete, {file} is missing")
    loaders = {
        "unet": lambda path: _load_unet(path, dtype),
        "scheduler": _load_scheduler,
        "autoencoder": load_autoencoder,
        "clip": partial(Clip.from_pretrained, text_only=text_only),
        "bridge": load_bridge,
    }
    parts = {}
    for part, load in loaders.items():
        if part not in only:
            continue
        try:
            with loading_errors(folder / part):
                parts[part] = load(folder / part)
        except UserError as error:
            place = "" if str(error).startswith(f"{folder / part}") else f"{folder / part}: cannot be loaded: "
            raise UserError(f"{place}{error}") from error
    return parts


def load_weak_unet(model: str | Path, parts: Mapping[str, Any]) -> UNet1D:
    """Load the U-Net of a weaker model, such as an earlier checkpoint or a smaller one, for autoguidance.

    Args:
        model: folder or hub id.
        parts: parts of the model to guide; its U-Net determines the device and dtype.

    Raises:
        ValueError: the model cannot be loaded, is the same model, or makes predictions that are not comparable.
    """
    strong = next(parts["unet"].parameters())
    folder = find_model(model)
    weak = load_parts(folder, strong.dtype, only=("unet", "scheduler", "autoencoder"))
    clip = read_json(folder / "clip" / "open_clip_config.json").get("name")
    same = {
        "CLIP": clip == parts["clip"].name,
        "autoencoder": _equal_weights(weak["autoencoder"], parts["autoencoder"]),
        "objective": prediction_type(weak["scheduler"].config) == prediction_type(parts["scheduler"].config),
        "noise schedule": torch.equal(_noise_schedule(weak["scheduler"]), _noise_schedule(parts["scheduler"])),
    }
    for what, is_same in same.items():
        if not is_same:
            raise UserError(f"{model}: cannot guide this model, its {what} is another; they must have it in common")
    nn.Module.to(weak["unet"], device=strong.device)
    if _equal_weights(weak["unet"], parts["unet"]):
        raise UserError(
            f"{model}: has no effect as weaker model, its U-Net is the same; name an earlier or smaller one"
        )
    return weak["unet"]


def load_coder(autoencoder: str | Path | None = None, *, bandwidth: float | None = None) -> Autoencoder:
    """Load an autoencoder without the rest of a model.

    Args:
        autoencoder: see `load_autoencoder`; None loads the bundled model's.
        bandwidth: EnCodec's quantisation bandwidth for decoding, in kbit/s.

    Raises:
        ValueError: it does not exist or cannot be loaded, or does not support this bandwidth.
    """
    coder = load_autoencoder(bundled_model() / "autoencoder" if autoencoder is None else autoencoder)
    if bandwidth is not None:
        if not isinstance(coder, Quantised):
            raise UserError(f"bandwidth {bandwidth:g} has no effect: {coder.name} does not quantise, only EnCodec does")
        coder.set_bandwidth(bandwidth)
    return coder


def load_encoders(
    model: str | Path | None, *, autoencoder: str | Path | None = None, clip: str | None = None
) -> tuple[Autoencoder, Clip]:
    """Load the autoencoder and CLIP, which turn clips into latents and embeddings.

    Args:
        model: the model folder or hub id to load them from; None is the bundled model.
        autoencoder: a folder or hub id to load the autoencoder from instead, see `load_autoencoder`.
        clip: replaces the model's CLIP: a folder, an `hf-hub:` id, or an open_clip name and tag such as
            `ViT-B-32/openai`.

    Raises:
        ValueError: a part does not exist or cannot be loaded.
    """
    if autoencoder is None or clip is None:
        folder = find_model(model or bundled_model())
        _check_index(folder)
        autoencoder, clip = autoencoder or folder / "autoencoder", clip or str(folder / "clip")
    elif model is not None:
        raise UserError("--model has no effect beside both --autoencoder and --clip; leave one of the three out")
    return load_autoencoder(autoencoder), load_clip(clip)


def load_clip(clip: str) -> Clip:
    """Load a CLIP by its command-line name: a folder, an `hf-hub:` id, or name and tag such as `ViT-B-32/openai`.

    Raises:
        ValueError: it does not exist or cannot be loaded.
    """
    if Path(clip).is_dir() or clip.startswith("hf-hub:"):
        return Clip.from_pretrained(clip)
    name, _, tag = clip.partition("/")
    return Clip.from_pretrained(name, tag or None)


def save_parts(folder: Path, parts: dict[str, Any], *, dtype: torch.dtype | None = None) -> None:
    """Write a model folder atomically. An existing one is replaced, except for files that are not part of a model.

    Args:
        folder: a new or empty folder, or a model folder; a symbolic link is followed.
        parts: unet, scheduler, autoencoder, clip, bridge.
        dtype: dtype of the U-Net's, CLIP's and the bridges' weights on disk; None keeps their current dtypes.

    Raises:
        ValueError: the folder contains something other than a model.
    """
    folder = folder.resolve()
    _check_replaceable(folder)
    index: dict[str, Any] = {"_class_name": "DiffAudioPipeline", "_diffaudio_version": FORMAT_VERSION}
    with atomic_folder(folder) as temporary:
        for name, part in parts.items():
            index[name] = [type(part).__module__.split(".")[0], type(part).__name__]
            if dtype is not None and name in ("unet", "clip", "bridge"):
                part = copy.deepcopy(part)
                for network in (part, *getattr(part, "alternatives", {}).values()):
                    if isinstance(network, nn.Module):  # and not the folder of a bridge that is not loaded
                        nn.Module.to(network, dtype=dtype)  # diffusers' own `to` warns without cause
            part.save_pretrained(temporary / name)
            _forget_origin(temporary / name / "config.json")
        (temporary / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        _keep_other_files(folder, temporary)


def _check_replaceable(folder: Path) -> None:
    if folder.is_file():
        raise UserError(f"{folder}: is a file; name a folder for the model")
    if folder.is_dir() and any(folder.iterdir()):
        try:
            _check_index(folder)
        except UserError as error:
            raise UserError(
                f"{folder}: holds something that is no model of diffaudio; name a new or empty folder"
            ) from error


def _keep_other_files(old: Path, new: Path) -> None:
    """Copy files in a model folder that are not part of the model, such as a README or notes."""
    for path in old.rglob("*"):
        place = path.relative_to(old)
        is_ours = (place.parts[0] in _FILES and path.suffix in (".json", ".safetensors", ".txt")) or (
            new / place
        ).exists()
        if is_ours or (path.is_dir() and not path.is_symlink()):
            continue
        (new / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, new / place, follow_symlinks=False)


def _noise_schedule(scheduler: Any) -> torch.Tensor:
    """alpha^2 by timestep; empty for flow matching, whose schedule is always the same."""
    return getattr(scheduler, "alphas_cumprod", torch.empty(0))


def _equal_weights(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name].to(b[name].device), b[name]) for name in a)


def _forget_origin(config_file: Path) -> None:
    """Remove the path that diffusers records for where a part was loaded from: it has no meaning elsewhere."""
    if config_file.is_file():
        config = json.loads(config_file.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None):
            config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _check_index(folder: Path) -> None:
    file = folder / "model_index.json"
    if not file.is_file():
        raise UserError(f"{folder}: not a model folder, model_index.json is missing")
    check_folder(folder)
    index = read_json(file)
    name, version = index.get("_class_name"), index.get("_diffaudio_version")
    if name != "DiffAudioPipeline":
        raise UserError(f"{file}: holds a '{name}', not a model of diffaudio (DiffAudioPipeline)")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise UserError(
            f"{file}: format version {version}; this diffaudio reads up to {FORMAT_VERSION}, a newer one is needed"
        )


def _load_unet(folder: Path, dtype: torch.dtype) -> UNet1D:
    unet = load_network(UNet1D, folder)
    nn.Module.to(unet, dtype=dtype)  # diffusers' own `to` warns without cause
    return unet


def _load_scheduler(folder: Path) -> Any:
    check_folder(folder)
    scheduler = read_scheduler(folder / "scheduler_config.json")
    prediction_type(scheduler.config)  # raises an error for an unknown prediction type
    return scheduler
