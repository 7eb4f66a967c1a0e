"""The interface that every autoencoder keeps.

waveform  [batch, channels, samples], float32 in [-1, 1]
latents   [batch, latent_channels, frames], mean 0 and deviation 1 over the corpus it was made on
"""

import math

from diffusers import ConfigMixin, ModelMixin
from torch import Tensor

__all__ = ["Autoencoder"]


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
        """[batch, audio_channels, samples] -> [batch, latent_channels, frames]; the end is padded to a whole frame."""
        raise NotImplementedError

    def decode(self, latents: Tensor, *, num_samples: int | None = None) -> Tensor:
        """[batch, latent_channels, frames] -> [batch, audio_channels, samples], cut to `num_samples` where given."""
        raise NotImplementedError

    def num_latent_frames(self, duration_s: float) -> int:
        """How many latent frames hold `duration_s` seconds."""
        return max(1, math.ceil(round(duration_s * self.latent_rate, 6)))
