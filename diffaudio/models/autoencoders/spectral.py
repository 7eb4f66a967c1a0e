"""The spectral autoencoder: a linear code of the log-mel spectrogram, and a waveform that agrees with it.

    Y   log-mel spectrogram (`mel_inversion.py`)          [batch, steps, mels], of each audio channel
    y   patches of `patch_steps` columns of Y             [batch, channels * mels * patch_steps, frames]
    z   latents  V^T (y - mean) / scale                   [batch, latent_channels, frames]

V holds the principal components of y over a corpus, so z is the best linear code of its width. A component with
standard deviation s is divided by sqrt(s), not by s: small ones stay small beside large ones, and the diffusion model
spends its capacity where the energy is. A common factor brings the standard deviation over all channels to 1.

Decoding computes y from z, and from that log-mel a waveform whose overlapping spectra agree (`mel_inversion.py`). Two
parts may be learned (`detail_and_vocoder.py`), and leave the latents unchanged: `detail` adds to y what the linear
code drops, from the frames around it and from noise where it cannot be known; `vocoder` corrects gain and phase of the
spectrum at the end of the inversion.

In stereo the components are those of both channels' log-mels together: what the channels have in common is coded once,
and the difference of their levels beside it. Left and right are coded rather than mid and side, because a sound from
one side is mid and side in a fixed phase, which log-mels drop; the levels of left and right they keep. Both channels
start from the same phase: what is equal on both sides stays so, in the middle.
"""

import copy
import math
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffaudio.errors import UserError
from diffaudio.models.autoencoders.base import Autoencoder, Reach, TrainingPass
from diffaudio.models.autoencoders.detail_and_vocoder import (
    Detail,
    DetailSettings,
    SpectrogramEnergy,
    Vocoder,
    VocoderSettings,
    energy_distance,
)
from diffaudio.models.autoencoders.mel_inversion import InversionSettings, MelInversion

__all__ = ["SpectralAutoencoder"]

GROUPED_MELS = 4  # neighbouring mel bands of a patch that the energy distance compares together
MAX_FIRST_STEP = 2**20
DB = 20 / math.log(10)  # in a neper

DEFAULT_INVERSION = InversionSettings()

S = TypeVar("S", InversionSettings, DetailSettings, VocoderSettings)


class SpectralAutoencoder(Autoencoder):
    """Principal components of log-mel patches; only `detail` and `vocoder` are learned by gradient.

    Args:
        sample_rate: in Hz.
        n_fft: window length in samples (Hann).
        hop_length: samples between two spectra.
        num_mels: mel bands from 0 Hz to half the sample rate.
        patch_steps: spectra in a latent frame.
        latent_channels: principal components kept, at most audio_channels * num_mels * patch_steps.
        log_floor: added to mel magnitudes, so that silence has a logarithm.
        audio_channels: 1, or 2 for stereo.
        inversion: how waveforms are estimated from log-mels.
        detail: of the network that restores detail; None does without.
        vocoder: of the network that corrects the spectrum; None does without.

    The last three may be given as dictionaries too, as they stand in config.json.

    Raises:
        ValueError: a value is out of range, or a dictionary has an unknown or missing key.
    """

    def __init__(
        self,
        sample_rate: int = 24000,
        n_fft: int = 1024,
        hop_length: int = 240,
        num_mels: int = 128,
        patch_steps: int = 4,
        latent_channels: int = 128,
        log_floor: float = 1e-4,
        audio_channels: int = 1,
        inversion: InversionSettings | Mapping[str, Any] = DEFAULT_INVERSION,
        detail: DetailSettings | Mapping[str, Any] | None = None,
        vocoder: VocoderSettings | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        inversion = _settings(InversionSettings, inversion, "inversion")
        detail = None if detail is None else _settings(DetailSettings, detail, "detail")
        vocoder = None if vocoder is None else _settings(VocoderSettings, vocoder, "vocoder")
        self.register_to_config(
            sample_rate=sample_rate, n_fft=n_fft, hop_length=hop_length, num_mels=num_mels, patch_steps=patch_steps,
            latent_channels=latent_channels, log_floor=log_floor, audio_channels=audio_channels,
            inversion=asdict(inversion),
            detail=None if detail is None else asdict(detail),
            vocoder=None if vocoder is None else asdict(vocoder),
        )  # fmt: skip
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
            settings=inversion,
        )
        self.detail_temperature = detail.temperature if detail else 0.0
        self.detail = Detail(latent_channels, width, detail) if detail else None
        self.vocoder = Vocoder(self.inversion, vocoder) if vocoder else None
        self.spectrogram_energy = SpectrogramEnergy(sample_rate, n_fft) if vocoder else None

    @property
    def reach(self) -> Reach:
        """A window is longer than its hop; each iteration of the inversion spreads over the windows that overlap."""
        edge_steps = math.ceil((self.n_fft - self.hop_length + 1) / (2 * self.hop_length))
        decode_steps = self.inversion.reach_steps + (self.vocoder.reach_steps if self.vocoder else 0)
        decode = math.ceil(decode_steps / self.patch_steps) + (self.detail.reach_frames if self.detail else 0)
        return Reach(math.ceil(edge_steps / self.patch_steps), decode)

    def log_mel(self, waveform: Tensor) -> Tensor:
        """[batch, samples] -> [batch, steps, mels], the number of steps a multiple of `patch_steps`."""
        # one spectrum a hop, centred in it, so that a crop of latents is the latents of a crop
        frame = self.hop_length * self.patch_steps
        missing = max(frame, math.ceil(waveform.shape[-1] / frame) * frame) - waveform.shape[-1]
        return self.inversion.log_mel(F.pad(waveform, (0, missing)))

    def patches(self, waveform: Tensor) -> Tensor:
        """[batch, audio_channels, samples] -> [batch, audio_channels * mels * patch_steps, frames]"""
        log_mel = self.log_mel(waveform.flatten(0, 1)).unflatten(0, (-1, self.audio_channels))
        return log_mel.unflatten(2, (-1, self.patch_steps)).permute(0, 1, 4, 3, 2).flatten(1, 3)

    def from_patches(self, patches: Tensor) -> Tensor:
        """[batch, audio_channels * mels * patch_steps, frames] -> log-mels [batch * audio_channels, steps, mels]"""
        split = patches.unflatten(1, (self.audio_channels, self.num_mels, self.patch_steps))
        return split.permute(0, 1, 4, 3, 2).flatten(2, 3).flatten(0, 1)

    @torch.no_grad()
    def fit(self, count: float, total: Tensor, products: Tensor) -> Tensor:
        """Compute components, mean and scale from sums over the patches of a corpus.

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
        stds = variances[: self.latent_channels].sqrt().clamp(min=1e-6)
        # after division by sqrt(s) a channel's variance is s; their mean becomes 1
        self.scale.copy_(stds.sqrt() * stds.mean().sqrt())
        self.mean.copy_(mean)
        self.components.copy_(components)
        return variances

    @torch.no_grad()
    def encode(self, waveform: Tensor) -> Tensor:
        if waveform.ndim != 3 or waveform.shape[1] != self.audio_channels:
            raise UserError(f"waveform is {tuple(waveform.shape)}; expected [batch, {self.audio_channels}, samples]")
        return self._project(self.patches(waveform.to(self.mean)))

    @torch.no_grad()
    def decode(self, latents: Tensor, *, num_samples: int | None = None) -> Tensor:
        return self.decode_window(latents, first_frame=0)[..., :num_samples]

    @torch.no_grad()
    def decode_bounded(self, latents: Tensor, *, num_samples: int | None = None) -> tuple[Tensor, Tensor]:
        waveform, share = self._decode(latents, first_frame=0)
        return waveform[..., :num_samples], share

    @torch.no_grad()
    def decode_window(self, latents: Tensor, *, first_frame: int) -> Tensor:
        return self._decode(latents, first_frame=first_frame)[0]

    @torch.no_grad()
    def decode_window_bounded(self, latents: Tensor, *, first_frame: int) -> tuple[Tensor, Tensor]:
        return self._decode(latents, first_frame=first_frame)

    def _decode(self, latents: Tensor, *, first_frame: int) -> tuple[Tensor, Tensor]:
        """The waveform, and the share of the log-mel that was louder than any recording, [batch].

        Guided latents leave the range of recordings, where the decoder's exponential makes peaks of 10^14 and NaN: at
        guidance scale 3 a share of 1e-4 in some sounds, at 10 up to 0.08, at 50 a third. It is brought down to what a
        sine at full scale has in each band. A share of 0 leaves the sound as it is.
        """
        if latents.ndim != 3 or latents.shape[1] != self.latent_channels:
            raise UserError(f"latents are {tuple(latents.shape)}; expected [batch, {self.latent_channels}, frames]")
        latents = latents.to(self.mean)
        patches = self._back_project(latents)
        if self.detail:
            uniform = self.inversion.random(first_frame, latents.shape[2], self.detail.noise_channels)
            noise = self.detail_temperature * self.detail.standardise(uniform).to(latents)
            patches = patches + self.detail(latents, noise)
        log_mel, maximum = self.from_patches(patches), self.inversion.max_log_mel
        share = (log_mel > maximum).float().mean(dim=(1, 2)).unflatten(0, (-1, self.audio_channels)).mean(dim=1)
        waveform = self._waveform(torch.minimum(log_mel, maximum), first_step=first_frame * self.patch_steps)
        return waveform.unflatten(0, (-1, self.audio_channels)), share

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write the folder: the code in single precision, the learned parts in half."""
        saved = copy.deepcopy(self)
        for part in (saved.detail, saved.vocoder):
            if part is not None:
                part.half()
        super(SpectralAutoencoder, saved).save_pretrained(save_directory, **kwargs)

    def _project(self, patches: Tensor) -> Tensor:
        return (self.components.T @ (patches - self.mean[:, None])) / self.scale[:, None]

    def _back_project(self, latents: Tensor) -> Tensor:
        return self.components @ (latents * self.scale[:, None]) + self.mean[:, None]

    def _waveform(self, log_mel: Tensor, *, first_step: int) -> Tensor:
        """Log-mels [batch * audio_channels, steps, mels] -> [batch * audio_channels, samples]"""
        with torch.no_grad():
            spectrum = self.inversion.spectrum(log_mel, first_step=first_step)
        return self.inversion.istft(self.vocoder(spectrum, log_mel) if self.vocoder else spectrum)

    def learn(self, parts: Collection[str]) -> None:
        """Train these parts of `detail` and `vocoder`, and freeze the other.

        Raises:
            ValueError: the autoencoder does not have one of them.
        """
        for part in ("detail", "vocoder"):
            module: nn.Module | None = getattr(self, part)
            if module is not None:
                module.requires_grad_(part in parts)
            elif part in parts:
                raise UserError(f"this autoencoder has no {part}; add one with spectral.{part}.channels")

    def forward(self, waveform: Tensor, generator: torch.Generator | None = None) -> TrainingPass:
        """The losses of the learned parts that are trained, and a reconstruction of the recordings' own log-mels.

        Each part learns from the energy distance of two samples, in dB: `detail` of log-mel patches sampled for the
        latents, `vocoder` of waveforms for the recordings' own log-mels, from other starting phases. So neither
        depends on the other, nor the vocoder on the code. Gradients flow through the reconstruction to the vocoder
        where it is trained.

        Args:
            waveform: [batch, audio_channels, samples], a multiple of hop_length * patch_steps, and of 4 * n_fft at
                least.
            generator: of noise and phases, on the CPU.
        """
        with torch.no_grad(), torch.autocast(waveform.device.type, enabled=False):
            patches = self.patches(waveform)
            latents = self._project(patches)
            linear = self._back_project(latents)
        losses: dict[str, Tensor] = {}
        if self.detail and _is_trained(self.detail):
            noise = torch.cat([self.detail.draw_noise(latents, generator) for _ in range(2)])
            restored = linear.repeat(2, 1, 1) + self.detail(latents.repeat(2, 1, 1), noise)
            losses["detail"] = DB * energy_distance(*map(self._grouped, (*restored.chunk(2), patches)))
        first_step, other_step = torch.randint(MAX_FIRST_STEP, (2,), generator=generator).tolist()
        reconstruction = self._reconstruct(patches, first_step)
        if self.spectrogram_energy and _is_trained(self.vocoder):
            other = self._reconstruct(patches, other_step)
            losses["vocoder"] = self.spectrogram_energy(reconstruction, other, waveform)
        return TrainingPass(reconstruction, losses)

    def _reconstruct(self, patches: Tensor, first_step: int) -> Tensor:
        """[batch, audio_channels * mels * patch_steps, frames] -> [batch, audio_channels, samples]"""
        waveform = self._waveform(self.from_patches(patches), first_step=first_step)
        return waveform.unflatten(0, (-1, self.audio_channels))

    def _grouped(self, patches: Tensor) -> Tensor:
        """[batch, audio_channels * mels * patch_steps, frames] -> [batch, frames, groups, group size]"""
        mels = math.gcd(self.num_mels, GROUPED_MELS)
        return patches.transpose(1, 2).unflatten(2, (-1, mels * self.patch_steps))


def _is_trained(part: nn.Module | None) -> bool:
    return part is not None and any(parameter.requires_grad for parameter in part.parameters())


def _settings(kind: type[S], value: S | Mapping[str, Any], name: str) -> S:
    """The settings of a part, which config.json holds as a dictionary.

    Raises:
        ValueError: a key is unknown, or one without a default is missing.
    """
    if not isinstance(value, Mapping):
        return value
    known = {field.name: field.default is MISSING for field in fields(kind)}
    for key in value:
        if key not in known:
            raise UserError(f"{name}: unknown key {key!r}; choose from {', '.join(known)}")
    for key, required in known.items():
        if required and key not in value:
            raise UserError(f"{name}: {key} is missing")
    return kind(**value)
