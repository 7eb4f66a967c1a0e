"""The learned parts of the spectral autoencoder: detail beside its linear code, and a vocoder after its mel inversion.

    z   latents                                [batch, latent_channels, frames]
    y   log-mel patches                        [batch, width, frames]
    S   spectrum at the end of the inversion   [batch, steps, bins], complex
    Y   log-mel that was inverted              [batch, steps, mels]

Both are ConvNeXts over time (`convnext.py`) with zero-initialised outputs: untrained they change nothing.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffaudio.models.autoencoders.convnext import ConvNeXt1d
from diffaudio.models.autoencoders.losses import LogMels, MelResolution
from diffaudio.models.autoencoders.mel_inversion import MelInversion

__all__ = ["Detail", "DetailSettings", "SpectrogramEnergy", "Vocoder", "VocoderSettings", "energy_distance"]

NOISE_CHANNELS = 32
WINDOW_FACTORS = (4, 1.5, 0.5, 0.25)  # windows of the loss, in windows of the inversion
MAX_MELS = 160
GROUPED_BANDS = 8
MIN_MAGNITUDE = 1e-12
MAX_GAIN = 5.0  # nepers
MAX_ROTATION = math.pi
LOG_MEAN, LOG_STD = -5.0, 3.0  # of log magnitudes, roughly; they become about -1 to 1


@dataclass(frozen=True)
class DetailSettings:
    """Size of `Detail`, and how it is used.

    Attributes:
        channels: width of the network.
        blocks: its depth.
        temperature: scale of the noise when decoding: 1 as in training, 0 for the most probable detail.
    """

    channels: int
    blocks: int = 4
    temperature: float = 0.0


@dataclass(frozen=True)
class VocoderSettings:
    """Size of `Vocoder`.

    Attributes:
        channels: width of the network.
        blocks: its depth.
    """

    channels: int
    blocks: int = 4


class Detail(nn.Module):
    """Restores what a linear code drops of log-mel patches: detail = f(latents, noise).

    Args:
        latent_channels: of the code.
        patch_width: values in a patch.
    """

    noise_channels = NOISE_CHANNELS

    def __init__(self, latent_channels: int, patch_width: int, settings: DetailSettings) -> None:
        super().__init__()
        in_channels, width = latent_channels + NOISE_CHANNELS, settings.channels
        self.network = ConvNeXt1d(in_channels, patch_width, width=width, blocks=settings.blocks)
        self.reach_frames = self.network.reach_steps

    def forward(self, latents: Tensor, noise: Tensor) -> Tensor:
        """z and noise [batch or 1, frames, noise_channels] -> [batch, width, frames], to be added to y"""
        z = latents.transpose(1, 2)
        return self.network(torch.cat([z, noise.expand(len(z), -1, -1)], dim=2)).transpose(1, 2)

    def draw_noise(self, latents: Tensor, generator: torch.Generator | None) -> Tensor:
        """Noise for a batch of latents, drawn on the CPU."""
        shape = (len(latents), latents.shape[2], NOISE_CHANNELS)
        return self.standardise(torch.rand(shape, generator=generator)).to(latents)

    @staticmethod
    def standardise(uniform: Tensor) -> Tensor:
        """Uniform numbers from 0 to 1 -> mean 0 and standard deviation 1."""
        return (uniform - 0.5) * math.sqrt(12)


class Vocoder(nn.Module):
    """Predicts a gain and a phase rotation for every bin of a spectrum that nearly has the right log-mel.

    Of the phase it sees the differences between steps, relative to a tone at the centre of the bin, and between bins,
    which a shift of the whole sound does not change.

    Args:
        inversion: that computes the spectra.
    """

    centre_tone: Tensor

    def __init__(self, inversion: MelInversion, settings: VocoderSettings) -> None:
        super().__init__()
        num_mels, bins = inversion.shares.shape
        self.network = ConvNeXt1d(num_mels + 5 * bins, 2 * bins, width=settings.channels, blocks=settings.blocks)
        self.reach_steps = self.network.reach_steps + 1
        self.log_floor = inversion.log_floor
        advance = -2 * math.pi * inversion.hop_length / inversion.n_fft * torch.arange(bins)
        self.register_buffer("centre_tone", torch.polar(torch.ones(bins), advance), persistent=False)

    def forward(self, spectrum: Tensor, log_mel: Tensor) -> Tensor:
        """S and Y -> corrected S"""
        magnitudes = spectrum.abs()
        phasors = spectrum / magnitudes.clamp(min=MIN_MAGNITUDE)
        over_time = F.pad(phasors[:, 1:] * phasors[:, :-1].conj() * self.centre_tone, (0, 0, 1, 0))
        over_bins = F.pad(phasors[..., 1:] * phasors[..., :-1].conj(), (1, 0))
        levels = torch.cat([log_mel, (magnitudes + self.log_floor).log()], dim=2)
        features = [(levels - LOG_MEAN) / LOG_STD, over_time.real, over_time.imag, -over_bins.real, -over_bins.imag]
        gain, rotation = self.network(torch.cat(features, dim=2)).float().chunk(2, dim=2)
        return spectrum * torch.polar(gain.clamp(max=MAX_GAIN).exp(), MAX_ROTATION * rotation)


class SpectrogramEnergy(nn.Module):
    """Energy distance between waveforms and a recording, of their log-mels at several resolutions, in dB.

    Two samples differ in the phase that the inversion starts from. The distance to the recording alone would be least
    for an average, and so turn noise into tones; the distance between the two samples counteracts that. Groups of
    neighbouring mel bands (`losses.LogMels`) are compared, with windows of 1/4 to 4 times the inversion's: short ones
    for transients, long ones for tones.

    Args:
        sample_rate: in Hz.
        n_fft: window of the inversion, in samples.
    """

    def __init__(self, sample_rate: int, n_fft: int) -> None:
        super().__init__()
        sizes = [int(factor * n_fft) for factor in WINDOW_FACTORS]
        resolutions = [MelResolution(size, size // 4, min(size // 16, MAX_MELS)) for size in sizes]
        self.log_mels = LogMels(resolutions, sample_rate)

    def forward(self, sample: Tensor, other_sample: Tensor, recording: Tensor) -> Tensor:
        """[batch, audio_channels, samples] each -> a scalar"""
        with torch.no_grad():
            target = self.log_mels(recording)
        resolutions = zip(self.log_mels(sample), self.log_mels(other_sample), target, strict=True)
        return torch.stack([energy_distance(*map(_in_groups, log_mels)) for log_mels in resolutions]).mean()


def _in_groups(levels: Tensor) -> Tensor:
    """[batch, mels, steps] -> [batch, steps, groups, bands]"""
    bands = math.gcd(levels.shape[1], GROUPED_BANDS)
    return levels.transpose(1, 2).unflatten(2, (-1, bands))


def energy_distance(sample: Tensor, other_sample: Tensor, target: Tensor) -> Tensor:
    """The energy score of two samples of a distribution: least where that is the distribution of the target.

    (|x - y| + |x' - y|) / 2 - |x - x'| / 2 with Euclidean norms over the last dimension, and the mean over all
    others (Gneiting & Raftery 2007, "Strictly proper scoring rules", eq. 21).

    Args:
        sample, other_sample: x and x' [..., n], drawn independently.
        target: y [..., n].

    Returns:
        A scalar, in the unit of the values: norms are divided by sqrt(n).
    """

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return ((a - b).square().mean(dim=-1) + 1e-8).sqrt().mean()

    return (distance(sample, target) + distance(other_sample, target) - distance(sample, other_sample)) / 2
