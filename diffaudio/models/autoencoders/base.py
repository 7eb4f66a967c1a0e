"""The interface that every autoencoder keeps.

waveform  [batch, channels, samples], float32 in [-1, 1]
latents   [batch, latent_channels, frames], mean 0 and deviation 1 over the corpus it was made on
"""

import math
from dataclasses import dataclass, field

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor

from diffaudio.errors import UserError

__all__ = ["Autoencoder", "Reach", "TrainingPass"]


@dataclass(frozen=True)
class Reach:
    """How far around a latent frame encoding and decoding look: what `windows.py` has to know.

    Attributes:
        encode, decode: latent frames on each side.
        grid: windows begin at multiples of so many frames, because the autoencoder itself cuts there.
        exact: whether nothing beyond has an effect, so that windows with this much context give what the whole
            sound gives, to rounding. Otherwise the autoencoder looks at everything, and windows are cross-faded.
    """

    encode: int
    decode: int
    grid: int = 1
    exact: bool = True


@dataclass
class TrainingPass:
    """What an autoencoder gives to training: there and back again, with gradients.

    Attributes:
        waveform: the reconstruction [batch, audio_channels, samples], as long as the input; None where only `losses`
            teach.
        losses: scalars of the autoencoder's own by name, such as "kl". Always the same names, in the same order.
    """

    waveform: Tensor | None
    losses: dict[str, Tensor] = field(default_factory=dict)


class Autoencoder(ModelMixin, ConfigMixin):
    """Waveform <-> latents.

    Attributes:
        name: goes into corpora, so that latents of different makers are never mixed.
        sample_rate: in Hz.
        audio_channels: 1 or 2.
        latent_channels: width of the latents.
        latent_rate: latent frames a second.
        keeps_phase: whether decoding gives back the waveform, not only its spectrogram: what SI-SDR asks.
    """

    config_name = "config.json"
    name: str
    sample_rate: int
    audio_channels: int
    latent_channels: int
    latent_rate: float
    keeps_phase = False

    @property
    def reach(self) -> Reach:
        """See `Reach`."""
        raise NotImplementedError

    def encode(self, waveform: Tensor) -> Tensor:
        """[batch, audio_channels, samples] -> [batch, latent_channels, frames]; the end is padded to a whole frame."""
        raise NotImplementedError

    def decode(self, latents: Tensor, *, num_samples: int | None = None) -> Tensor:
        """[batch, latent_channels, frames] -> [batch, audio_channels, samples], cut to `num_samples` where given."""
        raise NotImplementedError

    def decode_window(self, latents: Tensor, *, first_frame: int) -> Tensor:
        """Decode frames of a longer sound that stand at `first_frame` and after.

        Where decoding draws something at random, what it draws belongs to the place in the sound.

        Args:
            latents: [batch, latent_channels, frames].

        Returns:
            [batch, audio_channels, samples]; what the whole gives there, but for `reach` on either side.
        """
        del first_frame  # most draw nothing
        return self.decode(latents)

    def forward(self, waveform: Tensor, generator: torch.Generator | None = None) -> TrainingPass:
        """There and back again, for training: gradients reach what is to be learned, the parameters that require them.

        It may be called under autocast; what needs single precision, such as spectra, leaves it.

        Args:
            waveform: [batch, audio_channels, samples].
            generator: a CPU generator, for all that is drawn.

        Raises:
            ValueError: this autoencoder, or this one with its settings, learns nothing by gradient.
        """
        raise UserError(f"{type(self).__name__} is not trained here; use it as it is")

    def num_latent_frames(self, duration_s: float) -> int:
        """How many latent frames hold `duration_s` seconds."""
        return max(1, math.ceil(round(duration_s * self.latent_rate, 6)))
