"""The spectral autoencoder: a linear code of the log-mel spectrogram, and phase by Griffin-Lim.

    S   magnitudes of the short-time Fourier transform    [batch, bins, steps], of each audio channel
    M   mel matrix (Slaney's scale and norm)              [mels, bins]
    Y   log(M S + floor)                                  [batch, channels * mels, steps]
    y   patches of `patch_steps` columns of Y             [batch, channels * mels * patch_steps, frames]
    z   latents  V^T (y - mean) / scale                   [batch, latent_channels, frames]

V holds the principal components of y over a corpus, so z is the best linear code of its width. A component
with deviation s is divided by sqrt(s), not by s: small ones stay small beside large ones, and the diffusion
model spends its effort where the sound is. A common factor brings the deviation over all channels to 1.

Back: y from z, magnitudes through the pseudo-inverse of M, and a phase that agrees with them by fast
Griffin-Lim (Perraudin, Balazs & Søndergaard 2013, "A fast Griffin-Lim algorithm", alg. 2) from a seeded
random start, so that the same latents always give the same sound. The start belongs to the step in the sound,
whatever its length, so that a window of a long sound begins where the whole does.

In stereo the components are those of both channels' log-mels together: what the channels have in common is
coded once, and how their levels differ beside it. Left and right rather than mid and side, because a sound that
comes from one side is mid and side in a fixed phase, which log-mels forget; of left and right they keep the levels.
Both start from the same phase: what is the same on both sides stays so, in the middle.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from diffaudio.models.autoencoders.base import Autoencoder, Reach

__all__ = ["SpectralAutoencoder"]

PHASE_BLOCK = 64  # steps whose starting phases are drawn at once


class SpectralAutoencoder(Autoencoder):
    """Principal components of log-mel patches; nothing in it is learned by gradient.

    Args:
        sample_rate: in Hz.
        n_fft: window length in samples (Hann).
        hop_length: samples between two spectra.
        num_mels: mel bands from 0 Hz to half the sample rate.
        patch_steps: spectra in a latent frame.
        latent_channels: principal components kept, at most audio_channels * num_mels * patch_steps.
        log_floor: mel magnitude that silence counts as.
        phase_iterations: rounds of Griffin-Lim.
        phase_momentum: alpha of the fast algorithm.
        phase_seed: of the random phase, 0 or more.
        audio_channels: 1, or 2 for stereo.
    """

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
        audio_channels: int = 1,
    ) -> None:
        super().__init__()
        if audio_channels not in (1, 2):
            raise ValueError(f"audio_channels is {audio_channels}; choose 1 (mono) or 2 (stereo)")
        width = audio_channels * num_mels * patch_steps
        if not 1 <= latent_channels <= width:
            product = "num_mels * patch_steps" if audio_channels == 1 else "2 * num_mels * patch_steps"
            raise ValueError(f"latent_channels is {latent_channels}; {product} allow 1 to {width}")
        self.sample_rate, self.audio_channels, self.num_mels = sample_rate, audio_channels, num_mels
        self.n_fft, self.hop_length, self.patch_steps, self.log_floor = n_fft, hop_length, patch_steps, log_floor
        self.phase_iterations, self.phase_momentum = phase_iterations, phase_momentum
        self.phase_seed = phase_seed
        self.latent_channels = latent_channels
        self.latent_rate = sample_rate / (hop_length * patch_steps)
        kind = "spectral" if audio_channels == 1 else "spectral_stereo"
        self.name = f"{kind}_{sample_rate // 1000}khz_{latent_channels}x{self.latent_rate:g}hz"
        self.components = nn.Parameter(torch.eye(width)[:, :latent_channels].contiguous(), requires_grad=False)
        self.mean = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(latent_channels), requires_grad=False)
        mel = AF.melscale_fbanks(
            n_fft // 2 + 1, 0.0, sample_rate / 2, num_mels, sample_rate, norm="slaney", mel_scale="slaney"
        ).T
        self.register_buffer("mel", mel, persistent=False)
        self.register_buffer("mel_inverse", torch.linalg.pinv(mel), persistent=False)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    @property
    def reach(self) -> Reach:
        """A spectrum reaches over the edge of its hop; each round of Griffin-Lim makes all that overlap agree."""
        overlap = (self.n_fft - 1) // self.hop_length  # steps on each side that share samples with one
        decode_steps = (self.phase_iterations + 1) * overlap
        edge_steps = math.ceil((self.n_fft - self.hop_length + 1) / (2 * self.hop_length))
        return Reach(math.ceil(edge_steps / self.patch_steps), math.ceil(decode_steps / self.patch_steps))

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
        """[batch, audio_channels, samples] -> [batch, audio_channels * mels * patch_steps, frames]"""
        log_mel = self.log_mel(waveform.flatten(0, 1)).unflatten(0, (-1, self.audio_channels)).flatten(1, 2)
        return log_mel.unflatten(2, (-1, self.patch_steps)).transpose(2, 3).flatten(1, 2)

    @torch.no_grad()
    def fit(self, count: float, total: Tensor, products: Tensor) -> Tensor:
        """Take components, mean and scale from sums over a corpus' patches.

        Args:
            count: number of patches.
            total: [width], their sum; the width is audio_channels * mels * patch_steps.
            products: [width, width], the sum of their outer products.

        Returns:
            [width], the variance along each principal component, largest first.
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
        if waveform.ndim != 3 or waveform.shape[1] != self.audio_channels:
            raise ValueError(f"waveform is {tuple(waveform.shape)}; expected [batch, {self.audio_channels}, samples]")
        centred = self.patches(waveform.to(self.mean)) - self.mean[:, None]
        return (self.components.T @ centred) / self.scale[:, None]

    @torch.no_grad()
    def decode(self, latents: Tensor, *, num_samples: int | None = None) -> Tensor:
        return self.decode_window(latents, first_frame=0)[..., :num_samples]

    @torch.no_grad()
    def decode_window(self, latents: Tensor, *, first_frame: int) -> Tensor:
        if latents.ndim != 3 or latents.shape[1] != self.latent_channels:
            raise ValueError(f"latents are {tuple(latents.shape)}; expected [batch, {self.latent_channels}, frames]")
        y = self.components @ (latents.to(self.mean) * self.scale[:, None]) + self.mean[:, None]
        log_mel = y.unflatten(1, (self.audio_channels, self.num_mels, self.patch_steps)).transpose(3, 4).flatten(3, 4)
        waveform = self.from_log_mel(log_mel.flatten(0, 1), first_step=first_frame * self.patch_steps)
        return waveform.unflatten(0, (-1, self.audio_channels))

    def from_log_mel(self, log_mel: Tensor, *, first_step: int = 0) -> Tensor:
        """[batch, mels, steps] -> [batch, steps * hop_length]; all items start from the same phases."""
        mel = (log_mel.exp() - self.log_floor).clamp(min=0)
        magnitudes = (self.mel_inverse @ mel).clamp(min=0)
        angles = self._first_angles(first_step, magnitudes.shape[-1]).to(magnitudes)
        spectrum = magnitudes * torch.polar(torch.ones_like(angles), angles)
        steps = magnitudes.shape[-1]
        weight = self._overlap_add((self.window**2).expand(1, steps, -1)).clamp(min=1e-3)
        previous = torch.zeros_like(spectrum)
        for _ in range(self.phase_iterations):
            consistent = self._stft(self._istft(spectrum, weight))
            moved = consistent + self.phase_momentum * (consistent - previous)
            previous = consistent
            spectrum = magnitudes * moved.sgn()
        return self._istft(spectrum, weight)

    def _first_angles(self, first_step: int, num_steps: int) -> Tensor:
        """[bins, num_steps], 0 to 2 pi: a function of seed, step in the sound and bin alone."""
        first, last = first_step // PHASE_BLOCK, (first_step + num_steps - 1) // PHASE_BLOCK
        bins = self.n_fft // 2 + 1
        blocks = [
            np.random.Philox(key=self.phase_seed, counter=[0, 0, 0, block]).random_raw(PHASE_BLOCK * bins)
            for block in range(first, last + 1)
        ]
        drawn = np.concatenate(blocks).reshape(-1, bins)[first_step - first * PHASE_BLOCK :][:num_steps]
        return torch.from_numpy((drawn >> 40).astype(np.float32) * np.float32(2 * math.pi / 2**24)).T

    def _stft(self, waveform: Tensor) -> Tensor:
        n_fft, hop = self.n_fft, self.hop_length
        before = (n_fft - hop) // 2
        padded = F.pad(waveform, (before, n_fft - hop - before))
        return torch.stft(padded, n_fft, hop, window=self.window, center=False, return_complex=True)

    def _istft(self, spectrum: Tensor, weight: Tensor) -> Tensor:
        """Least squares (Griffin & Lim 1984, eq. 6); `weight` is the overlap-add of the squared windows."""
        before = (self.n_fft - self.hop_length) // 2
        pieces = torch.fft.irfft(spectrum.transpose(1, 2), self.n_fft) * self.window
        waveform = self._overlap_add(pieces) / weight
        return waveform[:, before : before + spectrum.shape[-1] * self.hop_length]

    def _overlap_add(self, pieces: Tensor) -> Tensor:
        """[batch, steps, n_fft], each a hop after the one before -> [batch, samples]; several times `F.fold`'s speed"""
        batch, steps, n_fft = pieces.shape
        hop, parts = self.hop_length, math.ceil(n_fft / self.hop_length)
        in_hops = F.pad(pieces, (0, parts * hop - n_fft)).unflatten(2, (parts, hop))
        summed = pieces.new_zeros(batch, steps + parts - 1, hop)
        for part in range(parts):
            summed[:, part : part + steps] += in_hops[:, :, part]
        return summed.flatten(1)
