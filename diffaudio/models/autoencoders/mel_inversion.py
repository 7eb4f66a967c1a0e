"""From a log-mel spectrogram to a waveform, without learning: overlapping windows decide what the mel leaves open.

    S   short-time Fourier transform            [batch, steps, bins], complex
    M   mel matrix                              [bins, mels]
    Y   log(|S| M + floor)                      [batch, steps, mels], the input
    P   STFT of the inverse STFT                the projection of S onto spectra of waveforms

Griffin-Lim (1984) finds a phase for given magnitudes, but no waveform has the magnitudes of a mel's pseudo-inverse.
Here both are estimated, as Masuyama, Ueno & Ono 2023 (arXiv:2307.12232) do, but in the steps of fast Griffin-Lim
(Perraudin, Balazs & Søndergaard 2013, alg. 2): every iteration takes the magnitudes of P(S) times the gain that brings
their log-mel to Y, and the phase of P(S) extrapolated by the momentum. A bin's gain is the mean of those of the mel
bands it lies in, by their weights. Structure finer than a mel band follows from the consistency of overlapping windows.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from torch import Tensor, nn

__all__ = ["InversionSettings", "MelInversion"]

RANDOM_BLOCK = 64  # steps whose random numbers are drawn at once
MAX_GAIN = 3.0  # of an iteration, in nepers
MIN_WEIGHT = 1e-3  # of overlapping windows, at the ends
MIN_POWER = 1e-24
LOG_MEL_MARGIN = 0.35  # nepers; sines between two bins, and a linear code of recordings, pass by up to 0.34


@dataclass(frozen=True)
class InversionSettings:
    """How a waveform is estimated from a log-mel spectrogram.

    Attributes:
        iterations: 0 or more.
        momentum: alpha of the fast algorithm.
        seed: of the random phase at the start, 0 or more.
        joint: whether magnitudes are estimated beside phases; otherwise those of the mel's pseudo-inverse stay, as in
            Griffin-Lim.
    """

    iterations: int = 8
    momentum: float = 0.99
    seed: int = 0
    joint: bool = True


class MelInversion(nn.Module):
    """Log-mel spectrograms with one spectrum a hop, and waveforms of them; nothing is learned, nothing is stored.

    Args:
        sample_rate: in Hz.
        n_fft: window length in samples (Hann).
        hop_length: samples between two spectra.
        num_mels: mel bands from 0 Hz to half the sample rate (Slaney's scale and norm).
        log_floor: added to mel magnitudes, so that silence has a logarithm.
        settings: of the estimation of waveforms.
    """

    mel: Tensor
    mel_inverse: Tensor
    shares: Tensor
    window: Tensor
    max_log_mel: Tensor

    def __init__(
        self,
        *,
        sample_rate: int,
        n_fft: int,
        hop_length: int,
        num_mels: int,
        log_floor: float,
        settings: InversionSettings,
    ) -> None:
        super().__init__()
        self.n_fft, self.hop_length, self.log_floor = n_fft, hop_length, log_floor
        self.settings = settings
        self.before = (n_fft - hop_length) // 2  # a spectrum is centred in its hop
        mel = AF.melscale_fbanks(
            n_fft // 2 + 1, 0.0, sample_rate / 2, num_mels, sample_rate, norm="slaney", mel_scale="slaney"
        )
        self.register_buffer("mel", mel, persistent=False)
        self.register_buffer("mel_inverse", torch.linalg.pinv(mel.T).T.contiguous(), persistent=False)
        shares = (mel / mel.sum(dim=1, keepdim=True).clamp(min=1e-8)).T.contiguous()
        self.register_buffer("shares", shares, persistent=False)  # [mels, bins], of each band in a bin's gain
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.register_buffer("max_log_mel", _max_log_mel(mel, n_fft, log_floor), persistent=False)  # [mels]

    @property
    def reach_steps(self) -> int:
        """How many spectra on each side a hop of the waveform depends on."""
        overlap = (self.n_fft - 1) // self.hop_length  # steps on each side that share samples with one
        return (self.settings.iterations + 1) * overlap

    def log_mel(self, waveform: Tensor) -> Tensor:
        """[batch, steps * hop_length] -> [batch, steps, mels]"""
        with torch.autocast(waveform.device.type, enabled=False):
            return (_power(self.stft(waveform)).sqrt_() @ self.mel + self.log_floor).log()

    def forward(self, log_mel: Tensor, *, first_step: int = 0) -> Tensor:
        """[batch, steps, mels] -> [batch, steps * hop_length]; all items start from the same phases."""
        return self.istft(self.spectrum(log_mel, first_step=first_step))

    def spectrum(self, log_mel: Tensor, *, first_step: int = 0) -> Tensor:
        """[batch, steps, mels] -> [batch, steps, bins], complex: `forward` before its last inverse STFT."""
        with torch.autocast(log_mel.device.type, enabled=False):
            return self._spectrum(log_mel.float().contiguous(), first_step)

    def _spectrum(self, log_mel: Tensor, first_step: int) -> Tensor:
        magnitudes = ((log_mel.exp() - self.log_floor).clamp(min=0) @ self.mel_inverse).clamp(min=0)
        angles = self.random(first_step, log_mel.shape[1], self.n_fft // 2 + 1).to(magnitudes) * (2 * math.pi)
        spectrum = torch.polar(magnitudes, angles.expand_as(magnitudes))
        previous: Tensor | None = None
        weight = self._weight(log_mel.shape[1])
        for _ in range(self.settings.iterations):
            consistent = self.stft(self.istft(spectrum, weight))
            if self.settings.joint:
                magnitudes = _power(consistent).sqrt_()
                gain = log_mel - (magnitudes @ self.mel).add_(self.log_floor).log_()
                magnitudes *= (gain.clamp_(-MAX_GAIN, MAX_GAIN) @ self.shares).exp_()
            moved = consistent if previous is None else torch.lerp(previous, consistent, 1 + self.settings.momentum)
            previous = consistent
            spectrum = moved * (magnitudes * _power(moved).clamp_(min=MIN_POWER).rsqrt_())
        return spectrum

    def random(self, first_step: int, num_steps: int, width: int) -> Tensor:
        """[num_steps, width], uniform in 0 to 1: a function of seed, width and step in the sound alone."""
        first, last = first_step // RANDOM_BLOCK, (first_step + num_steps - 1) // RANDOM_BLOCK
        blocks = [
            np.random.Philox(key=self.settings.seed, counter=[0, 0, 0, block]).random_raw(RANDOM_BLOCK * width)
            for block in range(first, last + 1)
        ]
        drawn = np.concatenate(blocks).reshape(-1, width)[first_step - first * RANDOM_BLOCK :][:num_steps]
        return torch.from_numpy((drawn >> 40).astype(np.float32) * np.float32(2**-24))

    def stft(self, waveform: Tensor) -> Tensor:
        """[batch, steps * hop_length] -> [batch, steps, bins]; padded with silence."""
        padded = F.pad(waveform, (self.before, self.n_fft - self.hop_length - self.before))
        return torch.fft.rfft(padded.unfold(1, self.n_fft, self.hop_length) * self.window)

    def istft(self, spectrum: Tensor, weight: Tensor | None = None) -> Tensor:
        """[batch, steps, bins] -> [batch, steps * hop_length], by least squares (Griffin & Lim 1984, eq. 6)."""
        steps = spectrum.shape[1]
        weight = self._weight(steps) if weight is None else weight
        waveform = self._overlap_add(torch.fft.irfft(spectrum, self.n_fft) * self.window) / weight
        return waveform[:, self.before : self.before + steps * self.hop_length]

    def _weight(self, steps: int) -> Tensor:
        """The sum of the squares of overlapping windows [1, samples]."""
        return self._overlap_add((self.window**2).expand(1, steps, -1)).clamp(min=MIN_WEIGHT)

    def _overlap_add(self, pieces: Tensor) -> Tensor:
        """[batch, steps, n_fft], each a hop after the one before -> [batch, samples]; several times `F.fold`'s speed"""
        batch, steps, n_fft = pieces.shape
        hop, parts = self.hop_length, math.ceil(n_fft / self.hop_length)
        summed = pieces.new_zeros(batch, steps + parts - 1, hop)
        for part in range(parts):
            piece = pieces[..., part * hop : (part + 1) * hop]
            summed[:, part : part + steps, : piece.shape[2]] += piece
        return summed.flatten(1)


def _max_log_mel(mel: Tensor, n_fft: int, log_floor: float) -> Tensor:
    """The log-mel of a sine of amplitude 1 in the middle of each band, and a margin for what codes add: [mels].

    The Hann window's spectrum is n_fft / 4 at the sine's bin and half of that in the bins beside it.
    """
    beside = F.pad(mel, (0, 0, 1, 1))
    sines = (beside[1:-1] + (beside[:-2] + beside[2:]) / 2) * n_fft / 4
    return (sines.amax(dim=0) + log_floor).log() + LOG_MEL_MARGIN


def _power(spectrum: Tensor) -> Tensor:
    """|S|^2, at twice the speed of `abs`."""
    return spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
