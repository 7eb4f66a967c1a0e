"""EnCodec (Défossez et al. 2022, arXiv:2210.13438): 24 kHz mono and 48 kHz stereo, through transformers.

    z   the encoder's output before the quantiser                  [batch, 128, frames]
    q   z quantised, if a bandwidth is chosen; only in decoding
    l   log of the level by which a second was divided (48 kHz)    [batch, 1, frames]

The 48 kHz model processes chunks of one second that overlap by a hundredth, each divided by its own level. A U-Net
needs a uniform sequence of frames that can begin anywhere, so here chunks overlap by whole frames (2 instead of 1.5),
the later chunk's frames are used where two overlap, and the level is an additional latent channel. A sound of one
chunk is encoded and decoded exactly as by the library; longer sounds are too if the config's overlap is 0.

transformers' implementation is used rather than the `encodec` package, because its published weights are safetensors
(facebook/encodec_24khz, facebook/encodec_48khz); the package only reads pickles.
"""

import math
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from transformers import EncodecConfig, EncodecModel, PreTrainedConfig

from diffaudio.errors import UserError
from diffaudio.library_loading import load_library_network
from diffaudio.models.autoencoders.adapters.base import AdaptedAutoencoder
from diffaudio.models.autoencoders.base import Reach

__all__ = ["EncodecAutoencoder"]

LOWEST_LEVEL = 1e-5  # the level of silence, so that its logarithm is not far from those of other sounds


class EncodecAutoencoder(AdaptedAutoencoder):
    """EnCodec's continuous latents.

    Args:
        network_config: settings of transformers' `EncodecConfig`.
        bandwidth: bandwidth in kbit/s to which latents are quantised before decoding, one of the network's
            `target_bandwidths`; None does not quantise.
    """

    keeps_phase = True

    @register_to_config
    def __init__(self, network_config: dict[str, Any], bandwidth: float | None = None) -> None:
        super().__init__()
        config = EncodecConfig(**network_config)
        self.network = EncodecModel(config)
        self._chunk_frames = config.chunk_length and config.chunk_length // config.hop_length
        self._overlap_frames = math.ceil((config.overlap or 0) * (self._chunk_frames or 0))
        self._check(bandwidth)
        self._describe(
            "encodec",
            sample_rate=config.sampling_rate,
            audio_channels=config.audio_channels,
            latent_channels=config.hidden_size + config.normalize,
            hop_length=config.hop_length,
        )

    @property
    def reach(self) -> Reach:
        """Chunks are independent of each other; without chunks, the LSTM's memory is unlimited but fades."""
        if self._chunk_frames is None:
            return super().reach
        stride = self._chunk_frames - self._overlap_frames
        return Reach(self._overlap_frames, stride, grid=stride)

    @classmethod
    def from_library(cls, folder: Path) -> "EncodecAutoencoder":
        """Read a folder that `EncodecModel.save_pretrained` wrote."""
        network = load_library_network(EncodecModel, folder)
        general = PreTrainedConfig().to_dict()
        own = {name: value for name, value in network.config.to_dict().items() if name not in general}
        autoencoder = cls(own)
        autoencoder.network = network
        return autoencoder

    def set_bandwidth(self, bandwidth: float | None) -> None:
        """Quantise latents to `bandwidth` kbit/s in decoding, also after saving and loading; None does not quantise.

        Raises:
            ValueError: the network was not trained for this bandwidth.
        """
        self._check(bandwidth)
        self.register_to_config(bandwidth=bandwidth)

    def _check(self, bandwidth: float | None) -> None:
        known = self.network.config.target_bandwidths
        if bandwidth is not None and bandwidth not in known:
            choices = ", ".join(f"{value:g}" for value in known)
            raise UserError(f"bandwidth {bandwidth:g} is unknown; this EnCodec has {choices} kbit/s")

    def _encode(self, waveform: Tensor) -> Tensor:
        frames = -(-waveform.shape[-1] // self.hop_length)
        pieces = []
        for begin, end in self._chunks(frames):
            piece = self._encode_chunk(waveform[..., begin * self.hop_length : end * self.hop_length])
            pieces.append(piece if end == frames else piece[..., : -self._overlap_frames or None])
        return torch.cat(pieces, dim=-1)

    def _decode(self, latents: Tensor) -> Tensor:
        chunks = self._chunks(latents.shape[-1])
        pieces = [self._decode_chunk(latents[..., begin:end]) for begin, end in chunks]
        if len(pieces) == 1:
            return pieces[0]
        return self.network._linear_overlap_add(pieces, (chunks[1][0] - chunks[0][0]) * self.hop_length)

    def _chunks(self, frames: int) -> list[tuple[int, int]]:
        """First frame of each chunk, and the frame after its last."""
        if self._chunk_frames is None:
            return [(0, frames)]
        stride = self._chunk_frames - self._overlap_frames
        begins = range(0, max(1, frames - self._overlap_frames), stride)
        return [(begin, min(begin + self._chunk_frames, frames)) for begin in begins]

    def _encode_chunk(self, waveform: Tensor) -> Tensor:
        if not self.network.config.normalize:
            return self.network.encoder(waveform)
        level = waveform.mean(dim=1, keepdim=True).square().mean(dim=-1, keepdim=True).sqrt() + 1e-8
        z = self.network.encoder(waveform / level)
        return torch.cat([z, level.clamp(min=LOWEST_LEVEL).log().expand(-1, -1, z.shape[-1])], dim=1)

    def _decode_chunk(self, latents: Tensor) -> Tensor:
        z, log_level = latents.split([self.network.config.hidden_size, int(self.network.config.normalize)], dim=1)
        if self.config["bandwidth"] is not None:
            z = self.network.quantizer.decode(self.network.quantizer.encode(z, self.config["bandwidth"]))
        waveform = self.network.decoder(z)
        if self.network.config.normalize:
            waveform = waveform * log_level.exp().repeat_interleave(self.hop_length, dim=-1)
        return waveform
