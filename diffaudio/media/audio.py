"""Waveforms as tensors: reading, writing, resampling, channels, length and level.

A waveform is a float32 tensor [channels, samples] in [-1, 1]; most functions also take a batch before that.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torchaudio
from torch import Tensor

from diffaudio.errors import UserError
from diffaudio.media import audio_numpy
from diffaudio.media.audio_formats import check_format
from diffaudio.media.audio_streams import stream_audio
from diffaudio.media.audio_writer import write_stream

__all__ = [
    "PEAK",
    "RESAMPLER",
    "check_audio_path",
    "crop_or_pad",
    "decode_flac",
    "encode_flac",
    "mix_channels",
    "read_audio",
    "resample",
    "scale_to_peak",
    "write_audio",
]

PEAK = 0.7  # peak level of the sounds that autoencoders are fitted to and corpora are encoded from
MAX_KERNEL = 20_000_000  # maximum size of the kernel of `resample`; 44.1 to 48 kHz takes 23,520 values
RESAMPLER = "torchaudio sinc_interp_hann, lowpass_filter_width 32, rolloff 0.95"  # what `resample` does


def read_audio(
    path: str | Path,
    *,
    sample_rate: int | None = None,
    channels: int | None = None,
    start_s: float = 0.0,
    duration_s: float | None = None,
) -> tuple[Tensor, int]:
    """Read an audio file, or the audio track of a video. What libsndfile cannot read is decoded in a child process.

    Args:
        sample_rate: to resample to; None keeps the file's.
        channels: 1 or 2; None keeps the file's (stereo where they change midway).
        start_s: start time.
        duration_s: duration to read; None reads to the end. The result is shorter if the audio ends earlier.

    Returns:
        [channels, samples] float32, and its sample rate.

    Raises:
        MediaError: the file is missing, has no audio, or cannot be read.
    """
    arguments = {"start_s": start_s, "duration_s": duration_s}
    chunks = list(stream_audio(Path(path), channels=channels, **arguments))
    if len({len(x) for _, x in chunks}) > 1:  # channels that change midway become stereo
        chunks = list(stream_audio(Path(path), channels=2, **arguments))
    rate = chunks[0][0]
    waveform = torch.from_numpy(np.concatenate([x for _, x in chunks], axis=1))
    if sample_rate is not None:
        waveform, rate = resample(waveform, rate, sample_rate), sample_rate
    return waveform, rate


def write_audio(path: str | Path, waveform: Tensor, sample_rate: int) -> None:
    """Write a sound file atomically, in a format of `audio_formats.FORMATS`; 16 bits where it has a bit depth.

    Samples outside [-1, 1] are clipped.

    Args:
        waveform: [channels, samples].

    Raises:
        UserError: another suffix, the folder is missing, or the waveform has another shape.
        OSError: the disk is full or cannot be written.
    """
    path = Path(path)
    check_audio_path(path)
    if waveform.ndim != 2:
        raise UserError(f"{path}: the waveform has the shape {list(waveform.shape)}; expected [channels, samples]")
    write_stream(path, [waveform.detach().cpu().float().numpy()], sample_rate)


def check_audio_path(path: str | Path) -> None:
    """Check before a long computation that `write_audio` can write to `path`.

    Raises:
        UserError: a suffix other than those of `audio_formats.FORMATS`, or the folder is missing.
    """
    path = Path(path)
    check_format(path)
    if not path.parent.is_dir():
        raise UserError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")


def resample(waveform: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Change the sample rate by windowed sinc interpolation.

    Args:
        waveform: [..., samples] at `from_rate` Hz. If the rates have no large common divisor, the kernel would take
            gigabytes; such sound is resampled by soxr on the CPU, without a gradient.

    Returns:
        [..., ceil(samples * to_rate / from_rate)]; the same tensor if the rates are equal.
    """
    if from_rate == to_rate or waveform.shape[-1] == 0:
        return waveform
    common = math.gcd(from_rate, to_rate)
    if (from_rate // common) * (to_rate // common) > MAX_KERNEL:
        flat = waveform.detach().cpu().float().reshape(-1, waveform.shape[-1]).numpy()
        resampled = torch.from_numpy(audio_numpy.resample(flat, from_rate, to_rate).copy())
        return resampled.to(waveform).reshape(*waveform.shape[:-1], -1)
    return torchaudio.functional.resample(waveform, from_rate, to_rate, lowpass_filter_width=32, rolloff=0.95)


def mix_channels(waveform: Tensor, channels: int) -> Tensor:
    """Mix to mono or stereo without exceeding full scale.

    Args:
        waveform: [..., any number of channels, samples]; six and eight are 5.1 and 7.1 in FFmpeg's order, whose
            low-frequency channel is dropped.
        channels: 1 or 2.

    Returns:
        [..., channels, samples]

    Raises:
        ValueError: another number of channels.
    """
    num_channels = waveform.shape[-2]
    weights = torch.from_numpy(audio_numpy.mixing_weights(num_channels, channels)).to(waveform)
    if num_channels == channels:
        return waveform
    return waveform.expand(*waveform.shape[:-2], channels, -1) if num_channels == 1 else weights @ waveform


def crop_or_pad(waveform: Tensor, duration_s: float, sample_rate: int, *, start_s: float = 0.0) -> Tensor:
    """Crop a waveform to `duration_s` seconds, padded with silence if it ends earlier.

    Args:
        waveform: [..., samples].
        start_s: start time; 0 is the first sample.

    Returns:
        [..., round(duration_s * sample_rate)], a view if no padding was needed.

    Raises:
        ValueError: `duration_s` is not positive, or `start_s` is negative or past the end.
    """
    if duration_s <= 0:
        raise UserError(f"duration_s is {duration_s}; it must be above 0")
    first, num_samples = round(start_s * sample_rate), round(duration_s * sample_rate)
    available = waveform.shape[-1]
    if not 0 <= first <= available:
        raise UserError(f"start_s is {start_s}; the waveform has {available / sample_rate:.3f} s")
    cut = waveform[..., first : first + num_samples]
    return torch.nn.functional.pad(cut, (0, num_samples - cut.shape[-1])) if cut.shape[-1] < num_samples else cut


def scale_to_peak(waveform: Tensor, peak: float = PEAK) -> Tensor:
    """Scale each waveform so that its largest sample, over all channels, is `peak`; silence stays silence.

    Args:
        waveform: [..., channels, samples].
    """
    if waveform.numel() == 0:
        return waveform
    largest = waveform.abs().amax(dim=(-2, -1), keepdim=True)
    return waveform * torch.where(largest > 0, peak / largest, torch.ones_like(largest))


def encode_flac(waveform: Tensor, sample_rate: int) -> bytes:
    """A 16-bit FLAC file as bytes. Samples outside [-1, 1] are clipped.

    Args:
        waveform: [channels, samples].
    """
    return audio_numpy.encode_flac(waveform.detach().cpu().float().numpy(), sample_rate)


def decode_flac(data: bytes) -> tuple[Tensor, int]:
    """The inverse of `encode_flac`: [channels, samples] float32, and the sample rate in Hz."""
    samples, rate = audio_numpy.decode_flac(data)
    return torch.from_numpy(samples), rate
