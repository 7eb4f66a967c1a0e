"""Detection of upsampled sound, recorded at a lower sample rate than it has: its spectrum ends abruptly.

    S(f)   mean level of the spectrum around f, in dB, over 200 Hz
    drop   mean of S over [0.8 g, g], minus the largest S from f on, where f = 1.1 g + 200 Hz

The spectrum of a dull sound fades out with frequency, whereas a resampler cuts it off. This module needs only numpy.
"""

import numpy as np

__all__ = ["cutoff_hz"]

WINDOW = 2048
MAX_WINDOWS = 32  # evenly spaced; more do not change the result
SMOOTH_HZ = 200.0
FROM_HZ = 1000.0
LOWEST_HZ = 3300.0  # the upper limit of a telephone
MIN_DROP_DB = 25.0  # upsampled sound has 30 to 60; only 3 of 920 recordings at 44.1 kHz have this drop below 8 kHz
FLOOR_DB = -120.0


def cutoff_hz(x: np.ndarray, sample_rate: int, *, highest_hz: float) -> float | None:
    """The frequency at which a spectrum ends abruptly.

    Args:
        x: [channels, samples].
        highest_hz: the upper end of the search, which starts at 3.3 kHz; sound that ends below that is low-pitched.

    Returns:
        The lowest such frequency, or None if the spectrum continues or fades out.
    """
    step_hz = sample_rate / WINDOW
    smooth = max(1, round(SMOOTH_HZ / step_hz))
    level = _level_db(x, smooth)
    end = np.arange(int(FROM_HZ / step_hz), min(len(level), int(highest_hz / step_hz) + 1))
    last = ((end - smooth) / 1.1).astype(int)
    first = (0.8 * last).astype(int)
    total = np.concatenate([[0.0], np.cumsum(level)])
    below = (total[last] - total[first]) / (last - first)
    above = np.maximum.accumulate(level[::-1])[::-1][end]
    found = end[below - above >= MIN_DROP_DB]
    return float(found[0] * step_hz) if len(found) and found[0] * step_hz >= LOWEST_HZ else None


def _level_db(x: np.ndarray, smooth: int) -> np.ndarray:
    """S [bins], with a maximum of 0."""
    x = np.pad(x, ((0, 0), (0, max(0, WINDOW - x.shape[1]))))
    count = min(MAX_WINDOWS, x.shape[1] // WINDOW)
    starts = np.linspace(0, x.shape[1] - WINDOW, count).astype(int)
    frames = np.lib.stride_tricks.sliding_window_view(x, WINDOW, axis=1)[:, starts]
    spectrum = np.fft.rfft(frames * np.hanning(WINDOW).astype(np.float32))
    power = (spectrum.real**2 + spectrum.imag**2).mean(axis=(0, 1), dtype=np.float64)
    power = np.convolve(power, np.ones(smooth), "same")
    return 10 * np.log10(np.maximum(power / max(float(power.max()), 1e-30), 10 ** (FLOOR_DB / 10)))
