"""The last steps before a file, on streams of any length: sample rate, loudness, fades.

    chunks   numpy arrays [channels, samples] float32 that follow each other

Loudness is that of ITU-R BS.1770-4, annex 1: power of K-weighted blocks of 0.4 s every 0.1 s, an absolute gate at
-70 LUFS and a relative one 10 LU below the mean of what passes it.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import soxr
from pyloudnorm import Meter
from scipy.signal import lfilter

from diffaudio.media.audio_numpy import RESAMPLER_QUALITY

__all__ = ["LoudnessMeter", "faded", "resampled"]

HOP_S = 0.1
HOPS_PER_BLOCK = 4
OFFSET = -0.691  # dB, eq. 2
ABSOLUTE_GATE, RELATIVE_GATE = -70.0, -10.0


class LoudnessMeter:
    """Integrated loudness and peak of a mono or stereo stream, in memory of 80 bytes a second.

    Attributes:
        peak: the largest absolute sample.
    """

    def __init__(self, sample_rate: int, channels: int) -> None:
        weighting = Meter(sample_rate)._filters.values()
        self._filters = [(each.b, each.a, each.passband_gain) for each in weighting]
        self._states = [np.zeros((channels, max(len(b), len(a)) - 1)) for b, a, _ in self._filters]
        self._hop = round(HOP_S * sample_rate)
        self._rest = np.zeros((channels, 0))
        self._powers: list[float] = []  # of each hop, summed over channels
        self.peak = 0.0

    def add(self, chunk: np.ndarray) -> None:
        """Measure the next samples."""
        if chunk.shape[1] == 0:
            return
        self.peak = max(self.peak, float(np.abs(chunk).max()))
        weighted = chunk.astype(np.float64)
        for index, (b, a, gain) in enumerate(self._filters):
            weighted, self._states[index] = lfilter(b, a, weighted, axis=1, zi=self._states[index])
            weighted = gain * weighted
        waiting = np.concatenate([self._rest, weighted], axis=1)
        num_hops = waiting.shape[1] // self._hop
        hops = waiting[:, : num_hops * self._hop].reshape(len(waiting), num_hops, self._hop)
        self._powers += np.square(hops).mean(axis=2).sum(axis=0).tolist()
        self._rest = waiting[:, num_hops * self._hop :]

    def lufs(self) -> float:
        """Loudness so far; NaN below 0.4 s, and where every block is below the absolute gate."""
        if len(self._powers) < HOPS_PER_BLOCK:
            return math.nan
        blocks = np.convolve(self._powers, np.full(HOPS_PER_BLOCK, 1 / HOPS_PER_BLOCK), mode="valid")
        gated = blocks[_lufs(blocks) > ABSOLUTE_GATE]
        if not len(gated):
            return math.nan
        gated = gated[_lufs(gated) > _lufs(gated.mean()) + RELATIVE_GATE]
        return float(_lufs(gated.mean()))


def _lufs(power: np.ndarray) -> np.ndarray:
    return OFFSET + 10 * np.log10(np.maximum(power, 1e-30))


def resampled(chunks: Iterable[np.ndarray], from_rate: int, to_rate: int) -> Iterator[np.ndarray]:
    """Change the sample rate of a stream with soxr, without delay.

    Yields:
        [channels, samples]; altogether round(samples * to_rate / from_rate).
    """
    stream = iter(chunks)
    if from_rate == to_rate:
        yield from stream
        return
    first = next(stream, None)
    if first is None:
        return
    resampler = soxr.ResampleStream(from_rate, to_rate, len(first), dtype="float32", quality=RESAMPLER_QUALITY)
    num_read, num_written, chunk = 0, 0, first
    while chunk is not None:
        following = next(stream, None)
        num_read += chunk.shape[1]
        part = resampler.resample_chunk(np.ascontiguousarray(chunk.T), last=following is None).T
        if following is None:
            missing = round(num_read * to_rate / from_rate) - num_written
            part = np.pad(part[:, :missing], ((0, 0), (0, max(0, missing - part.shape[1]))), mode="edge")
        num_written += part.shape[1]
        yield np.ascontiguousarray(part)
        chunk = following


def faded(
    chunks: Iterable[np.ndarray], num_samples: int, sample_rate: int, *, fade_in_s: float = 0.0, fade_out_s: float = 0.0
) -> Iterator[np.ndarray]:
    """Fade a stream in from silence and out into it, by half a period of a cosine.

    Args:
        num_samples: of the whole stream.
    """
    rise, fall = round(fade_in_s * sample_rate), round(fade_out_s * sample_rate)
    position = 0
    for chunk in chunks:
        places = np.arange(position, position + chunk.shape[1]) + 0.5
        position += chunk.shape[1]
        gain = np.ones(chunk.shape[1])
        if rise:
            gain *= _raised_cosine(places / rise)
        if fall:
            gain *= _raised_cosine((num_samples - places) / fall)
        yield chunk if np.all(gain == 1) else (chunk * gain).astype(np.float32)


def _raised_cosine(share: np.ndarray) -> np.ndarray:
    return 0.5 - 0.5 * np.cos(np.pi * np.clip(share, 0, 1))
