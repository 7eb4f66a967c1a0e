"""Recordings that a sound is made from: read, joined, and encoded at the level of the training corpus.

What lies in a span to generate has no effect on the result: before encoding it is replaced by its mirrored
surroundings, so that windows of the autoencoder which reach into it find nothing strange.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffaudio.diffusion.edit_settings import Span
from diffaudio.errors import UserError
from diffaudio.media.audio import PEAK, read_audio
from diffaudio.models.autoencoders import Autoencoder

__all__ = ["Recording", "encode_around", "frames_in", "join_recordings", "load_recording"]

Recording = Tensor | np.ndarray | Path | str


def load_recording(recording: Recording, autoencoder: Autoencoder, name: str) -> Tensor:
    """A recording at the autoencoder's rate and channels: [audio_channels, samples] float32.

    Args:
        recording: a file, or samples [audio_channels, samples] at the autoencoder's rate.
        name: of the argument, for errors.

    Raises:
        UserError: it cannot be read, has another shape, is shorter than a latent frame, or holds NaN or infinity.
    """
    channels, rate = autoencoder.audio_channels, autoencoder.sample_rate
    if isinstance(recording, (str, Path)):
        name = str(recording)
        waveform, _ = read_audio(recording, sample_rate=rate, channels=channels)
    else:
        waveform = torch.as_tensor(recording, dtype=torch.float32).cpu()
        if waveform.ndim != 2 or waveform.shape[0] != channels:
            raise UserError(f"{name} is {list(waveform.shape)}; expected [{channels}, samples] at {rate} Hz")
    frame_s = 1 / autoencoder.latent_rate
    if waveform.shape[-1] < round(frame_s * rate):
        raise UserError(
            f"{name}: has {waveform.shape[-1] / rate:.3f} s of sound; {frame_s:.2g} s, a frame of the model, are needed"
        )
    if not waveform.isfinite().all():
        raise UserError(f"{name}: holds samples that are NaN or infinite; repair it first")
    return waveform


def join_recordings(
    autoencoder: Autoencoder, duration_s: float, begin: Recording | None, end: Recording | None
) -> tuple[Tensor, list[Span]]:
    """A sound that begins and ends with recordings, silent between, and the span between."""
    rate, channels = autoencoder.sample_rate, autoencoder.audio_channels
    num_samples = round(duration_s * rate)
    sound = torch.zeros(channels, num_samples)
    first, last = 0, num_samples
    if begin is not None:
        recording = load_recording(begin, autoencoder, "continue")
        first = recording.shape[-1]
        sound[:, :first] = recording[:, :num_samples]
    if end is not None:
        recording = load_recording(end, autoencoder, "lead-in")
        last = num_samples - recording.shape[-1]
        if last >= first:
            sound[:, last:] = recording
    if first >= last:
        raise UserError(
            f"the duration is {duration_s:g} s and the recordings have {(first + num_samples - last) / rate:.2f} s, "
            "so that nothing is left to generate; give a longer duration"
        )
    return sound, [(first / rate, last / rate)]


def encode_around(
    autoencoder: Autoencoder, recording: Tensor, spans: Sequence[tuple[int, int]]
) -> tuple[Tensor, float]:
    """Latents [1, latent_channels, frames] of what is kept of a recording, and the gain that it was encoded with."""
    kept = _mirrored_into(recording, spans)
    peak = float(kept.abs().max())
    gain = PEAK / peak if peak > 0 else 1.0
    device = next(iter(autoencoder.buffers()), next(iter(autoencoder.parameters()), torch.zeros(0))).device
    return autoencoder.encode((kept * gain)[None].to(device)).float().cpu(), gain


def _mirrored_into(recording: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """The recording with each span replaced by what lies before and after it, mirrored and crossfaded."""
    result = recording.clone()
    edges = [0, *(edge for span in spans for edge in span), recording.shape[-1]]
    for index, (start, end) in enumerate(spans):
        before, after = recording[:, edges[2 * index] : start], recording[:, end : edges[2 * index + 3]]
        length = end - start
        share = torch.linspace(0, 1, length) if before.shape[-1] and after.shape[-1] else torch.ones(length)
        result[:, start:end] = 0
        if before.shape[-1]:
            result[:, start:end] += _mirrored(before.flip(-1), length) * share.flip(-1)
        if after.shape[-1]:
            result[:, start:end] += _mirrored(after, length).flip(-1) * share
    return result


def _mirrored(nearest_first: Tensor, length: int) -> Tensor:
    """Samples by their distance from an edge, there and back again where they do not suffice."""
    period = torch.cat([nearest_first, nearest_first.flip(-1)], dim=-1)
    return period[:, torch.arange(length) % period.shape[-1]]


def frames_in(spans: Sequence[tuple[int, int]], num_frames: int, samples_per_frame: float) -> Tensor:
    """The frames that hold any sample of the spans: bool [num_frames]."""
    generate = torch.zeros(num_frames, dtype=torch.bool)
    for start, end in spans:
        generate[math.floor(start / samples_per_frame) : math.ceil(end / samples_per_frame)] = True
    return generate
