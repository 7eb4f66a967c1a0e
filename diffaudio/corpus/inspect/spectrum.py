"""Where in the spectrum the power of a sound lies.

    P(f)   the part of the power at each frequency, by Welch 1967: the mean over overlapping windows; it sums up to 1

Nothing here needs more than numpy.
"""

import numpy as np

__all__ = ["OCTAVES_HZ", "bandwidth_hz", "octave_levels_db", "power_spectrum", "third_octaves_hz"]

OCTAVES_HZ = (31.5, 63.0, 125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16000.0)  # IEC 61260, nominal
NUM_BINS = 2048
POWER_PART = 0.99
FLOOR_DB = -100.0


def power_spectrum(x: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """P(f) of a sound [channels, samples], over all channels.

    Returns:
        frequencies in Hz and P, [2049] each, P all 0 for digital silence; windows are 4096 samples long and overlap
        by half.
    """
    size = 2 * NUM_BINS
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    count = max(1, -(-(x.shape[-1] - size) // NUM_BINS) + 1)
    padded = np.pad(x, [(0, 0), (0, size + (count - 1) * NUM_BINS - x.shape[-1])])
    power = np.zeros(NUM_BINS + 1)
    for first in range(0, count * NUM_BINS, NUM_BINS):
        power += np.square(np.abs(np.fft.rfft(window * padded[:, first : first + size]))).sum(axis=0)
    power[1:-1] *= 2
    return np.arange(NUM_BINS + 1) * sample_rate / size, power / (power.sum() or 1.0)


def bandwidth_hz(frequencies: np.ndarray, power: np.ndarray) -> float:
    """Below which frequency 99 % of the power lies; 0 for digital silence."""
    return float(frequencies[np.searchsorted(np.cumsum(power), POWER_PART)]) if power.any() else 0.0


def octave_levels_db(
    frequencies: np.ndarray, power: np.ndarray, centres_hz: tuple[float, ...] = OCTAVES_HZ, *, per_octave: int = 1
) -> np.ndarray:
    """The part of the power P that each band holds, in dB; -100 where there is none.

    Args:
        centres_hz: of the bands, each 1 / `per_octave` octave wide.

    Returns:
        [bands]; NaN for a band whose centre lies above the highest frequency.
    """
    half = 2 ** (0.5 / per_octave)
    levels = []
    for centre in centres_hz:
        part = power[(frequencies >= centre / half) & (frequencies < centre * half)].sum()
        levels.append(10 * np.log10(max(part, 10 ** (FLOOR_DB / 10))) if centre <= frequencies[-1] else np.nan)
    return np.array(levels)


def third_octaves_hz(highest_hz: float) -> tuple[float, ...]:
    """Centres of the third-octave bands from 50 Hz (IEC 61260, base two) to a highest frequency."""
    return tuple(1000 * 2 ** (step / 3) for step in range(-13, 15) if 1000 * 2 ** (step / 3) <= highest_hz)
