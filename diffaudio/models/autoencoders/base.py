"""The interface that every autoencoder keeps.

waveform  [batch, channels, samples], float32 in [-1, 1]
latents   [batch, latent_channels, frames], mean 0 and standard deviation 1 over the corpus it was fitted to
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor, nn

from diffaudio.errors import UserError

__all__ = ["Autoencoder", "Reach", "TrainingPass"]


@dataclass(frozen=True)
class Reach:
    """The receptive field of encoding and decoding around a latent frame, as `windows.py` needs it.

    Attributes:
        encode, decode: latent frames on each side.
        grid: windows begin at multiples of this many frames, because the autoencoder itself cuts there.
        exact: whether nothing beyond has an effect, so that windows with this much context equal the whole sound up
            to rounding. Otherwise everything depends on everything, and windows are cross-faded.
    """

    encode: int
    decode: int
    grid: int = 1
    exact: bool = True


@dataclass
class TrainingPass:
    """The output of an autoencoder in training.

    Attributes:
        waveform: the reconstruction [batch, audio_channels, samples], as long as the input; it requires no gradient
            where losses of it would train nothing.
        losses: scalars of the autoencoder's own by name, such as "kl". Always the same names, in the same order.
    """

    waveform: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)


class Autoencoder(ModelMixin, ConfigMixin):
    """Waveform <-> latents.

    Attributes:
        name: is stored in corpora, so that latents of different autoencoders are never mixed.
        sample_rate: in Hz.
        audio_channels: 1 or 2.
        latent_channels: width of the latents.
        latent_rate: latent frames a second.
        keeps_phase: whether decoding restores the waveform and not only its spectrogram, as SI-SDR needs.
    """

    config_name = "config.json"
    name: str
    sample_rate: int
    audio_channels: int
    latent_channels: int
    latent_rate: float
    keeps_phase = False

    def __getattr__(self, name: str) -> Any:
        """As of any module: diffusers looks among the settings first, and hides submodules of the same name."""
        return nn.Module.__getattr__(self, name)

    @property
    def reach(self) -> Reach:
        """See `Reach`."""
        raise NotImplementedError

    def encode(self, waveform: Tensor) -> Tensor:
        """[batch, audio_channels, samples] -> [batch, latent_channels, frames]; the end is padded to a whole frame."""
        raise NotImplementedError

    def decode(self, latents: Tensor, *, num_samples: int | None = None) -> Tensor:
        """[batch, latent_channels, frames] -> [batch, audio_channels, samples], cut to `num_samples` if given."""
        raise NotImplementedError

    def decode_bounded(self, latents: Tensor, *, num_samples: int | None = None) -> tuple[Tensor, Tensor]:
        """`decode`, and how much of each item had to be brought back into the range of recordings.

        Returns:
            The waveform, and shares from 0 to 1, [batch]; all 0 where the autoencoder knows no such range.
        """
        return self.decode(latents, num_samples=num_samples), torch.zeros(len(latents))

    def decode_window(self, latents: Tensor, *, first_frame: int) -> Tensor:
        """Decode frames of a longer sound, from `first_frame` on.

        Where decoding draws random numbers, they are a function of the position in the sound.

        Args:
            latents: [batch, latent_channels, frames].

        Returns:
            [batch, audio_channels, samples]; equal to the whole sound there, but for `reach` on either side.
        """
        del first_frame  # most autoencoders draw nothing
        return self.decode(latents)

    def decode_window_bounded(self, latents: Tensor, *, first_frame: int) -> tuple[Tensor, Tensor]:
        """`decode_window`, with shares as of `decode_bounded`."""
        return self.decode_window(latents, first_frame=first_frame), torch.zeros(len(latents))

    def forward(self, waveform: Tensor, generator: torch.Generator | None = None) -> TrainingPass:
        """Encode and decode for training, with gradients for the parameters that require them.

        It may be called under autocast; spectra and the like are computed in single precision nonetheless.

        Args:
            waveform: [batch, audio_channels, samples].
            generator: a CPU generator for all random numbers.

        Raises:
            ValueError: nothing of this autoencoder is learned by gradient.
        """
        raise UserError(f"{type(self).__name__} is not trained here; use it as it is")

    def num_latent_frames(self, duration_s: float) -> int:
        """How many latent frames hold `duration_s` seconds."""
        return max(1, math.ceil(round(duration_s * self.latent_rate, 6)))
