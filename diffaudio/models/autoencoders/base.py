"""The interface that every autoencoder keeps, and loading one by the name in its config.

waveform  [batch, channels, samples], float32 in [-1, 1]
latents   [batch, latent_channels, frames], mean 0 and deviation 1 over the corpus it was made on
"""

import importlib
import json
import math
from pathlib import Path

from diffusers import ConfigMixin, ModelMixin
from torch import Tensor

__all__ = ["AUTOENCODERS", "Autoencoder", "load_autoencoder"]

# class name in config.json -> the module that holds it
AUTOENCODERS = {"SpectralAutoencoder": "diffaudio.models.autoencoders.spectral"}


class Autoencoder(ModelMixin, ConfigMixin):
    """Waveform <-> latents.

    Attributes:
        name: goes into corpora, so that latents of different makers are never mixed.
        sample_rate: in Hz.
        audio_channels: 1 or 2.
        latent_channels: width of the latents.
        latent_rate: latent frames a second.
    """

    config_name = "config.json"
    name: str
    sample_rate: int
    audio_channels: int
    latent_channels: int
    latent_rate: float

    def encode(self, waveform: Tensor) -> Tensor:
        """[batch, audio_channels, samples] -> [batch, latent_channels, frames]; the end is padded with silence."""
        raise NotImplementedError

    def decode(self, latents: Tensor, *, num_samples: int | None = None) -> Tensor:
        """[batch, latent_channels, frames] -> [batch, audio_channels, samples], cut to `num_samples` where given."""
        raise NotImplementedError

    def num_latent_frames(self, duration_s: float) -> int:
        """How many latent frames hold `duration_s` seconds."""
        return max(1, math.ceil(round(duration_s * self.latent_rate, 6)))


def load_autoencoder(folder: str | Path) -> Autoencoder:
    """Load whichever autoencoder a folder holds.

    Raises:
        ValueError: no folder, no config.json in it, or a class that is unknown here.
    """
    config_file = Path(folder) / "config.json"
    if not config_file.is_file():
        raise ValueError(f"{folder}: not an autoencoder folder, config.json is missing")
    name = json.loads(config_file.read_text(encoding="utf-8")).get("_class_name")
    if name not in AUTOENCODERS:
        raise ValueError(f"{config_file}: autoencoder '{name}' is unknown; choose from {', '.join(AUTOENCODERS)}")
    return getattr(importlib.import_module(AUTOENCODERS[name]), name).from_pretrained(folder)
