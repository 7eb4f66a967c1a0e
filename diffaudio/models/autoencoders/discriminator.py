"""The multi-scale STFT discriminator of EnCodec (Défossez et al. 2022, arXiv:2210.13438, section 3.4 and figure 2).

    x      waveforms [batch, audio_channels, samples]
    D_k    the k-th of K networks, one for each window of the STFT
    D_k^l  output of its l-th of L layers [batch, filters, steps, bins]

It computes what `MultiScaleSTFTDiscriminator` of the package `encodec` does. That package is not used: its one release,
0.1.1 of 2022, may not be used commercially and has no loss balancer; the code under the MIT licence was never released.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

__all__ = [
    "DiscriminatorOutput",
    "MultiScaleSTFTDiscriminator",
    "adversarial_loss",
    "discriminator_loss",
    "feature_loss",
]

DILATIONS = (1, 2, 4)  # in time
SLOPE = 0.2


class DiscriminatorOutput(NamedTuple):
    """Logits and features of the networks for a batch of sounds.

    Attributes:
        logits: D_k(x) [batch, 1, steps, bins] of each network; positive is real.
        features: D_k^l(x), the outputs of the layers of each network.
    """

    logits: list[Tensor]
    features: list[list[Tensor]]


class MultiScaleSTFTDiscriminator(nn.Module):
    """Networks that tell recordings from reconstructions, each by a complex STFT with its own window.

    Args:
        windows: their lengths in samples; hops are a quarter of them.
        filters: width of the layers.
        audio_channels: 1 or 2, which every network sees together.
    """

    def __init__(self, windows: Sequence[int] = (2048, 1024, 512), filters: int = 32, audio_channels: int = 1) -> None:
        super().__init__()
        self.networks = nn.ModuleList([_STFTDiscriminator(window, filters, audio_channels) for window in windows])

    def forward(self, waveform: Tensor) -> DiscriminatorOutput:
        outputs = [network(waveform) for network in self.networks]
        return DiscriminatorOutput([logits for logits, _ in outputs], [features for _, features in outputs])


class _STFTDiscriminator(nn.Module):
    window: Tensor

    def __init__(self, n_fft: int, filters: int, audio_channels: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        # the first layer has no weight norm, as in the authors' code
        layers: list[nn.Module] = [nn.Conv2d(2 * audio_channels, filters, (3, 9), padding=(1, 4))]
        for dilation in DILATIONS:
            layer = nn.Conv2d(
                filters, filters, (3, 9), stride=(1, 2), dilation=(dilation, 1), padding=(dilation, 4)
            )  # fmt: skip
            layers.append(weight_norm(layer))
        layers.append(weight_norm(nn.Conv2d(filters, filters, 3, padding=1)))
        self.layers = nn.ModuleList(layers)
        self.last = weight_norm(nn.Conv2d(filters, 1, 3, padding=1))

    def forward(self, waveform: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self._spectrum(waveform)
        features = []
        for layer in self.layers:
            x = nn.functional.leaky_relu(layer(x), SLOPE)
            features.append(x)
        return self.last(x).float(), features

    def _spectrum(self, waveform: Tensor) -> Tensor:
        """[batch, audio_channels, samples] -> [batch, real parts then imaginary parts, steps, bins]"""
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = torch.stft(
                waveform.float().flatten(0, 1), self.n_fft, self.n_fft // 4,
                window=self.window, center=False, return_complex=True,
            )  # fmt: skip
            spectrum = (spectrum / self.window.norm()).transpose(1, 2).unflatten(0, waveform.shape[:2])
            # channels last: convolutions of so few channels are twice as fast on a CPU
            return torch.cat([spectrum.real, spectrum.imag], dim=1).contiguous(memory_format=torch.channels_last)


def discriminator_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """The discriminator's hinge loss: 1/K sum_k mean max(0, 1 - D_k(x)) + mean max(0, 1 + D_k(y)).

    Args:
        real, fake: logits of each network for recordings and for reconstructions.
    """
    return torch.stack([(1 - d).relu().mean() + (1 + e).relu().mean() for d, e in zip(real, fake, strict=True)]).mean()


def adversarial_loss(fake: list[Tensor]) -> Tensor:
    """The autoencoder's hinge loss: 1/K sum_k mean max(0, 1 - D_k(y))."""
    return torch.stack([(1 - d).relu().mean() for d in fake]).mean()


def feature_loss(real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    """Relative feature matching: 1/(K L) sum_k sum_l mean |D_k^l(x) - D_k^l(y)| / mean |D_k^l(x)|."""
    pairs = [pair for layers in zip(real, fake, strict=True) for pair in zip(*layers, strict=True)]
    return torch.stack([(a.float() - b.float()).abs().mean() / a.float().abs().mean() for a, b in pairs]).mean()
