"""Faults that need no reference: silence, clipping and repeated recordings; and loudness.

Distances can look good for sounds that nobody would call good, and some backbones ignore the level altogether.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
import torchaudio
from pyloudnorm import Meter
from torch import Tensor

from diffaudio.media.audio import mix_channels, resample

__all__ = ["Checks", "check", "fingerprint", "is_clipped", "is_silent", "join_checks", "loudness_lufs", "repeated"]

SILENCE_DB = -60.0  # RMS, re full scale
SILENCE_WINDOW_S = 0.05
FULL_SCALE = 0.999
CLIPPED_RUN = 3
BLOCK_S = 0.4
FINGERPRINT_RATE = 8000
FINGERPRINT_HOP = 100
FINGERPRINT_HOPS = 4  # in a step of 50 ms
FINGERPRINT_BANDS = 24
FINGERPRINT_MIN_STD = 0.1  # of the log power; below that hardly anything changes
# coding as MP3 or Vorbis leaves at least 0.97; the closest two of 250 different recordings of 25 kinds reach 0.91
REPEATED_CORRELATION = 0.95


@dataclass(frozen=True)
class Checks:
    """The findings for n sounds.

    Attributes:
        silent, clipped: [n], 0 or 1.
        loudness: [n], in LUFS; NaN where a sound is silent or shorter than 0.4 s.
        fingerprints: one [values] a sound, as long as it is.
    """

    silent: Tensor
    clipped: Tensor
    loudness: Tensor
    fingerprints: list[Tensor]

    def pick(self, indices: list[int]) -> "Checks":
        """The findings for some of the sounds."""
        fingerprints = [self.fingerprints[index] for index in indices]
        return Checks(self.silent[indices], self.clipped[indices], self.loudness[indices], fingerprints)


def check(waveform: Tensor, sample_rate: int) -> Checks:
    """Check one sound [channels, samples]."""
    silent = is_silent(waveform, sample_rate)
    return Checks(
        silent=torch.tensor([float(silent)]),
        clipped=torch.tensor([float(is_clipped(waveform))]),
        loudness=torch.tensor([float("nan") if silent else loudness_lufs(waveform, sample_rate)]),
        fingerprints=[fingerprint(waveform, sample_rate)],
    )


def join_checks(checks: list[Checks]) -> Checks:
    """The findings of several sets, one after another."""
    return Checks(
        silent=torch.cat([each.silent for each in checks]),
        clipped=torch.cat([each.clipped for each in checks]),
        loudness=torch.cat([each.loudness for each in checks]),
        fingerprints=[one for each in checks for one in each.fingerprints],
    )


def is_silent(waveform: Tensor, sample_rate: int) -> bool:
    """Whether the RMS of every 50 ms of every channel [channels, samples] is below -60 dB re full scale."""
    window = max(1, round(SILENCE_WINDOW_S * sample_rate))
    padded = torch.nn.functional.pad(waveform, (0, -waveform.shape[-1] % window))
    power = padded.unflatten(-1, (-1, window)).square().mean(dim=-1)
    return power.numel() == 0 or bool(power.max() < 10 ** (SILENCE_DB / 10))


def is_clipped(waveform: Tensor) -> bool:
    """Whether three samples in a row, in any channel [channels, samples], lie at full scale on the same side."""
    for side in (waveform, -waveform):
        at_full_scale = side >= FULL_SCALE
        if at_full_scale.shape[-1] >= CLIPPED_RUN and bool(at_full_scale.unfold(-1, CLIPPED_RUN, 1).all(dim=-1).any()):
            return True
    return False


def loudness_lufs(waveform: Tensor, sample_rate: int) -> float:
    """Integrated loudness (ITU-R BS.1770-4) of [channels, samples], by pyloudnorm; more than two channels are mixed.

    Returns:
        NaN below 0.4 s, which is one block, and where every block is below the gate of -70 LUFS.
    """
    if waveform.shape[-1] < round(BLOCK_S * sample_rate):
        return float("nan")
    if len(waveform) > 2:
        waveform = mix_channels(waveform, 2)
    lufs = Meter(sample_rate, block_size=BLOCK_S).integrated_loudness(waveform.double().cpu().numpy().T)
    return float(lufs) if math.isfinite(lufs) else float("nan")


def fingerprint(waveform: Tensor, sample_rate: int) -> Tensor:
    """How the balance of 24 mel bands changes over time, in steps of 50 ms: [steps * 24], of norm 1; 0 for silence.

    Gain, mean spectrum and envelope are taken out of [channels, samples], since those are similar in two takes of one
    thing. What remains belongs to this one recording, and survives another gain, sample rate, number of channels, or
    lossy coding. Where hardly anything changes, as in a steady tone, the norm stays below 1.
    """
    mono = resample(mix_channels(waveform, 1), sample_rate, FINGERPRINT_RATE)[0]
    mono = torch.nn.functional.pad(mono, (0, max(0, FINGERPRINT_HOPS * FINGERPRINT_HOP - len(mono))))
    window = torch.hann_window(512)
    spectrum = torch.stft(mono, 512, FINGERPRINT_HOP, window=window, pad_mode="constant", return_complex=True)
    power = spectrum.abs().square().T @ _mel_bands()
    power = power[: len(power) // FINGERPRINT_HOPS * FINGERPRINT_HOPS].unflatten(0, (-1, FINGERPRINT_HOPS)).mean(dim=1)
    if power.max() == 0:
        return torch.zeros(power.numel())
    level = (power / power.max()).clamp(min=1e-6).log()
    change = level - level.mean(dim=0)
    change = change - change.mean(dim=1, keepdim=True)
    min_norm = FINGERPRINT_MIN_STD * change.numel() ** 0.5
    return (change / change.norm().clamp(min=min_norm)).flatten()


@cache
def _mel_bands() -> Tensor:
    """[bins, bands]"""
    return torchaudio.functional.melscale_fbanks(257, 50.0, FINGERPRINT_RATE / 2, FINGERPRINT_BANDS, FINGERPRINT_RATE)


def repeated(fingerprints: list[Tensor]) -> Tensor:
    """1 where another sound of the set is the same recording, else 0: [n].

    Two sounds are the same where their fingerprints correlate by at least 0.95, or both are silent. They have to begin
    at almost the same sample: a shift of 20 ms can be enough to miss a repeat.
    """
    longest = max(len(one) for one in fingerprints)
    x = torch.stack([torch.nn.functional.pad(one, (0, longest - len(one))) for one in fingerprints])
    silent = ~x.any(dim=1)
    same = (x @ x.T >= REPEATED_CORRELATION) | (silent[:, None] & silent)
    return same.fill_diagonal_(False).any(dim=1).double()
