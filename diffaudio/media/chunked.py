"""Sound of any length in pieces: memory does not depend on how long it is.

A stream is an iterable of tensors that follow each other along the last axis, each as long as it likes.

    pieces = resample_chunks(pieces, 44100, 24000)
    write_chunks(Path("out.wav"), pieces, 24000)
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from diffaudio.atomic_io import atomic_file
from diffaudio.errors import UserError
from diffaudio.media.audio import READ_DIRECTLY, check_audio_path, mix_channels, resample
from diffaudio.media.audio_track import HOLD_S, AudioTrack
from diffaudio.media.container import PREROLL_S, MediaError, open_media

__all__ = ["map_windows", "read_chunks", "resample_chunks", "write_chunks"]

RESAMPLED_S = 2.0  # of sound at once
HELD_S = 2.0  # of sound, of which the first second is given away


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
    direct = path.suffix.lower() in READ_DIRECTLY and path.is_file()
    stream = (_soundfile_pieces if direct else _decoded_pieces)(path, start_s, duration_s)
    first = next(stream, None)
    if first is None:
        return
    rate = first[0]
    given = (mix_channels(torch.from_numpy(piece), channels) for _, piece in chain([first], stream))
    yield from resample_chunks(given, rate, sample_rate)


def _soundfile_pieces(path: Path, start_s: float, duration_s: float | None) -> Iterator[tuple[int, np.ndarray]]:
    """Sample rate, and [channels, samples]."""
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            file.seek(min(round(start_s * rate), file.frames))
            left = file.frames if duration_s is None else round(duration_s * rate)
            while left > 0 and len(samples := file.read(min(left, rate), dtype="float32", always_2d=True)):
                left -= len(samples)
                yield rate, samples.T.copy()
    except soundfile.SoundFileError as error:
        raise MediaError(f"{path}: cannot be read as a sound file ({error})") from error


def _decoded_pieces(path: Path, start_s: float, duration_s: float | None) -> Iterator[tuple[int, np.ndarray]]:
    """The same of any media file, as `audio_track.decode_audio` reads it."""
    with open_media(path) as media:
        if media.audio is None:
            raise MediaError(f"{path}: has no sound track")
        if start_s > PREROLL_S:
            media.seek(start_s - PREROLL_S, media.audio)
        total_s = media.info.duration_s
        end_s = start_s + duration_s if duration_s is not None else total_s and total_s + HOLD_S
        track, damaged, given = AudioTrack(media.begin_s), False, 0
        for packet in media.packets(media.audio):
            damaged = track.feed([packet]) or damaged
            if end_s is not None and track.end_s >= end_s:
                break
            while track.format is not None and track.end_s >= start_s + given / track.format[0] + HELD_S:
                rate = track.format[0]
                begin_s = (round(start_s * rate) + given) / rate  # on a sample, so that no piece loses one
                yield rate, track.cut(begin_s, begin_s + 1)
                track.discard_before(begin_s + 1)
                given += rate
        if track.format is None:
            if damaged:
                raise MediaError(f"{path}: no sound decodes from {start_s:g} s on")
            return
        rate = track.format[0]
        begin_s = (round(start_s * rate) + given) / rate
        rest_s = None if end_s is None else begin_s + (round((end_s - start_s) * rate) - given) / rate
        yield rate, track.cut(begin_s, rest_s)


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
    count = 0
    channels = piece.shape[0]
    with (
        atomic_file(path) as temporary,
        soundfile.SoundFile(temporary, "w", sample_rate, channels, subtype="PCM_16") as file,
    ):
        for each in chain([piece], stream):
            file.write(each.detach().cpu().float().clamp(-1, 1).T.numpy())
            count += each.shape[-1]
    return count
