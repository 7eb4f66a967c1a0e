"""Audio of any length in chunks: memory does not depend on its duration.

A stream is an iterable of tensors of any length that follow each other along the last axis.

    chunks = resample_chunks(chunks, 44100, 24000)
    write_chunks(Path("out.wav"), chunks, 24000)
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from diffaudio.errors import UserError
from diffaudio.media.audio import check_audio_path, resample
from diffaudio.media.audio_streams import stream_audio
from diffaudio.media.audio_writer import write_stream

__all__ = ["map_windows", "read_chunks", "resample_chunks", "write_chunks"]

WINDOW_S = 2.0  # duration of audio that is resampled at once


def read_chunks(
    path: Path, *, sample_rate: int, channels: int, start_s: float = 0.0, duration_s: float | None = None
) -> Iterator[Tensor]:
    """Read audio as `audio.read_audio` does, as a stream.

    Args:
        sample_rate: sample rate in Hz to resample to.
        channels: 1 or 2.
        start_s: start time.
        duration_s: duration to read; None reads to the end. The stream is shorter if the audio ends earlier.

    Yields:
        [channels, samples] float32.

    Raises:
        MediaError: the file is not there, has no sound, or cannot be read.
    """
    stream = stream_audio(path, start_s=start_s, duration_s=duration_s, channels=channels)
    first = next(stream)
    tensors = (torch.from_numpy(x) for _, x in chain([first], stream) if x.shape[1])
    yield from resample_chunks(tensors, first[0], sample_rate)


def map_windows(
    chunks: Iterable[Tensor],
    function: Callable[[Tensor, int], Tensor],
    *,
    step: int,
    outputs_per_step: int,
    size: int,
    before: int,
    after: int,
    fade: int = 0,
) -> Iterator[Tensor]:
    """Apply a function with a bounded receptive field to a stream, window by window.

    Args:
        chunks: [..., n] each.
        function: of a window [..., up to (before + size + fade + after) * step] and the step at which the window
            begins; returns [..., steps * outputs_per_step], for the last window possibly more or less.
        step: input values per step.
        outputs_per_step: output values per step.
        size: steps by which windows advance.
        before, after: steps of context that the function gets and whose outputs are discarded.
        fade: steps over which the outputs of neighbouring windows are cross-faded, at most `size`.

    Yields:
        The outputs, chunk by chunk; concatenated they equal the function of the whole stream if its receptive field
        is no larger than the context.
    """
    stream = iter(chunks)
    buffer = next(stream, None)
    if buffer is None:
        return
    begin = first = 0  # steps at which `buffer`, and the window's own part, begin
    tail: Tensor | None = None
    while True:
        end = first + size + fade
        needed = (end + after - begin) * step
        buffer = _filled(buffer, stream, needed + 1)
        is_last = buffer.shape[-1] <= needed
        skipped = (first - begin) * outputs_per_step
        output = function(buffer[..., :needed], begin)
        output = output[..., skipped : None if is_last else (end - begin) * outputs_per_step]
        output = output if tail is None else _cross_faded(tail, output)
        if is_last:
            yield output
            return
        yield output[..., : size * outputs_per_step]
        tail = output[..., size * outputs_per_step :] if fade else None
        first += size
        next_begin = max(0, first - before)
        buffer = buffer[..., (next_begin - begin) * step :]
        begin = next_begin


def _filled(buffer: Tensor, stream: Iterator[Tensor], needed: int) -> Tensor:
    """The buffer followed by more of the stream, until it has `needed` values or the stream ends."""
    parts, available = [buffer], buffer.shape[-1]
    while available < needed and (chunk := next(stream, None)) is not None:
        parts.append(chunk)
        available += chunk.shape[-1]
    return torch.cat(parts, dim=-1) if len(parts) > 1 else buffer


def _cross_faded(before: Tensor, after: Tensor) -> Tensor:
    """`after`, whose beginning is cross-faded linearly with `before`."""
    length = min(before.shape[-1], after.shape[-1])
    weight = (torch.arange(length, device=after.device, dtype=after.dtype) + 0.5) / max(before.shape[-1], 1)
    blended = before[..., :length] + weight * (after[..., :length] - before[..., :length])
    return torch.cat([blended, after[..., length:]], dim=-1)


def resample_chunks(chunks: Iterable[Tensor], from_rate: int, to_rate: int) -> Iterator[Tensor]:
    """Resample a stream as `audio.resample` resamples a waveform.

    Args:
        chunks: [..., samples] at `from_rate` Hz.
    """
    if from_rate == to_rate:
        yield from chunks
        return
    common = math.gcd(from_rate, to_rate)
    step, outputs = from_rate // common, to_rate // common
    # the filter's half width of 32 zero crossings, in samples, with its cutoff at 0.95 of the lower rate
    context = math.ceil((32 * from_rate / (min(from_rate, to_rate) * 0.95) + 1) / step)
    size = max(1, round(WINDOW_S * from_rate / step))
    yield from map_windows(
        chunks,
        lambda window, _: resample(window, from_rate, to_rate),
        step=step, outputs_per_step=outputs, size=size, before=context, after=context,
    )  # fmt: skip


def write_chunks(path: Path, chunks: Iterable[Tensor], sample_rate: int) -> int:
    """Write a stream as `audio.write_audio` writes a waveform, whole or not at all.

    Args:
        chunks: [channels, samples] each.

    Returns:
        The number of samples per channel.

    Raises:
        ValueError: another suffix, the folder is missing, or there is no chunk.
    """
    check_audio_path(path)
    stream = iter(chunks)
    chunk = next(stream, None)
    if chunk is None:
        raise UserError(f"{path}: there is no sound to write")
    arrays = (each.detach().cpu().float().numpy() for each in chain([chunk], stream))
    return write_stream(path, arrays, sample_rate)
