"""Physical sound synthesis for the scenes.

    f    frequency in Hz
    tau  seconds until a mode has decayed to 1/e of its amplitude
    c    speed of sound in air, m/s

Sounds are mono, [samples] float64 at SAMPLE_RATE, in arbitrary units; the writer scales them.
"""

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

__all__ = [
    "GRAVITY",
    "SAMPLE_RATE",
    "SOUND_SPEED",
    "add_at",
    "band_noise",
    "clock_of",
    "moving",
    "phase",
    "pluck",
    "ring",
]

SAMPLE_RATE = 44100
SOUND_SPEED = 343.0  # m/s
GRAVITY = 9.81  # m/s²
AUDIBLE = 7.0  # time constants until a mode is 60 dB down


def clock_of(duration_s: float) -> np.ndarray:
    """The time of each sample of a sound, in seconds."""
    return np.arange(round(duration_s * SAMPLE_RATE)) / SAMPLE_RATE


def ring(frequencies: ArrayLike, amplitudes: ArrayLike, decays_s: ArrayLike) -> np.ndarray:
    """The sound of a body struck once: sum over its modes of a exp(-t / tau) sin(2 pi f t).

    Modal synthesis: van den Doel & Pai 1998, "The sounds of physical shapes", Presence 7(4). Modes above half the
    sample rate are left out.
    """
    t = clock_of(AUDIBLE * float(np.max(decays_s)))
    heard = np.zeros(len(t))
    for f, a, tau in zip(*np.broadcast_arrays(frequencies, amplitudes, decays_s), strict=True):
        if f < SAMPLE_RATE / 2:
            part = t[: round(AUDIBLE * tau * SAMPLE_RATE)]
            heard[: len(part)] += a * np.exp(-part / tau) * np.sin(2 * np.pi * f * part)
    return heard


def add_at(sound: np.ndarray, time_s: float, heard: np.ndarray) -> None:
    """Add `heard` to `sound` in place, starting at a given time; samples outside `sound` are dropped."""
    first = round(time_s * SAMPLE_RATE)
    heard = heard[max(0, -first) :]
    into = sound[max(0, first) :][: len(heard)]
    into += heard[: len(into)]


def band_noise(rng: Generator, num_samples: int, low_hz: float, high_hz: float) -> np.ndarray:
    """Gaussian noise of standard deviation 1, flat between two frequencies and falling by 12 dB per octave outside."""
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    f = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE)
    noise = np.fft.irfft(spectrum / ((1 + (low_hz / np.maximum(f, 1.0)) ** 2) * (1 + (f / high_hz) ** 2)), num_samples)
    return noise / noise.std()


def phase(frequency: np.ndarray) -> np.ndarray:
    """The phase in radians of a tone of time-varying frequency: 2 pi times the integral of f(t)."""
    return 2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE


def pluck(rng: Generator, frequency: float, decay_s: float, duration_s: float) -> np.ndarray:
    """A plucked string: y[t] = rho (y[t - p] + y[t - p - 1]) / 2, initialised with one period p of noise.

    Karplus & Strong 1983, "Digital synthesis of plucked-string and drum timbres", with the loss factor rho of
    Jaffe & Smith 1983; the pitch is SAMPLE_RATE / (p + 1/2).

    Args:
        decay_s: upper bound on tau of the lowest partial; higher partials decay faster.
    """
    period, num_samples = round(SAMPLE_RATE / frequency - 0.5), round(duration_s * SAMPLE_RATE)
    rho = np.exp(-period / SAMPLE_RATE / decay_s)
    y = np.zeros(num_samples + 2 * period + 1)  # y[0] stays 0, then comes the period of noise
    y[1 : period + 1] = rng.uniform(-1, 1, period)
    for first in range(period + 1, num_samples + period + 1, period):
        y[first : first + period] = rho / 2 * (y[first - period : first] + y[first - period - 1 : first - 1])
    return y[1 : num_samples + 1]


def moving(source: np.ndarray, distance_m: np.ndarray) -> np.ndarray:
    """The sound received from a moving source: sound emitted at t arrives at t + r(t) / c, attenuated by 1 / r.

    This includes the Doppler shift: where r increases at speed v, f becomes f / (1 + v / c).

    Args:
        source: [samples] as received 1 m from the source.
        distance_m: r at each sample, [samples]; it must change more slowly than the speed of sound.
    """
    t = np.arange(len(source)) / SAMPLE_RATE
    return np.interp(t, t + distance_m / SOUND_SPEED, source / distance_m, left=0.0)
