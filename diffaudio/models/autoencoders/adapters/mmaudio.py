"""MMAudio's VAE of log-mel spectrograms (Cheng et al. 2024, arXiv:2412.15322) and its BigVGAN vocoder, from diffusers.

44.1 kHz mono; latents [batch, 40, frames], 43 frames a second.
"""

import math
from pathlib import Path
from typing import Any

from diffusers import MMAudioVAE, MMAudioVocoder
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from diffaudio.errors import UserError
from diffaudio.library_loading import load_library_network
from diffaudio.models.autoencoders.adapters.base import AdaptedAutoencoder, settings_of

__all__ = ["MMAudioAutoencoder"]


class MMAudioAutoencoder(AdaptedAutoencoder):
    """The mean of MMAudio's latents.

    `latent_scale` starts as 1 / the VAE's `scaling_factor`.

    Args:
        vae_config: settings of diffusers' `MMAudioVAE`.
        vocoder_config: settings of diffusers' `MMAudioVocoder`.
    """

    @register_to_config
    def __init__(self, vae_config: dict[str, Any], vocoder_config: dict[str, Any]) -> None:
        super().__init__()
        self.vae: Any = MMAudioVAE(**vae_config)
        self.vocoder = MMAudioVocoder(**vocoder_config)
        vae, vocoder = self.vae.config, self.vocoder.config
        made, wanted = (vae["mel_bins"], vae["hop_length"]), (vocoder["num_mels"], math.prod(vocoder["upsample_rates"]))
        if made != wanted:
            raise UserError(
                f"the VAE makes {made[0]} mels every {made[1]} samples, the vocoder wants {wanted[0]} and {wanted[1]}; "
                "take both from the same model"
            )
        self._describe(
            "mmaudio",
            sample_rate=vae["sample_rate"],
            audio_channels=1,
            latent_channels=vae["latent_channels"],
            hop_length=self.vae.latent_hop_length,
            latent_scale=1 / vae["scaling_factor"],
        )

    @classmethod
    def from_library(cls, vae: Path, vocoder: Path) -> "MMAudioAutoencoder":
        """Read folders that `MMAudioVAE.save_pretrained` and `MMAudioVocoder.save_pretrained` wrote."""
        networks = load_library_network(MMAudioVAE, vae), load_library_network(MMAudioVocoder, vocoder)
        autoencoder = cls(settings_of(networks[0].config), settings_of(networks[1].config))
        autoencoder.vae, autoencoder.vocoder = networks
        return autoencoder

    def _encode(self, waveform: Tensor) -> Tensor:
        return self.vae.encode(self._padded(waveform)[:, 0]).latent_dist.mode()

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vocoder(self.vae.decode(latents).sample).sample
