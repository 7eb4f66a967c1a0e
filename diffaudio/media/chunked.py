"""Sound of any length in pieces: memory does not depend on how long it is.

A stream is an iterable of tensors that follow each other along the last axis, each as long as it likes.

    pieces = resample_chunks(pieces, 44100, 24000)
    write_chunks(Path("out.wav"), pieces, 24000)
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from diffaudio.errors import UserError
from diffaudio.media.audio import check_audio_path, resample
from diffaudio.media.audio_files import stream_audio, write_pcm16

__all__ = ["map_windows", "read_chunks", "resample_chunks", "write_chunks"]

RESAMPLED_S = 2.0  # of sound at once


def read_chunks(
    path: Path, *, sample_rate: int, channels: int, start_s: float = 0.0, duration_s: float | None = None
) -> Iterator[Tensor]:
    """What `audio.read_audio` reads, as a stream.

    Args:
        sample_rate: to resample to.
        channels: 1 or 2.
        start_s: where to begin.
        duration_s: how much to read; None reads to the end. Less comes where the sound ends before.

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
    pieces: Iterable[Tensor],
    function: Callable[[Tensor, int], Tensor],
    *,
    step: int,
    outputs_per_step: int,
    size: int,
    before: int,
    after: int,
    fade: int = 0,
) -> Iterator[Tensor]:
    """Apply a function that looks only so far around to a stream, window by window.

    Args:
        pieces: [..., n] each.
        function: of a window [..., up to (before + size + fade + after) * step] and the step at which the window
            begins; gives [..., steps * outputs_per_step], of the last window also more or less.
        step: values of the stream in a step.
        outputs_per_step: values that the function makes of a step.
        size: steps by which windows advance.
        before, after: steps of context that the function gets and whose results are not used.
        fade: steps over which a window's results go over into the next one's, at most `size`.

    Yields:
        What the function makes, piece by piece; joined it is what the function makes of the whole stream, if that
        looks at no more than the context.
    """
    stream = iter(pieces)
    held = next(stream, None)
    if held is None:
        return
    begin = first = 0  # steps at which `held`, and the window's own part, begin
    tail: Tensor | None = None
    while True:
        end = first + size + fade
        wanted = (end + after - begin) * step
        held = _filled(held, stream, wanted + 1)
        is_last = held.shape[-1] <= wanted
        skipped = (first - begin) * outputs_per_step
        made = function(held[..., :wanted], begin)
        made = made[..., skipped : None if is_last else (end - begin) * outputs_per_step]
        made = made if tail is None else _faded(tail, made)
        if is_last:
            yield made
            return
        yield made[..., : size * outputs_per_step]
        tail = made[..., size * outputs_per_step :] if fade else None
        first += size
        next_begin = max(0, first - before)
        held = held[..., (next_begin - begin) * step :]
        begin = next_begin


def _filled(held: Tensor, stream: Iterator[Tensor], wanted: int) -> Tensor:
    """With more of the stream behind, until there are `wanted` values or the stream ends."""
    parts, available = [held], held.shape[-1]
    while available < wanted and (piece := next(stream, None)) is not None:
        parts.append(piece)
        available += piece.shape[-1]
    return torch.cat(parts, dim=-1) if len(parts) > 1 else held


def _faded(before: Tensor, after: Tensor) -> Tensor:
    """`after`, its beginning blended with `before` in a straight line."""
    length = min(before.shape[-1], after.shape[-1])
    share = (torch.arange(length, device=after.device, dtype=after.dtype) + 0.5) / max(before.shape[-1], 1)
    blended = before[..., :length] + share * (after[..., :length] - before[..., :length])
    return torch.cat([blended, after[..., length:]], dim=-1)


def resample_chunks(pieces: Iterable[Tensor], from_rate: int, to_rate: int) -> Iterator[Tensor]:
    """What `audio.resample` gives, of a stream.

    Args:
        pieces: [..., samples] at `from_rate` Hz.
    """
    if from_rate == to_rate:
        yield from pieces
        return
    common = math.gcd(from_rate, to_rate)
    step, made = from_rate // common, to_rate // common
    # the filter's half width of 32 zero crossings, in samples, with its cutoff at 0.95 of the lower rate
    context = math.ceil((32 * from_rate / (min(from_rate, to_rate) * 0.95) + 1) / step)
    size = max(1, round(RESAMPLED_S * from_rate / step))
    yield from map_windows(
        pieces,
        lambda window, _: resample(window, from_rate, to_rate),
        step=step, outputs_per_step=made, size=size, before=context, after=context,
    )  # fmt: skip


def write_chunks(path: Path, pieces: Iterable[Tensor], sample_rate: int) -> int:
    """Write a stream as `audio.write_audio` writes a waveform: 16 bits, .wav or .flac, whole or not at all.

    Args:
        pieces: [channels, samples] each.

    Returns:
        How many samples there were, of each channel.

    Raises:
        ValueError: another suffix, the folder is not there, or there is no piece.
    """
    check_audio_path(path)
    stream = iter(pieces)
    piece = next(stream, None)
    if piece is None:
        raise UserError(f"{path}: there is no sound to write")
    arrays = (each.detach().cpu().float().numpy() for each in chain([piece], stream))
    return write_pcm16(path, arrays, sample_rate)
