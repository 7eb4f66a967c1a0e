"""Sound as numpy arrays [channels, samples] float32, for what has to work without torch: mixing, resampling, FLAC."""

import functools
import io
import math

import numpy as np
import soundfile

from diffaudio.errors import UserError

__all__ = ["decode_flac", "encode_flac", "mix_channels", "mixing_weights", "resample"]

SIDE_GAIN = math.sqrt(0.5)  # of centre and surround channels in a stereo downmix (ITU-R BS.775)
ZEROS = 32  # zero crossings of the sinc on each side
ROLLOFF = 0.95  # where the sinc cuts off, of the lower Nyquist frequency
BLOCK = 40  # outputs that are computed from one stretch of the input
CACHED = 2_000_000  # a larger kernel is made in blocks, and again each time


def mixing_weights(given: int, channels: int) -> np.ndarray:
    """How channels are mixed to mono or stereo, so that nothing comes out louder than full scale.

    Args:
        given: any number; six and eight are 5.1 and 7.1 in FFmpeg's order, whose low-frequency channel is left out.
        channels: 1 or 2.

    Returns:
        [channels, given]

    Raises:
        ValueError: another number of channels.
    """
    if channels not in (1, 2):
        raise UserError(f"channels is {channels}; choose 1 (mono) or 2 (stereo)")
    if given <= channels:
        return np.eye(given) if given == channels else np.ones((channels, 1))
    weights = np.zeros((2, given))
    weights[0, 0] = weights[1, 1] = 1.0
    for index in range(2, given):
        surround = given in (6, 8)
        if surround and index == 3:
            continue
        sides = slice(index % 2, index % 2 + 1) if surround and index > 3 else slice(2)
        weights[sides, index] = SIDE_GAIN
    weights /= weights.sum(axis=1, keepdims=True)
    return weights if channels == 2 else weights.mean(axis=0, keepdims=True)


def mix_channels(x: np.ndarray, channels: int) -> np.ndarray:
    """Mix to mono or stereo by `mixing_weights`.

    Returns:
        [channels, samples], the same array where nothing changes.
    """
    if len(x) == channels:
        return x
    return mixing_weights(len(x), channels).astype(np.float32) @ x


def resample(x: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Change the sample rate by windowed sinc interpolation, with the kernel of `audio.resample`.

    Args:
        x: [channels, samples] float32 at `from_rate` Hz.

    Returns:
        [channels, ceil(samples * to_rate / from_rate)]; the same array where the rates are equal.
    """
    if from_rate == to_rate or x.shape[1] == 0:
        return x
    divisor = math.gcd(from_rate, to_rate)
    orig, new = from_rate // divisor, to_rate // divisor
    repeat = math.ceil(BLOCK / new)  # so that a block is full where the ratio is simple
    step, num_phases = orig * repeat, new * repeat
    width = math.ceil(ZEROS * orig / (min(orig, new) * ROLLOFF))
    num_steps = math.ceil(math.ceil(x.shape[1] * new / orig) / num_phases)
    padded = np.pad(x, ((0, 0), (width, num_steps * step + width + 1 - min(x.shape[1], num_steps * step))))
    y = np.empty((len(x), num_steps, num_phases), np.float32)
    for first in range(0, num_phases, BLOCK):
        offset, kernel = _kernel(orig, new, first, min(BLOCK, num_phases - first))
        for channel, samples in enumerate(padded):
            stretches = np.lib.stride_tricks.sliding_window_view(samples[offset:], len(kernel))[::step][:num_steps]
            y[channel, :, first : first + kernel.shape[1]] = np.ascontiguousarray(stretches) @ kernel
    return y.reshape(len(x), -1)[:, : math.ceil(x.shape[1] * new / orig)]


def encode_flac(x: np.ndarray, sample_rate: int) -> bytes:
    """A 16-bit FLAC file as bytes. Samples outside [-1, 1] are clipped.

    Args:
        x: [channels, samples].
    """
    whole = np.multiply(x.T, 32767.0, dtype=np.float32)
    np.rint(np.clip(whole, -32767, 32767, out=whole), out=whole)
    file = io.BytesIO()
    soundfile.write(file, whole.astype(np.int16), sample_rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def decode_flac(data: bytes) -> tuple[np.ndarray, int]:
    """The inverse of `encode_flac`: [channels, samples] float32, and the sample rate in Hz."""
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return samples.T.copy(), rate


def _kernel(orig: int, new: int, first: int, count: int) -> tuple[int, np.ndarray]:
    if orig * new > CACHED:
        return _computed_kernel(orig, new, first, count)
    return _kept_kernel(orig, new, first, count)


def _computed_kernel(orig: int, new: int, first: int, count: int) -> tuple[int, np.ndarray]:
    """What `count` outputs from the phase `first` on are made of: where the input begins, and [inputs, count].

    Output n lies at orig / new * n of the input. Its weights are a sinc under a Hann window, ZEROS crossings to each
    side (Smith, "Digital Audio Resampling", https://ccrma.stanford.edu/~jos/resample/).
    """
    base = min(orig, new) * ROLLOFF
    width = math.ceil(ZEROS * orig / base)
    begin = first * orig // new
    inputs = np.arange(begin - width, (first + count - 1) * orig // new + width + 2)
    outputs = np.arange(first, first + count)
    t = (inputs[:, None] / orig - outputs / new) * base
    window = np.cos(np.clip(t, -ZEROS, ZEROS) * math.pi / ZEROS / 2) ** 2
    return begin, (np.sinc(t) * window * base / orig).astype(np.float32)


_kept_kernel = functools.lru_cache(maxsize=256)(_computed_kernel)
