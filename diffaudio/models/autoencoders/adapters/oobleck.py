"""Oobleck, the autoencoder of Stable Audio Open (Evans et al. 2024, arXiv:2407.14358), from diffusers.

44.1 kHz stereo; latents [batch, 64, frames], 21.5 frames a second.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderOobleck
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_oobleck import OobleckDiagonalGaussianDistribution
from torch import Tensor

from diffaudio.library_loading import load_library_network
from diffaudio.models.autoencoders.adapters.base import AdaptedAutoencoder, frames_reached, settings_of
from diffaudio.models.autoencoders.base import Reach, TrainingPass

__all__ = ["OobleckAutoencoder"]


class OobleckAutoencoder(AdaptedAutoencoder):
    """Oobleck; its latents are the means of its encoder's distribution.

    Args:
        network_config: settings of diffusers' `AutoencoderOobleck`.
    """

    keeps_phase = True

    @register_to_config
    def __init__(self, network_config: dict[str, Any]) -> None:
        super().__init__()
        self.network: Any = AutoencoderOobleck(**network_config)
        config = self.network.config
        self._describe(
            "oobleck",
            sample_rate=config["sampling_rate"],
            audio_channels=config["audio_channels"],
            latent_channels=config["decoder_input_channels"],
            hop_length=self.network.hop_length,
        )

    @property
    def reach(self) -> Reach:
        """Convolutions only: residual units of kernel 7 and dilations 1, 3, 9 before or after every change of rate."""
        blocks, spacing = [], 1
        for ratio in self.network.config["downsampling_ratios"]:
            blocks += [(7, 1, spacing), (7, 3, spacing), (7, 9, spacing), (2 * ratio + 1, 1, spacing)]
            spacing *= ratio
        encoder, decoder = [(7, 1, 1), *blocks, (3, 1, spacing)], [(7, 1, spacing), *blocks, (7, 1, 1)]
        return Reach(frames_reached(encoder, spacing), frames_reached(decoder, spacing))

    @classmethod
    def from_library(cls, folder: Path) -> "OobleckAutoencoder":
        """Read a folder that `AutoencoderOobleck.save_pretrained` wrote."""
        network = load_library_network(AutoencoderOobleck, folder)
        autoencoder = cls(settings_of(network.config))
        autoencoder.network = network
        return autoencoder

    def forward(self, waveform: Tensor, generator: torch.Generator | None = None) -> TrainingPass:
        """A reconstruction from latents drawn from the encoder's distribution, and "kl", its divergence from the noise.

        The mean over items and frames of the sum over channels of (m^2 + s^2 - log s^2 - 1): twice the divergence.
        """
        encoded = self.network.encode(self._padded(self._checked(waveform))).latent_dist.parameters
        latents = OobleckDiagonalGaussianDistribution(encoded.float())
        reconstruction = self.network.decode(latents.sample(generator)).sample
        return TrainingPass(reconstruction[..., : waveform.shape[-1]], {"kl": latents.kl()})

    def _encode(self, waveform: Tensor) -> Tensor:
        return self.network.encode(self._padded(waveform)).latent_dist.mode()

    def _decode(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents).sample
