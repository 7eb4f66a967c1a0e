"""Oobleck, the autoencoder of Stable Audio Open (Evans et al. 2024, arXiv:2407.14358), from diffusers.

44.1 kHz stereo; latents [batch, 64, frames], 21.5 frames a second.
"""

from pathlib import Path
from typing import Any

from diffusers import AutoencoderOobleck
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from diffaudio.models.autoencoders.adapter import AdaptedAutoencoder, load_whole, settings_of

__all__ = ["OobleckAutoencoder"]


class OobleckAutoencoder(AdaptedAutoencoder):
    """The mean of Oobleck's latents.

    Args:
        network_config: settings of diffusers' `AutoencoderOobleck`.
    """

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

    @classmethod
    def from_library(cls, folder: Path) -> "OobleckAutoencoder":
        """Read a folder that `AutoencoderOobleck.save_pretrained` wrote."""
        network = load_whole(AutoencoderOobleck, folder)
        autoencoder = cls(settings_of(network.config))
        autoencoder.network = network
        return autoencoder

    def _encode(self, waveform: Tensor) -> Tensor:
        return self.network.encode(self._padded(waveform)).latent_dist.mode()

    def _decode(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents).sample
