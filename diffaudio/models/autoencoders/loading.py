"""Loading an autoencoder by folder or hub id: one of ours, or one in the format of the library it comes from.

    facebook/encodec_24khz, facebook/encodec_48khz       config.json, model.safetensors
    cvssp/audioldm, cvssp/audioldm2                      vae/ (AutoencoderKL) and vocoder/ (SpeechT5HifiGan)
    a Kandinsky 6 pipeline                               audio_vae/ (MMAudioVAE) and vocoder/ (MMAudioVocoder)
    stabilityai/stable-audio-open-1.0                    vae/ (AutoencoderOobleck)
    a model of ours                                      autoencoder/

Only the name of the class is taken from a folder, and looked up here; neither code nor pickles of a checkpoint are run.
"""

import importlib
from pathlib import Path
from typing import Any

from diffaudio.errors import UserError
from diffaudio.hub import fetch, is_hub_id
from diffaudio.models.autoencoders.base import Autoencoder
from diffaudio.safe_loading import load_network, loading_errors, read_json

__all__ = ["AUTOENCODERS", "load_autoencoder", "size_on_disk"]

# our class -> its module
AUTOENCODERS = {
    "SpectralAutoencoder": "diffaudio.models.autoencoders.spectral",
    "EncodecAutoencoder": "diffaudio.models.autoencoders.adapters.encodec",
    "MelVAEAutoencoder": "diffaudio.models.autoencoders.adapters.mel_vae",
    "MMAudioAutoencoder": "diffaudio.models.autoencoders.adapters.mmaudio",
    "OobleckAutoencoder": "diffaudio.models.autoencoders.adapters.oobleck",
}

# a library's class -> our adapter for it, and the vocoder that it needs
LIBRARIES: dict[str, tuple[str, str | None]] = {
    "EncodecModel": ("EncodecAutoencoder", None),
    "AutoencoderKL": ("MelVAEAutoencoder", "SpeechT5HifiGan"),
    "MMAudioVAE": ("MMAudioAutoencoder", "MMAudioVocoder"),
    "AutoencoderOobleck": ("OobleckAutoencoder", None),
}


def load_autoencoder(model: str | Path) -> Autoencoder:
    """Load an autoencoder.

    Args:
        model: folder or hub id of an autoencoder, or of a model that contains one in a subfolder.

    Raises:
        ValueError: it does not exist, its class is unknown, a part or weights are missing, or the weights are not
            safetensors.
    """
    folder, name, parts = _find(model)
    if name not in LIBRARIES:
        return load_network(_ours(name), parts[0]).requires_grad_(False)
    try:
        with loading_errors(folder):
            return _ours(LIBRARIES[name][0]).from_library(*parts)
    except UserError as error:
        place = "" if str(error).startswith(str(folder)) else f"{folder}: cannot be loaded as {name}: "
        raise UserError(f"{place}{error}") from error


def size_on_disk(model: str | Path) -> int:
    """Size of the weights that `load_autoencoder` reads, in bytes.

    Raises:
        ValueError: see `load_autoencoder`.
    """
    return sum(file.stat().st_size for part in _find(model)[2] for file in part.glob("*.safetensors"))


def _find(model: str | Path) -> tuple[Path, str, list[Path]]:
    """The folder of a model, downloaded if it is a hub id; its autoencoder's class; and the folders of its parts."""
    folder = Path(model) if Path(model).exists() or not is_hub_id(model) else fetch(model, ["*config.json"])
    networks = _networks(folder)
    found = [name for name in networks if name in AUTOENCODERS or name in LIBRARIES]
    if len(found) != 1:
        what = (
            f"several autoencoders, {', '.join(found)}; name the folder of one" if found else "no autoencoder of ours"
        )
        raise UserError(f"{folder}: holds {what}")
    vocoder = LIBRARIES.get(found[0], (None, None))[1]
    parts = [networks[found[0]]]
    if vocoder is not None:
        if vocoder not in networks:
            raise UserError(
                f"{folder}: holds an {found[0]} without its vocoder; name the folder that holds both in folders of "
                f"their own, the vocoder a {vocoder}"
            )
        parts.append(networks[vocoder])
    if not Path(model).exists():
        places = [part.relative_to(folder).as_posix() for part in parts]
        patterns = ["*.safetensors*" if place == "." else f"{place}/*.safetensors*" for place in places]
        fetch(model, patterns)
    return folder, found[0], parts


def _ours(name: str) -> Any:
    return getattr(importlib.import_module(AUTOENCODERS[name]), name)


def _networks(folder: Path) -> dict[str, Path]:
    """Class name -> folder, of the network in this folder, or of those in its subfolders."""
    here = folder / "config.json"
    if here.is_file():
        name = _class_name(here)
        if name not in AUTOENCODERS and name not in LIBRARIES:
            choices = ", ".join([*AUTOENCODERS, *LIBRARIES])
            raise UserError(f"{here}: autoencoder '{name}' is unknown; choose from {choices}")
        return {name: folder}
    files = sorted(folder.glob("*/config.json"))
    if not files:
        raise UserError(f"{folder}: not an autoencoder folder, config.json is missing")
    return {_class_name(file): file.parent for file in files}


def _class_name(config_file: Path) -> str:
    """The class name in a config, as diffusers and we write it, or as transformers does."""
    config = read_json(config_file)
    architectures = config.get("architectures")
    return str(config.get("_class_name") or (architectures[0] if isinstance(architectures, list) else "?"))
