"""The learned parts of the spectral autoencoder: detail for its code, and a vocoder after its mel inversion.

    z   latents                                [batch, latent_channels, frames]
    y   log-mel patches                        [batch, width, frames]
    S   spectrum that the inversion ends with  [batch, steps, bins], complex
    Y   log-mel that it was made for           [batch, steps, mels]

Both are ConvNeXts over time (`convnext.py`) that begin as nothing: untrained they change nothing.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffaudio.models.autoencoders.convnext import ConvNeXt1d
from diffaudio.models.autoencoders.losses import LogMels, MelResolution
from diffaudio.models.autoencoders.mel_inversion import MelInversion

__all__ = ["Detail", "SpectrogramEnergy", "Vocoder", "energy_distance"]

NOISE_CHANNELS = 32
SIZES = (4, 1.5, 0.5, 0.25)  # of windows, in windows of the inversion
MOST_MELS = 160
GROUPED_BANDS = 8
SMALLEST = 1e-12  # magnitude
MOST_GAIN = 5.0  # nepers
MOST_TURN = math.pi
CENTRE, SPREAD = -5.0, 3.0  # of log magnitudes: brings them to about -1 to 1


class Detail(nn.Module):
    """What a linear code drops of log-mel patches: detail = f(latents, noise).

    Args:
        latent_channels: of the code.
        patch_width: values in a patch.
        channels, blocks: width and depth of the network.
    """

    noise_channels = NOISE_CHANNELS

    def __init__(self, latent_channels: int, patch_width: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.network = ConvNeXt1d(latent_channels + NOISE_CHANNELS, patch_width, width=channels, blocks=blocks)
        self.reach_frames = self.network.reach_steps

    def forward(self, latents: Tensor, noise: Tensor) -> Tensor:
        """z and noise [batch or 1, frames, noise_channels] -> what to add to y"""
        z = latents.transpose(1, 2)
        return self.network(torch.cat([z, noise.expand(len(z), -1, -1)], dim=2)).transpose(1, 2)

    def drawn(self, latents: Tensor, generator: torch.Generator | None) -> Tensor:
        """Noise for a batch of latents, drawn on the CPU."""
        shape = (len(latents), latents.shape[2], NOISE_CHANNELS)
        return self.scaled(torch.rand(shape, generator=generator)).to(latents)

    @staticmethod
    def scaled(uniform: Tensor) -> Tensor:
        """Numbers from 0 to 1 -> numbers of mean 0 and deviation 1."""
        return (uniform - 0.5) * math.sqrt(12)


class Vocoder(nn.Module):
    """A gain and a turn of the phase for every bin of a spectrum that nearly has the right log-mel.

    What it hears of the phase is how it moves from step to step, against a tone in the middle of its bin, and from bin
    to bin, which a shift of the whole sound does not change.

    Args:
        inversion: that makes the spectra.
        channels, blocks: width and depth of the network.
    """

    standing: Tensor

    def __init__(self, inversion: MelInversion, channels: int, blocks: int) -> None:
        super().__init__()
        num_mels, bins = inversion.shares.shape
        self.network = ConvNeXt1d(num_mels + 5 * bins, 2 * bins, width=channels, blocks=blocks)
        self.reach_steps = self.network.reach_steps + 1
        self.log_floor = inversion.log_floor
        turns = -2 * math.pi * inversion.hop_length / inversion.n_fft * torch.arange(bins)
        self.register_buffer("standing", torch.polar(torch.ones(bins), turns), persistent=False)

    def forward(self, spectrum: Tensor, log_mel: Tensor) -> Tensor:
        """S and Y -> S, corrected"""
        magnitudes = spectrum.abs()
        phasors = spectrum / magnitudes.clamp(min=SMALLEST)
        over_time = F.pad(phasors[:, 1:] * phasors[:, :-1].conj() * self.standing, (0, 0, 1, 0))
        over_bins = F.pad(phasors[..., 1:] * phasors[..., :-1].conj(), (1, 0))
        levels = torch.cat([log_mel, (magnitudes + self.log_floor).log()], dim=2)
        heard = [(levels - CENTRE) / SPREAD, over_time.real, over_time.imag, -over_bins.real, -over_bins.imag]
        gain, turn = self.network(torch.cat(heard, dim=2)).float().chunk(2, dim=2)
        return spectrum * torch.polar(gain.clamp(max=MOST_GAIN).exp(), MOST_TURN * turn)


class SpectrogramEnergy(nn.Module):
    """Energy distance of waveforms, by what they look like at several resolutions, in dB.

    Two draws differ in the phase that the inversion starts from. A distance to the recording alone would be least for
    what is most even, and so turn noise into tones; that of the two draws to each other holds against it. Compared are
    groups of neighbouring mel bands (`losses.LogMels`), with windows of 1/4 to 4 times the inversion's: short ones for
    what clicks, long ones for what sings.

    Args:
        sample_rate: in Hz.
        n_fft: window of the inversion, in samples.
    """

    def __init__(self, sample_rate: int, n_fft: int) -> None:
        super().__init__()
        sizes = [int(factor * n_fft) for factor in SIZES]
        resolutions = [MelResolution(size, size // 4, min(size // 16, MOST_MELS)) for size in sizes]
        self.log_mels = LogMels(resolutions, sample_rate)

    def forward(self, first: Tensor, second: Tensor, given: Tensor) -> Tensor:
        """Two draws and the recording, [batch, audio_channels, samples] each -> a scalar"""
        with torch.no_grad():
            of_given = self.log_mels(given)
        spectra = zip(self.log_mels(first), self.log_mels(second), of_given, strict=True)
        return torch.stack([energy_distance(*(_in_groups(x) for x in of_size)) for of_size in spectra]).mean()


def _in_groups(levels: Tensor) -> Tensor:
    """[batch, mels, steps] -> [batch, steps, groups, bands]"""
    bands = math.gcd(levels.shape[1], GROUPED_BANDS)
    return levels.transpose(1, 2).unflatten(2, (-1, bands))


def energy_distance(first: Tensor, second: Tensor, given: Tensor) -> Tensor:
    """How far what is drawn is from what is given, in distribution: least where it is drawn as the given is.

    (|x - y| + |x' - y|) / 2 - |x - x'| / 2 with Euclidean norms over the last dimension, the mean over all others:
    the energy score (Gneiting & Raftery 2007, "Strictly proper scoring rules", eq. 21).

    Args:
        first, second: two draws x and x' [..., n].
        given: y [..., n].

    Returns:
        A scalar, in the unit of the values: norms are divided by sqrt(n).
    """

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return ((a - b).square().mean(dim=-1) + 1e-8).sqrt().mean()

    return (distance(first, given) + distance(second, given) - distance(first, second)) / 2
