"""Mixing, resampling and FLAC for sound as NumPy arrays [channels, samples] float32, without importing torch."""

import io
import math
from collections.abc import Sequence

import numpy as np
import soundfile
import soxr

from diffaudio.errors import UserError

__all__ = ["decode_flac", "encode_flac", "mix_channels", "mixing_weights", "resample"]

SIDE_GAIN = math.sqrt(0.5)  # of centre and surround channels in a stereo downmix (ITU-R BS.775)
RESAMPLER_QUALITY = "HQ"  # soxr's quality of 20 bits, linear phase
LAYOUTS = {  # of files without channel names, in FFmpeg's order; other counts are left, right, and centre channels
    6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
    8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}
LEFT = {"FL", "BL", "SL", "FLC", "WL", "TFL", "TBL", "TSL", "BFL", "SDL", "SSL", "TTL", "DL"}
RIGHT = {"FR", "BR", "SR", "FRC", "WR", "TFR", "TBR", "TSR", "BFR", "SDR", "SSR", "TTR", "DR"}
LOW_FREQUENCY = {"LFE", "LFE2"}


def mixing_weights(num_channels: int, channels: int, names: Sequence[str] | None = None) -> np.ndarray:
    """The weights by which channels are mixed to mono or stereo without exceeding full scale.

    Args:
        num_channels: number of channels of the sound.
        channels: 1 or 2.
        names: FFmpeg's abbreviations of its channels (FL, FC, LFE, …); None takes six and eight channels as 5.1 and
            7.1. Low-frequency channels are dropped, centre channels are mixed into both sides.

    Returns:
        [channels, num_channels]

    Raises:
        UserError: another number of channels.
    """
    if channels not in (1, 2):
        raise UserError(f"channels is {channels}; choose 1 (mono) or 2 (stereo)")
    if num_channels <= channels:
        return np.eye(num_channels) if num_channels == channels else np.ones((channels, 1))
    named = tuple(names or ())
    if len(named) != num_channels or not {"FL", "FR"} <= set(named):
        named = LAYOUTS.get(num_channels, ("FL", "FR", *["FC"] * (num_channels - 2)))
    weights = np.zeros((2, num_channels))
    for index, name in enumerate(named):
        if name not in LOW_FREQUENCY:
            weights[:, index] = 1.0 if name in ("FL", "FR") else SIDE_GAIN
        if name in LEFT:
            weights[1, index] = 0.0
        if name in RIGHT:
            weights[0, index] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    return weights if channels == 2 else weights.mean(axis=0, keepdims=True)


def mix_channels(x: np.ndarray, channels: int, names: Sequence[str] | None = None) -> np.ndarray:
    """Mix to mono or stereo by `mixing_weights`.

    Returns:
        [channels, samples], the same array if it has this number of channels already.
    """
    if len(x) == channels:
        return x
    return mixing_weights(len(x), channels, names).astype(np.float32) @ x


def resample(x: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Change the sample rate with soxr, without delay.

    Args:
        x: [channels, samples] float32 at `from_rate` Hz.

    Returns:
        [channels, ceil(samples * to_rate / from_rate)]; the same array if the rates are equal.
    """
    if from_rate == to_rate or x.shape[1] == 0:
        return x
    num_samples = math.ceil(x.shape[1] * to_rate / from_rate)
    resampled = soxr.resample(np.ascontiguousarray(x.T), from_rate, to_rate, quality=RESAMPLER_QUALITY).T
    missing = num_samples - resampled.shape[1]  # soxr rounds the length to the nearest
    return np.pad(resampled, ((0, 0), (0, missing)), mode="edge") if missing > 0 else resampled[:, :num_samples]


def encode_flac(x: np.ndarray, sample_rate: int) -> bytes:
    """A 16-bit FLAC file as bytes. Samples outside [-1, 1] are clipped.

    Args:
        x: [channels, samples].
    """
    scaled = np.multiply(x.T, 32767.0, dtype=np.float32)
    np.rint(np.clip(scaled, -32767, 32767, out=scaled), out=scaled)
    file = io.BytesIO()
    soundfile.write(file, scaled.astype(np.int16), sample_rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def decode_flac(data: bytes) -> tuple[np.ndarray, int]:
    """The inverse of `encode_flac`: [channels, samples] float32, and the sample rate in Hz."""
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return samples.T.copy(), rate
