"""Outliers: sounds of none of the kinds that a classifier knows, so that it learns to say so.

    noise       of a random colour
    tones       a chord of steady or gliding tones
    reversed    a recording played backwards
    scrambled   a recording with the magnitude of its spectrum, and random phases

A classifier that was never shown anything else takes every sound for one of its kinds, often with high confidence;
training with examples of something else mends that (outlier exposure: Hendrycks et al. 2019, arXiv:1812.04606).

Played backwards or scrambled, steady noise such as rain is what it was: only recordings whose level changes become
outliers in that way (`is_steady`).
"""

import math

import torch
from torch import Tensor

__all__ = ["SYNTHETIC", "is_steady", "make_noise", "make_outlier", "make_tones", "scramble_phases"]

SYNTHETIC = ("noise", "tones", "reversed", "scrambled")
STEADY_DB = 3.0  # standard deviation of the level, below which a sound is steady
LEVEL_FRAME = 400  # samples
LEVEL_FLOOR_DB = -60.0  # below the loudest frame
MAX_TILT_DB = 6.0  # per octave, up or down: from white to brown, and to violet
LOWEST_TONE_HZ, HIGHEST_TONE_SHARE = 60.0, 0.4  # the latter of the sample rate
MAX_TONES = 6


def make_outlier(what: str, waveform: Tensor, sample_rate: int, generator: torch.Generator) -> Tensor:
    """An outlier as long as a recording, with a peak of 1 unless it is silent.

    Args:
        what: one of `SYNTHETIC`.
        waveform: [samples], of the recording that is reversed or scrambled; noise and tones take its length only.
        sample_rate: in Hz.

    Returns:
        [samples]
    """
    if what == "noise":
        x = make_noise(len(waveform), generator)
    elif what == "tones":
        x = make_tones(len(waveform), sample_rate, generator)
    elif what == "reversed":
        x = waveform.flip(0)
    else:
        x = scramble_phases(waveform, generator)
    return x / x.abs().amax().clamp(min=1e-4)


def make_noise(num_samples: int, generator: torch.Generator) -> Tensor:
    """Noise [samples] whose power falls or rises by a random number of decibels per octave."""
    spectrum = torch.fft.rfft(torch.randn(num_samples, generator=generator))
    octaves = torch.arange(1, len(spectrum) + 1).log2()
    tilt_db = MAX_TILT_DB * (2 * float(torch.rand((), generator=generator)) - 1)
    response = 10 ** (tilt_db * (octaves - octaves[-1]) / 20)
    response[0] = 0
    return torch.fft.irfft(spectrum * response, n=num_samples)


def make_tones(num_samples: int, sample_rate: int, generator: torch.Generator) -> Tensor:
    """A chord [samples] of up to six tones, each of a random pitch that stays or glides, some with harmonics."""
    time_s = torch.arange(num_samples, dtype=torch.float64) / sample_rate
    highest = HIGHEST_TONE_SHARE * sample_rate
    octaves = math.log2(highest / LOWEST_TONE_HZ)
    chord = torch.zeros(num_samples, dtype=torch.float64)
    for _ in range(int(torch.randint(1, MAX_TONES + 1, (), generator=generator))):
        place, glides, end, harmonics, gain = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        first, last = place, end if glides < 0.3 else place
        share = time_s / max(float(time_s[-1]), 1e-9)
        hz = LOWEST_TONE_HZ * 2 ** (octaves * (first + (last - first) * share))
        phase = 2 * math.pi * torch.cumsum(hz, 0) / sample_rate
        for number in range(1, 2 + int(4 * harmonics)):
            chord += gain / number * torch.sin(number * phase).where(number * hz < highest, 0)
    return chord.float()


def scramble_phases(waveform: Tensor, generator: torch.Generator) -> Tensor:
    """The sound [samples] with the magnitude of its spectrum and random phases: its timbre as a steady hiss."""
    spectrum = torch.fft.rfft(waveform)
    phases = 2 * math.pi * torch.rand(len(spectrum), generator=generator)
    return torch.fft.irfft(torch.polar(spectrum.abs(), phases), n=len(waveform))


def is_steady(waveform: Tensor) -> bool:
    """Whether a sound's level hardly changes: the standard deviation of its level in frames is below 3 dB.

    Args:
        waveform: [samples] at 16 kHz or so; frames have 400 samples. One without two whole frames is steady.
    """
    frames = waveform.unfold(0, LEVEL_FRAME, LEVEL_FRAME) if len(waveform) >= LEVEL_FRAME else waveform.new_zeros(1, 1)
    level_db = 10 * frames.square().mean(dim=1).clamp(min=1e-12).log10()
    level_db = level_db.clamp(min=float(level_db.amax()) + LEVEL_FLOOR_DB)
    return len(frames) < 2 or float(level_db.std()) < STEADY_DB
