"""The base class of adapters for other libraries' autoencoders: latent statistics, checks, lengths.

    h   latents of the library                                         [batch, latent_channels, frames]
    z   (h - latent_mean) / latent_scale by channel, for the U-Net     [batch, latent_channels, frames]

An adapter starts with mean 0 and scale 1 (or the scaling factor of the library's own diffusion model). After fitting
to the sounds of a corpus, z has mean 0 and standard deviation 1, like the noise of diffusion:

    autoencoder = load_autoencoder("facebook/encodec_24khz")
    autoencoder.fit_latents(waveforms)         # any iterable of [batch, channels, samples]
    autoencoder.save_pretrained("encodec")     # from now on `--autoencoder encodec`
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffaudio.errors import UserError
from diffaudio.models.autoencoders.base import Autoencoder, Reach

__all__ = ["AdaptedAutoencoder", "frames_reached", "settings_of"]

CONTEXT_S = 1.0  # context around windows of an autoencoder with an unlimited receptive field


class AdaptedAutoencoder(Autoencoder):
    """An autoencoder built from networks of other libraries; a subclass implements `_encode` and `_decode`.

    Attributes:
        hop_length: number of samples per latent frame.
        latent_mean, latent_scale: [latent_channels], see the module docstring.
    """

    hop_length: int
    latent_mean: nn.Parameter
    latent_scale: nn.Parameter

    def _describe(
        self, kind: str, *, sample_rate: int, audio_channels: int, latent_channels: int, hop_length: int,
        latent_scale: float = 1.0,
    ) -> None:  # fmt: skip
        """Set the attributes of the interface; called last in a subclass' `__init__`."""
        self.sample_rate, self.audio_channels = sample_rate, audio_channels
        self.latent_channels, self.hop_length = latent_channels, hop_length
        self.latent_rate = sample_rate / hop_length
        self.name = f"{kind}_{sample_rate // 1000}khz_{latent_channels}x{self.latent_rate:g}hz"
        self.latent_mean = nn.Parameter(torch.zeros(latent_channels))
        self.latent_scale = nn.Parameter(torch.full((latent_channels,), latent_scale))
        self.eval().requires_grad_(False)

    @property
    def reach(self) -> Reach:
        """Unlimited and so approximated, unless a subclass overrides this."""
        frames = math.ceil(CONTEXT_S * self.latent_rate)
        return Reach(frames, frames, exact=False)

    def _encode(self, waveform: Tensor) -> Tensor:
        """[batch, audio_channels, samples] -> h [batch, latent_channels, frames]"""
        raise NotImplementedError

    def _decode(self, latents: Tensor) -> Tensor:
        """h [batch, latent_channels, frames] -> [batch, audio_channels, frames * hop_length or more]"""
        raise NotImplementedError

    def _padded(self, waveform: Tensor) -> Tensor:
        """The waveform, padded with silence to a whole number of frames."""
        return F.pad(waveform, (0, -waveform.shape[-1] % self.hop_length))

    @torch.no_grad()
    def encode(self, waveform: Tensor) -> Tensor:
        h = self._encode(self._checked(waveform))
        return (h - self.latent_mean[:, None]) / self.latent_scale[:, None]

    @torch.no_grad()
    def decode(self, latents: Tensor, *, num_samples: int | None = None) -> Tensor:
        if latents.ndim != 3 or latents.shape[1] != self.latent_channels:
            raise UserError(f"latents are {tuple(latents.shape)}; expected [batch, {self.latent_channels}, frames]")
        h = latents.to(self.latent_mean) * self.latent_scale[:, None] + self.latent_mean[:, None]
        return self._decode(h)[..., : latents.shape[-1] * self.hop_length][..., :num_samples]

    @torch.no_grad()
    def fit_latents(self, waveforms: Iterable[Tensor]) -> None:
        """Fit mean and scale of each channel, so that the latents of these sounds have mean 0 and standard deviation 1.

        Latents encoded earlier do not fit the autoencoder any more. The amplification of channels that hardly vary is
        limited: scales are at least a hundredth of the largest.

        Args:
            waveforms: [batch, audio_channels, samples] each, at `sample_rate` and at the level at which they will be
                encoded.

        Raises:
            ValueError: there are no waveforms, or one has another number of channels.
        """
        count, (total, squares) = 0, torch.zeros(2, self.latent_channels, dtype=torch.float64)
        for waveform in waveforms:
            h = self._encode(self._checked(waveform)).cpu().double()
            count += h.shape[0] * h.shape[2]
            total = total + h.sum(dim=(0, 2))
            squares = squares + h.square().sum(dim=(0, 2))
        if count < 2:
            raise UserError(f"sounds to fit the latents to hold {count} frames; give more")
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        self.latent_mean.copy_(mean)
        self.latent_scale.copy_(std.clamp(min=max(std.max().item() / 100, 1e-6)))

    def _checked(self, waveform: Tensor) -> Tensor:
        if waveform.ndim != 3 or waveform.shape[1] != self.audio_channels or waveform.shape[2] == 0:
            raise UserError(
                f"waveform is {tuple(waveform.shape)}; expected [batch, {self.audio_channels}, samples]; "
                "`diffaudio.media.audio.mix_channels` makes mono and stereo of each other"
            )
        return waveform.to(self.latent_mean)


def frames_reached(layers: Iterable[tuple[int, int, int]], hop_length: int) -> int:
    """The receptive field of a stack of convolutions to either side, in latent frames, rounded up.

    Args:
        layers: kernel size, dilation, and the distance between neighbouring inputs of the kernel in samples; for a
            transposed convolution, between neighbouring outputs.
        hop_length: samples in a latent frame.
    """
    samples = sum(math.ceil((kernel - 1) * dilation / 2) * spacing for kernel, dilation, spacing in layers)
    return math.ceil(samples / hop_length) + 1


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor arguments in a config of diffusers, without the entries of the library itself."""
    return {name: value for name, value in config.items() if not name.startswith("_")}
