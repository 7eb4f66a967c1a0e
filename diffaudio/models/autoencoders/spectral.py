"""The spectral autoencoder: a linear code of the log-mel spectrogram, and a waveform that agrees with it.

    Y   log-mel spectrogram (`mel_inversion.py`)          [batch, steps, mels], of each audio channel
    y   patches of `patch_steps` columns of Y             [batch, channels * mels * patch_steps, frames]
    z   latents  V^T (y - mean) / scale                   [batch, latent_channels, frames]

V holds the principal components of y over a corpus, so z is the best linear code of its width. A component
with deviation s is divided by sqrt(s), not by s: small ones stay small beside large ones, and the diffusion
model spends its effort where the sound is. A common factor brings the deviation over all channels to 1.

Back: y from z, and of the waveforms with that log-mel one whose overlapping spectra agree (`mel_inversion.py`). Two
parts may be learned beside (`learned.py`), and leave the latents as they are: `detail` adds to y what the linear code
drops, with regard to what is around and with noise for what nobody can know; `vocoder` corrects gain and phase of the
spectrum that the inversion ends with.

In stereo the components are those of both channels' log-mels together: what the channels have in common is
coded once, and how their levels differ beside it. Left and right rather than mid and side, because a sound that
comes from one side is mid and side in a fixed phase, which log-mels forget; of left and right they keep the levels.
Both start from the same phase: what is the same on both sides stays so, in the middle.
"""

import copy
import math
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from diffaudio.errors import UserError
from diffaudio.models.autoencoders.base import Autoencoder, Reach, TrainingPass
from diffaudio.models.autoencoders.learned_parts import Detail, SpectrogramEnergy, Vocoder, energy_distance
from diffaudio.models.autoencoders.mel_inversion import MelInversion

__all__ = ["SpectralAutoencoder"]

GROUPED_MELS = 4  # neighbouring mel bands of a patch whose detail is compared together
FARTHEST_STEP = 2**20
DB = 20 / math.log(10)  # in a neper


class SpectralAutoencoder(Autoencoder):
    """Principal components of log-mel patches; nothing but `detail` and `vocoder` is learned by gradient.

    Args:
        sample_rate: in Hz.
        n_fft: window length in samples (Hann).
        hop_length: samples between two spectra.
        num_mels: mel bands from 0 Hz to half the sample rate.
        patch_steps: spectra in a latent frame.
        latent_channels: principal components kept, at most audio_channels * num_mels * patch_steps.
        log_floor: mel magnitude that silence counts as.
        phase_iterations: rounds of the mel's inversion.
        phase_momentum: alpha of fast Griffin-Lim.
        phase_seed: of the random phase, 0 or more.
        audio_channels: 1, or 2 for stereo.
        joint_inversion: whether the inversion seeks magnitudes beside phases; otherwise it is Griffin-Lim on those of
            the mel's pseudo-inverse.
        detail_channels: width of the network that restores detail; 0 does without.
        detail_blocks: its depth.
        detail_temperature: how much noise it gets, 1 for as much as it learned with, 0 for none.
        vocoder_channels: width of the network that corrects the spectrum; 0 does without.
        vocoder_blocks: its depth.
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
        joint_inversion: bool = True,
        detail_channels: int = 0,
        detail_blocks: int = 4,
        detail_temperature: float = 0.0,
        vocoder_channels: int = 0,
        vocoder_blocks: int = 4,
    ) -> None:
        super().__init__()
        if audio_channels not in (1, 2):
            raise UserError(f"audio_channels is {audio_channels}; choose 1 (mono) or 2 (stereo)")
        width = audio_channels * num_mels * patch_steps
        if not 1 <= latent_channels <= width:
            product = "num_mels * patch_steps" if audio_channels == 1 else "2 * num_mels * patch_steps"
            raise UserError(f"latent_channels is {latent_channels}; {product} allow 1 to {width}")
        self.sample_rate, self.audio_channels, self.num_mels = sample_rate, audio_channels, num_mels
        self.n_fft, self.hop_length, self.patch_steps = n_fft, hop_length, patch_steps
        self.latent_channels = latent_channels
        self.latent_rate = sample_rate / (hop_length * patch_steps)
        kind = "spectral" if audio_channels == 1 else "spectral_stereo"
        self.name = f"{kind}_{sample_rate // 1000}khz_{latent_channels}x{self.latent_rate:g}hz"
        self.components = nn.Parameter(torch.eye(width)[:, :latent_channels].contiguous(), requires_grad=False)
        self.mean = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(latent_channels), requires_grad=False)
        self.inversion = MelInversion(
            sample_rate=sample_rate,
            n_fft=n_fft,
            hop_length=hop_length,
            num_mels=num_mels,
            log_floor=log_floor,
            iterations=phase_iterations,
            momentum=phase_momentum,
            seed=phase_seed,
            joint=joint_inversion,
        )
        self.detail_temperature = detail_temperature
        self.detail = Detail(latent_channels, width, detail_channels, detail_blocks) if detail_channels else None
        self.vocoder = Vocoder(self.inversion, vocoder_channels, vocoder_blocks) if vocoder_channels else None
        self.spectrogram_energy = SpectrogramEnergy(sample_rate, n_fft) if vocoder_channels else None

    @property
    def reach(self) -> Reach:
        """A spectrum reaches over the edge of its hop; each round of the inversion makes all that overlap agree."""
        edge_steps = math.ceil((self.n_fft - self.hop_length + 1) / (2 * self.hop_length))
        decode_steps = self.inversion.reach_steps + (self.vocoder.reach_steps if self.vocoder else 0)
        decode = math.ceil(decode_steps / self.patch_steps) + (self.detail.reach_frames if self.detail else 0)
        return Reach(math.ceil(edge_steps / self.patch_steps), decode)

    def log_mel(self, waveform: Tensor) -> Tensor:
        """[batch, samples] -> [batch, steps, mels], the number of steps a multiple of `patch_steps`."""
        # one spectrum a hop, centred in it, so that a crop of latents is the latents of a crop
        frame = self.hop_length * self.patch_steps
        short = max(frame, math.ceil(waveform.shape[-1] / frame) * frame) - waveform.shape[-1]
        return self.inversion.log_mel(F.pad(waveform, (0, short)))

    def patches(self, waveform: Tensor) -> Tensor:
        """[batch, audio_channels, samples] -> [batch, audio_channels * mels * patch_steps, frames]"""
        log_mel = self.log_mel(waveform.flatten(0, 1)).unflatten(0, (-1, self.audio_channels))
        return log_mel.unflatten(2, (-1, self.patch_steps)).permute(0, 1, 4, 3, 2).flatten(1, 3)

    def from_patches(self, patches: Tensor) -> Tensor:
        """[batch, audio_channels * mels * patch_steps, frames] -> log-mels [batch * audio_channels, steps, mels]"""
        whole = patches.unflatten(1, (self.audio_channels, self.num_mels, self.patch_steps))
        return whole.permute(0, 1, 4, 3, 2).flatten(2, 3).flatten(0, 1)

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
            raise UserError(f"waveform is {tuple(waveform.shape)}; expected [batch, {self.audio_channels}, samples]")
        return self._code(self.patches(waveform.to(self.mean)))

    @torch.no_grad()
    def decode(self, latents: Tensor, *, num_samples: int | None = None) -> Tensor:
        return self.decode_window(latents, first_frame=0)[..., :num_samples]

    @torch.no_grad()
    def decode_window(self, latents: Tensor, *, first_frame: int) -> Tensor:
        if latents.ndim != 3 or latents.shape[1] != self.latent_channels:
            raise UserError(f"latents are {tuple(latents.shape)}; expected [batch, {self.latent_channels}, frames]")
        latents = latents.to(self.mean)
        patches = self._linear(latents)
        if self.detail:
            drawn = self.inversion.random(first_frame, latents.shape[2], self.detail.noise_channels)
            noise = self.detail_temperature * self.detail.scaled(drawn).to(latents)
            patches = patches + self.detail(latents, noise)
        waveform = self._waveform(self.from_patches(patches), first_step=first_frame * self.patch_steps)
        return waveform.unflatten(0, (-1, self.audio_channels))

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write the folder: the code in single precision, the learned parts in half."""
        kept = copy.deepcopy(self)
        for part in (kept.detail, kept.vocoder):
            if part is not None:
                part.half()
        super(SpectralAutoencoder, kept).save_pretrained(save_directory, **kwargs)

    def _code(self, patches: Tensor) -> Tensor:
        return (self.components.T @ (patches - self.mean[:, None])) / self.scale[:, None]

    def _linear(self, latents: Tensor) -> Tensor:
        return self.components @ (latents * self.scale[:, None]) + self.mean[:, None]

    def _waveform(self, log_mel: Tensor, *, first_step: int) -> Tensor:
        """Log-mels [batch * audio_channels, steps, mels] -> [batch * audio_channels, samples]"""
        with torch.no_grad():
            spectrum = self.inversion.spectrum(log_mel, first_step=first_step)
        return self.inversion.istft(self.vocoder(spectrum, log_mel) if self.vocoder else spectrum)

    def learn(self, parts: Collection[str]) -> None:
        """Have training change these parts of `detail` and `vocoder`, and leave the other as it is.

        Raises:
            ValueError: the autoencoder does not have one of them.
        """
        for part in ("detail", "vocoder"):
            module: nn.Module | None = getattr(self, part)
            if module is not None:
                module.requires_grad_(part in parts)
            elif part in parts:
                raise UserError(f"this autoencoder has no {part}; give it one with {part}_channels above 0")

    def forward(self, waveform: Tensor, generator: torch.Generator | None = None) -> TrainingPass:
        """What teaches the learned parts; the code stays.

        Each learns from the energy distance of two draws, in dB: `detail` of log-mel patches that it draws for the
        latents, `vocoder` of waveforms made for the recordings' own log-mels from other starting phases. So neither
        depends on the other, nor the vocoder on the code.

        Args:
            waveform: [batch, audio_channels, samples], a multiple of hop_length * patch_steps, and of 4 * n_fft at
                least.
            generator: of noise and phases, on the CPU.
        """
        with torch.no_grad(), torch.autocast(waveform.device.type, enabled=False):
            given = self.patches(waveform)
            latents = self._code(given)
            linear = self._linear(latents)
        losses: dict[str, Tensor] = {}
        if self.detail and _learns(self.detail):
            noise = torch.cat([self.detail.drawn(latents, generator) for _ in range(2)])
            restored = linear.repeat(2, 1, 1) + self.detail(latents.repeat(2, 1, 1), noise)
            first, second, third = (self._grouped(patches) for patches in (*restored.chunk(2), given))
            losses["detail"] = DB * energy_distance(first, second, third)
        made: Tensor | None = None
        if self.spectrogram_energy and _learns(self.vocoder):
            steps = torch.randint(FARTHEST_STEP, (2,), generator=generator).tolist()
            made, other = (
                self._waveform(self.from_patches(given), first_step=step).unflatten(0, (-1, self.audio_channels))
                for step in steps
            )
            losses["vocoder"] = self.spectrogram_energy(made, other, waveform)
        return TrainingPass(made, losses)

    def _grouped(self, patches: Tensor) -> Tensor:
        """[batch, audio_channels * mels * patch_steps, frames] -> [..., what is close in a patch]"""
        mels = math.gcd(self.num_mels, GROUPED_MELS)
        return patches.transpose(1, 2).unflatten(2, (-1, mels * self.patch_steps))


def _learns(part: nn.Module | None) -> bool:
    return part is not None and any(parameter.requires_grad for parameter in part.parameters())
