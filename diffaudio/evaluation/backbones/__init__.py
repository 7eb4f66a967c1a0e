"""Networks to measure with: the bundled YAMNet and tagger, and others from a local folder."""

import json
from pathlib import Path

import torch

from diffaudio.errors import UserError
from diffaudio.evaluation.backbones.base import Backbone, TextBackbone, backbone_info, metric_part, sha256
from diffaudio.models.tagger import bundled_tagger

__all__ = ["DEFAULT", "Backbone", "TextBackbone", "backbone_info", "load_backbone", "metric_part", "sha256"]

DEFAULT = "yamnet"


def load_backbone(name: str | Path, device: torch.device | str = "cpu") -> Backbone:
    """The backbone of a name or folder.

    Args:
        name: "yamnet" or "tagger" for those that come with diffaudio; else a folder with a config.json that says what
            it holds: a tagger of train/tagger.py, a CLAP model of transformers, or by its entry `backbone` vggish,
            panns_cnn14, openl3 or yamnet (each module of this package says what belongs in the folder); else a hub id
            of a CLAP model.

    Raises:
        ValueError: there is no such folder, or it holds something else, or something damaged.
    """
    from diffaudio.evaluation.backbones.clap import Clap  # each of these takes its time to import
    from diffaudio.evaluation.backbones.openl3 import OpenL3
    from diffaudio.evaluation.backbones.panns import PannsCnn14
    from diffaudio.evaluation.backbones.tagger import TaggerBackbone
    from diffaudio.evaluation.backbones.vggish import VGGish
    from diffaudio.evaluation.backbones.yamnet import YAMNet, bundled_yamnet

    if name == "tagger":
        return TaggerBackbone(bundled_tagger(), device)
    folder = bundled_yamnet() if name == DEFAULT else Path(name)
    if not folder.is_dir():
        return Clap(name, device)
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder}: is no backbone, config.json is missing")
    try:
        config = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: is damaged: {error}") from error
    if config.get("_class_name") == "Tagger":
        return TaggerBackbone(folder, device)
    if config.get("model_type") == "clap":
        return Clap(folder, device)
    ports = {"vggish": VGGish, "panns_cnn14": PannsCnn14, "openl3": OpenL3, "yamnet": YAMNet}
    if config.get("backbone") not in ports:
        raise UserError(f"{file}: says neither a tagger nor a CLAP model nor an entry 'backbone' of {', '.join(ports)}")
    return ports[config["backbone"]](folder, config, device)
