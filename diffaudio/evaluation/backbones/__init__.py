"""Networks to measure with: the bundled YAMNet and tagger, and others from a file as published or a local folder."""

import json
from pathlib import Path
from typing import Any

import torch

from diffaudio.errors import UserError
from diffaudio.evaluation.backbones.base import Backbone, TextBackbone, backbone_info, metric_part, sha256
from diffaudio.evaluation.backbones.published import PUBLISHED_SUFFIXES, read_published
from diffaudio.hub import is_hub_id
from diffaudio.models.tagger import bundled_tagger

__all__ = ["DEFAULT", "Backbone", "TextBackbone", "backbone_info", "load_backbone", "metric_part", "sha256"]

DEFAULT = "yamnet"

# A weight that only this network's file has, in its PyTorch port's names.
SIGNATURES = {
    "vggish": "features.0.weight",
    "panns_cnn14": "fc_audioset.weight",
    "openl3": "audio_embedding_layer.weight",
}


def load_backbone(name: str | Path, device: torch.device | str = "cpu") -> Backbone:
    """The backbone of a name, file or folder.

    Args:
        name: "yamnet" or "tagger" for those that come with diffaudio; or a file as its authors publish it: VGGish,
            PANNs' Cnn14 or CLAP (.pth, .pt), OpenL3 (.h5), musicnn (mtt.npz, msd.npz); or a folder with a config.json
            that says what it holds: a tagger of train/tagger.py, a CLAP model of transformers, or by its entry
            `backbone` vggish, panns_cnn14, openl3 or yamnet, with the published file or model.safetensors beside it;
            or a hub id of a CLAP model.

    Raises:
        ValueError: there is no such file or folder, or it holds something else, or something damaged.
    """
    from diffaudio.evaluation.backbones.clap import Clap  # each of these takes its time to import
    from diffaudio.evaluation.backbones.tagger import TaggerBackbone
    from diffaudio.evaluation.backbones.yamnet import bundled_yamnet

    if name == "tagger":
        return TaggerBackbone(bundled_tagger(), device)
    folder = bundled_yamnet() if name == DEFAULT else Path(name)
    if folder.is_file():
        return _load_file(folder, device)
    if not folder.is_dir():
        if not is_hub_id(name):
            published = "; name its published file" if str(name) in (*SIGNATURES, "clap", "musicnn", "panns") else ""
            raise UserError(
                f"{name}: there is no such backbone, file or folder{published}; bundled are yamnet and tagger"
            )
        return Clap(name, device)
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder}: is no backbone, config.json is missing; name the file of published weights itself")
    try:
        config = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: is damaged: {error}") from error
    if config.get("_class_name") == "Tagger":
        return TaggerBackbone(folder, device)
    if config.get("model_type") == "clap":
        return Clap(folder, device)
    if config.get("backbone") not in _networks():
        names = ", ".join(_networks())
        raise UserError(f"{file}: says neither a tagger nor a CLAP model nor an entry 'backbone' of {names}")
    return _networks()[config["backbone"]](_weights_in(folder), config, device)


def _networks() -> dict[str, Any]:
    from diffaudio.evaluation.backbones.openl3 import OpenL3
    from diffaudio.evaluation.backbones.panns import PannsCnn14
    from diffaudio.evaluation.backbones.vggish import VGGish
    from diffaudio.evaluation.backbones.yamnet import YAMNet

    return {"vggish": VGGish, "panns_cnn14": PannsCnn14, "openl3": OpenL3, "yamnet": YAMNet}


def _weights_in(folder: Path) -> Path:
    """model.safetensors, or the one published file of a folder."""
    published = sorted(path for path in folder.iterdir() if path.suffix in PUBLISHED_SUFFIXES and path.is_file())
    safe = folder / "model.safetensors"
    if safe.is_file() or not published:
        return safe
    if len(published) > 1:
        names = ", ".join(path.name for path in published)
        raise UserError(f"{folder}: holds several files of weights ({names}); leave one, or name the file itself")
    return published[0]


def _load_file(file: Path, device: torch.device | str) -> Backbone:
    """The backbone of a published file, by what it holds."""
    from diffaudio.evaluation.backbones.clap_laion import is_laion_clap, load_laion_clap
    from diffaudio.evaluation.backbones.musicnn import MusicnnBackbone

    if file.suffix == ".npz":
        return MusicnnBackbone(file, {}, device)
    if file.suffix not in PUBLISHED_SUFFIXES:
        readable = ", ".join((*PUBLISHED_SUFFIXES, ".npz"))
        raise UserError(f"{file}: is no file of published weights that is known; those end in {readable}")
    tensors = read_published(file)
    if is_laion_clap(set(tensors)):
        return load_laion_clap(file, tensors, device)
    for name, signature in SIGNATURES.items():
        if signature in tensors:
            return _networks()[name](file, _described_by_name(file) if name == "openl3" else {}, device)
    raise UserError(f"{file}: its weights are none of {', '.join(SIGNATURES)} and CLAP; first of them: {min(tensors)}")


def _described_by_name(file: Path) -> dict[str, Any]:
    """What the name of an OpenL3 file says of it, such as openl3_audio_mel256_env.h5."""
    words = metric_part(file.stem).split("_")
    if other := {"linear", "mel128"} & set(words):
        raise UserError(f"{file}: is OpenL3 for {other.pop()} spectrograms; take that for mel256")
    content = next((word for word in words if word in ("env", "music")), None)
    return {"content_type": content, "embedding_size": 6144 if "6144" in words else 512}
