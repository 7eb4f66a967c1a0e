"""A VAE of mel spectrograms and a vocoder, as AudioLDM uses them (Liu et al. 2023, arXiv:2301.12503).

    Y   log(max(M |STFT|, floor)), M Slaney's mel matrix           [batch, 1, steps, mels]
    h   the VAE's mean                                             [batch, 8, frames, mels / 4]
    z   h, mel axis merged into channels, for a 1D U-Net           [batch, 8 * mels / 4, frames]

diffusers' AutoencoderKL and transformers' SpeechT5HifiGan. The spectrogram is AudioLDM's (audioldm/audio/stft.py,
tools.py, default_audioldm_config in utils.py): 16 kHz, 1024 samples, hop 160, 64 mels of 0 to 8000 Hz, magnitudes
rather than power, natural log with floor 1e-5, no further normalisation. AudioLDM was trained on files scaled to a peak
of 0.5. AudioLDM 2 and MusicLDM have the same parts.
"""

import math
from pathlib import Path
from typing import Any

import torch
import torchaudio.functional as AF
from diffusers import AutoencoderKL
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from transformers import PreTrainedConfig, SpeechT5HifiGan, SpeechT5HifiGanConfig

from diffaudio.errors import UserError
from diffaudio.library_loading import load_library_network
from diffaudio.models.autoencoders.adapters.base import AdaptedAutoencoder, settings_of

__all__ = ["MelVAEAutoencoder"]


class MelVAEAutoencoder(AdaptedAutoencoder):
    """Mel VAE and vocoder; mono.

    `latent_scale` starts as 1 / the VAE's `scaling_factor`, so that unfitted latents are those of AudioLDM's U-Net.

    Args:
        vae_config: settings of diffusers' `AutoencoderKL`.
        vocoder_config: settings of transformers' `SpeechT5HifiGanConfig`, which determine sample rate, mels and hop.
        n_fft: window length in samples (Hann).
        f_min, f_max: range of the mel bands, in Hz.
        log_floor: mel magnitude of silence.
    """

    @register_to_config
    def __init__(
        self,
        vae_config: dict[str, Any],
        vocoder_config: dict[str, Any],
        n_fft: int = 1024,
        f_min: float = 0.0,
        f_max: float = 8000.0,
        log_floor: float = 1e-5,
    ) -> None:
        super().__init__()
        self.vae: Any = AutoencoderKL(**vae_config)
        self.vocoder = SpeechT5HifiGan(SpeechT5HifiGanConfig(**vocoder_config))
        vae, vocoder = self.vae.config, self.vocoder.config
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        if vae["in_channels"] != 1:
            raise UserError(f"the VAE reads {vae['in_channels']} channels; one of mel spectrograms reads 1")
        if vocoder.model_in_dim % factor:
            raise UserError(f"the vocoder's {vocoder.model_in_dim} mels are no multiple of the VAE's {factor}")
        if not f_min < f_max <= vocoder.sampling_rate / 2:
            raise UserError(f"mel bands of {f_min:g} to {f_max:g} Hz; at {vocoder.sampling_rate} Hz half is the most")
        self.n_fft, self.log_floor = n_fft, log_floor
        self.mel_hop_length = math.prod(vocoder.upsample_rates)
        if n_fft >= 2 * self.mel_hop_length * factor:
            raise UserError(
                f"n_fft is {n_fft}; must be less than two frames, {2 * self.mel_hop_length * factor} samples"
            )
        mel = AF.melscale_fbanks(
            n_fft // 2 + 1, f_min, f_max, vocoder.model_in_dim, vocoder.sampling_rate, norm="slaney", mel_scale="slaney"
        ).T
        self.register_buffer("mel", mel, persistent=False)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self._describe(
            "mel_vae",
            sample_rate=vocoder.sampling_rate,
            audio_channels=1,
            latent_channels=vae["latent_channels"] * (vocoder.model_in_dim // factor),
            hop_length=self.mel_hop_length * factor,
            latent_scale=1 / vae["scaling_factor"],
        )

    @classmethod
    def from_library(cls, vae: Path, vocoder: Path) -> "MelVAEAutoencoder":
        """Read folders that `AutoencoderKL.save_pretrained` and `SpeechT5HifiGan.save_pretrained` wrote."""
        networks = load_library_network(AutoencoderKL, vae), load_library_network(SpeechT5HifiGan, vocoder)
        general = PreTrainedConfig().to_dict()
        own = {name: value for name, value in networks[1].config.to_dict().items() if name not in general}
        autoencoder = cls(settings_of(networks[0].config), own)
        autoencoder.vae, autoencoder.vocoder = networks
        return autoencoder

    def log_mel(self, waveform: Tensor) -> Tensor:
        """[batch, samples] -> Y [batch, 1, steps, mels], a step a whole hop."""
        steps = waveform.shape[-1] // self.mel_hop_length
        spectrum = torch.stft(
            waveform.clamp(-1, 1), self.n_fft, self.mel_hop_length, window=self.window, return_complex=True
        )[..., :steps]
        mel = (self.mel @ spectrum.abs()).clamp(min=self.log_floor)
        return mel.log().transpose(1, 2)[:, None]

    def _encode(self, waveform: Tensor) -> Tensor:
        h = self.vae.encode(self.log_mel(self._padded(waveform)[:, 0])).latent_dist.mode()
        return h.transpose(2, 3).flatten(1, 2)

    def _decode(self, latents: Tensor) -> Tensor:
        h = latents.unflatten(1, (self.vae.config["latent_channels"], -1)).transpose(2, 3)
        return self.vocoder(self.vae.decode(h).sample[:, 0])[:, None]
