"""The spectral autoencoder: a linear code of the log-mel spectrogram, and phase by Griffin-Lim.

    S   magnitudes of the short-time Fourier transform    [batch, bins, steps]
    M   mel matrix (Slaney's scale and norm)              [mels, bins]
    Y   log(M S + floor)                                  [batch, mels, steps]
    y   patches of `patch_steps` columns of Y             [batch, mels * patch_steps, frames]
    z   latents  V^T (y - mean) / scale                   [batch, latent_channels, frames]

V holds the principal components of y over a corpus, so z is the best linear code of its width. A component
with deviation s is divided by sqrt(s), not by s: small ones stay small beside large ones, and the diffusion
model spends its effort where the sound is. A common factor brings the deviation over all channels to 1.

Back: y from z, magnitudes through the pseudo-inverse of M, and a phase that agrees with them by fast
Griffin-Lim (Perraudin, Balazs & Søndergaard 2013, "A fast Griffin-Lim algorithm", alg. 2) from a seeded
random start, so that the same latents always give the same sound.
"""

import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from diffaudio.models.autoencoders.base import Autoencoder

__all__ = ["SpectralAutoencoder"]


class SpectralAutoencoder(Autoencoder):
    """Principal components of log-mel patches; nothing in it is learned by gradient.

    Args:
        sample_rate: in Hz.
        n_fft: window length in samples (Hann).
        hop_length: samples between two spectra.
        num_mels: mel bands from 0 Hz to half the sample rate.
        patch_steps: spectra in a latent frame.
        latent_channels: principal components kept, at most num_mels * patch_steps.
        log_floor: mel magnitude that silence counts as.
        phase_iterations: rounds of Griffin-Lim.
        phase_momentum: alpha of the fast algorithm.
        phase_seed: start of the random phase.
    """

    audio_channels = 1

    @register_to_config
    def __init__(
        self,
        sample_rate: int = 24000,
        n_fft: int = 1024,
        hop_length: int = 240,
        num_mels: int = 128,
        patch_steps: int = 4,
        latent_channels: int = 128,
        log_floor: float = 1e-4,
        phase_iterations: int = 8,
        phase_momentum: float = 0.99,
        phase_seed: int = 0,
    ) -> None:
        super().__init__()
        width = num_mels * patch_steps
        if not 1 <= latent_channels <= width:
            raise ValueError(f"latent_channels is {latent_channels}; num_mels * patch_steps allow 1 to {width}")
        self.sample_rate = sample_rate
        self.n_fft, self.hop_length, self.patch_steps, self.log_floor = n_fft, hop_length, patch_steps, log_floor
        self.phase_iterations, self.phase_momentum = phase_iterations, phase_momentum
        self.phase_seed = phase_seed
        self.latent_channels = latent_channels
        self.latent_rate = sample_rate / (hop_length * patch_steps)
        self.name = f"spectral_{sample_rate // 1000}khz_{latent_channels}x{self.latent_rate:g}hz"
        self.components = nn.Parameter(torch.eye(width)[:, :latent_channels].contiguous(), requires_grad=False)
        self.mean = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(latent_channels), requires_grad=False)
        mel = AF.melscale_fbanks(
            n_fft // 2 + 1, 0.0, sample_rate / 2, num_mels, sample_rate, norm="slaney", mel_scale="slaney"
        ).T
        self.register_buffer("mel", mel, persistent=False)
        self.register_buffer("mel_inverse", torch.linalg.pinv(mel), persistent=False)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def log_mel(self, waveform: Tensor) -> Tensor:
        """[batch, samples] -> [batch, mels, steps], the number of steps a multiple of `patch_steps`."""
        hop, patch = self.hop_length, self.patch_steps
        steps = max(1, -(-waveform.shape[-1] // (hop * patch))) * patch
        # one spectrum a hop, centred in it, so that a crop of latents is the latents of a crop
        before = (self.n_fft - hop) // 2
        after = steps * hop - waveform.shape[-1] + self.n_fft - hop - before
        padded = F.pad(waveform, (before, after))
        spectrum = torch.stft(padded, self.n_fft, hop, window=self.window, center=False, return_complex=True)
        return (self.mel @ spectrum.abs() + self.log_floor).log()

    def patches(self, waveform: Tensor) -> Tensor:
        """[batch, samples] -> [batch, mels * patch_steps, frames]"""
        log_mel = self.log_mel(waveform)
        batch, mels, steps = log_mel.shape
        patch = self.patch_steps
        return log_mel.view(batch, mels, steps // patch, patch).transpose(2, 3).reshape(batch, mels * patch, -1)

    @torch.no_grad()
    def fit(self, count: float, total: Tensor, products: Tensor) -> Tensor:
        """Take components, mean and scale from sums over a corpus' patches.

        Args:
            count: number of patches.
            total: [mels * patch_steps], their sum.
            products: [mels * patch_steps, mels * patch_steps], the sum of their outer products.

        Returns:
            [mels * patch_steps], the variance along each principal component, largest first.
        """
        mean = total / count
        variances, components = torch.linalg.eigh(products / count - mean[:, None] * mean)
        variances, components = variances.flip(0).clamp(min=0), components.flip(1)[:, : self.latent_channels]
        deviations = variances[: self.latent_channels].sqrt().clamp(min=1e-6)
        # after division by sqrt(s) a channel's variance is s; their mean becomes 1
        self.scale.copy_(deviations.sqrt() * deviations.mean().sqrt())
        self.mean.copy_(mean)
        self.components.copy_(components)
        return variances

    @torch.no_grad()
    def encode(self, waveform: Tensor) -> Tensor:
        if waveform.ndim != 3 or waveform.shape[1] != 1:
            raise ValueError(f"waveform is {tuple(waveform.shape)}; expected [batch, 1, samples]")
        centred = self.patches(waveform[:, 0].to(self.mean)) - self.mean[:, None]
        return (self.components.T @ centred) / self.scale[:, None]

    @torch.no_grad()
    def decode(self, latents: Tensor, *, num_samples: int | None = None) -> Tensor:
        if latents.ndim != 3 or latents.shape[1] != self.latent_channels:
            raise ValueError(f"latents are {tuple(latents.shape)}; expected [batch, {self.latent_channels}, frames]")
        y = self.components @ (latents.to(self.mean) * self.scale[:, None]) + self.mean[:, None]
        batch, width, frames = y.shape
        patch = self.patch_steps
        log_mel = y.view(batch, width // patch, patch, frames).transpose(2, 3).reshape(batch, width // patch, -1)
        waveform = self.from_log_mel(log_mel)
        return waveform[:, None, :num_samples]

    def from_log_mel(self, log_mel: Tensor) -> Tensor:
        """[batch, mels, steps] -> [batch, steps * hop_length]"""
        mel = (log_mel.exp() - self.log_floor).clamp(min=0)
        magnitudes = (self.mel_inverse @ mel).clamp(min=0)
        generator = torch.Generator().manual_seed(self.phase_seed)
        angles = torch.rand(magnitudes.shape[1:], generator=generator).to(magnitudes) * (2 * torch.pi)
        spectrum = magnitudes * torch.polar(torch.ones_like(angles), angles)
        num_samples = magnitudes.shape[-1] * self.hop_length
        previous = torch.zeros_like(spectrum)
        for _ in range(self.phase_iterations):
            consistent = self._stft(self._istft(spectrum, num_samples))
            moved = consistent + self.phase_momentum * (consistent - previous)
            previous = consistent
            spectrum = magnitudes * moved.sgn()
        return self._istft(spectrum, num_samples)

    def _stft(self, waveform: Tensor) -> Tensor:
        n_fft, hop = self.n_fft, self.hop_length
        before = (n_fft - hop) // 2
        padded = F.pad(waveform, (before, n_fft - hop - before))
        return torch.stft(padded, n_fft, hop, window=self.window, center=False, return_complex=True)

    def _istft(self, spectrum: Tensor, num_samples: int) -> Tensor:
        n_fft, hop = self.n_fft, self.hop_length
        before = (n_fft - hop) // 2
        pieces = torch.fft.irfft(spectrum.transpose(1, 2), n_fft) * self.window
        size = {"output_size": (1, num_samples + n_fft - hop), "kernel_size": (1, n_fft), "stride": (1, hop)}
        weight = F.fold((self.window**2)[None, :, None].expand(1, -1, spectrum.shape[-1]), **size)
        waveform = (F.fold(pieces.transpose(1, 2), **size) / weight.clamp(min=1e-3))[:, 0, 0]
        return waveform[:, before : before + num_samples]
