"""Media files: what is in one, its sound and its pictures (PyAV, which brings its own FFmpeg).

All times are seconds from the beginning of the file, whatever its time stamps begin with. Damage is
passed over where that is possible: packets that do not decode leave silence, or no picture, in their place.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.stream import Disposition
from PIL import Image
from torch import Tensor

__all__ = ["MediaError", "MediaInfo", "probe", "read_frames", "read_sound"]

PREROLL_S = 0.5  # decoders of AAC, MP3 and Opus need some packets before they are right
GAP_S = 0.04  # time stamps are only rounded below this, above it something is missing
SEEK_S = 5.0  # decoding on is cheaper than seeking below this
HOLD_S = 1.0  # how long the last picture stands where the file does not say


class MediaError(ValueError):
    """A file that cannot be read, or lacks what was asked of it."""


@dataclass(frozen=True)
class MediaInfo:
    """What the header of a media file says; None where it says nothing."""

    duration_s: float | None
    has_audio: bool
    has_video: bool
    sample_rate: int | None = None
    audio_channels: int | None = None
    width: int | None = None
    height: int | None = None
    frame_rate: float | None = None


def probe(path: str | Path) -> MediaInfo:
    """Read the header of a media file.

    Raises:
        MediaError: there is no such file, or it is not a media file.
    """
    with _opened(path) as container:
        audio, video = _audio_stream(container), _video_stream(container)
        return MediaInfo(
            duration_s=_duration_s(container),
            has_audio=audio is not None,
            has_video=video is not None,
            sample_rate=audio.codec_context.sample_rate if audio else None,
            audio_channels=audio.codec_context.channels if audio else None,
            width=video.codec_context.width if video else None,
            height=video.codec_context.height if video else None,
            frame_rate=float(video.average_rate) if video and video.average_rate else None,
        )


def read_sound(path: str | Path, *, start_s: float = 0.0, duration_s: float | None = None) -> tuple[Tensor, int]:
    """Decode the first sound track as it is; `audio.read_audio` also resamples and mixes.

    Args:
        start_s: where to begin.
        duration_s: how much to read; None reads to the end.

    Returns:
        [channels, samples] float32, and the sample rate in Hz. Shorter than `duration_s` where the sound ends
        before, and empty where it ends before `start_s`. Lossy formats may reach beyond [-1, 1].

    Raises:
        MediaError: the file cannot be read, has no sound track, or nothing of it decodes.
    """
    with _opened(path) as container:
        stream = _audio_stream(container)
        if stream is None:
            raise MediaError(f"{path}: has no sound track")
        begin_s, total_s = _begin_s(container), _duration_s(container)
        if start_s > PREROLL_S:
            _seek(container, stream, begin_s + start_s - PREROLL_S)
        end_s = start_s + duration_s if duration_s is not None else total_s and total_s + HOLD_S
        pieces: list[tuple[float | None, np.ndarray]] = []
        goes_on = damaged = False
        formats = set()
        for frame in _decoded(container, stream):
            if frame is None:
                damaged = True
                continue
            time_s = None if frame.time is None else frame.time - begin_s
            goes_on = end_s is not None and time_s is not None and time_s >= end_s
            if goes_on:
                break
            pieces.append((time_s, _to_float(frame)))
            formats.add((frame.sample_rate, frame.layout.nb_channels))
        if len(formats) > 1:
            raise MediaError(f"{path}: the sound changes its sample rate or channels midway")
        if damaged and not pieces and not goes_on:
            raise MediaError(f"{path}: no sound decodes from {start_s:g} s on")
        context = stream.codec_context
        rate, channels = formats.pop() if formats else (context.sample_rate, context.channels)
        waveform = _lay_out(pieces, rate, channels, start_s, end_s, fill=goes_on)
    return torch.from_numpy(waveform), rate


def read_frames(
    path: str | Path, times_s: Sequence[float], *, max_side: int | None = None
) -> list[tuple[float, Image.Image]]:
    """Decode the pictures that are on screen at the given times.

    Args:
        times_s: in any order.
        max_side: larger pictures are brought to this longest side; smaller ones stay as they are.

    Returns:
        Each picture once, as RGB and upright, with the time at which it appears, in order of time. Times after
        the end of the picture give nothing.

    Raises:
        MediaError: the file cannot be read, has no picture track, or nothing of it decodes.
    """
    found: list[tuple[float, Image.Image]] = []
    with _opened(path) as container:
        stream = _video_stream(container)
        if stream is None:
            raise MediaError(f"{path}: has no picture track")
        begin_s = _begin_s(container)
        decoded_any = False
        held: Any = None  # the picture on screen, not yet asked for or already taken
        taken: float | None = None
        frames = _pictures(container, stream)
        ahead = next(frames, None)
        for time_s in sorted(times_s):
            if ahead is not None and time_s + begin_s > ahead.time + SEEK_S:
                _seek(container, stream, begin_s + time_s)
                frames = _pictures(container, stream)
                held, ahead = None, next(frames, None)
            while ahead is not None and (held is None or ahead.time <= begin_s + time_s + 1e-3):
                held, ahead = ahead, next(frames, None)
            if held is None:
                break
            decoded_any = True
            hold_s = max(HOLD_S, float((held.duration or 0) * held.time_base))
            if ahead is None and begin_s + time_s > held.time + hold_s:
                break
            if taken != held.time:
                taken = held.time
                found.append((held.time - begin_s, _to_image(held, stream, max_side)))
        if times_s and not decoded_any:
            raise MediaError(f"{path}: no picture decodes")
    return found


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    path = Path(path)
    if not path.is_file():
        raise MediaError(f"{path}: there is no such file")
    if path.stat().st_size == 0:
        raise MediaError(f"{path}: the file is empty")
    try:
        # Playlists in disguise must not make a run read from the network.
        options = {"protocol_whitelist": "file"}
        with av.open(str(path.absolute()), metadata_errors="ignore", options=options) as container:
            for stream in container.streams:
                if stream.type in ("audio", "video") and stream.codec_context:  # None: no decoder for it
                    stream.codec_context.thread_count = 1
            yield container
    except av.FFmpegError as error:
        raise MediaError(f"{path}: cannot be read as a media file ({error.strerror or error})") from error


def _audio_stream(container: Any) -> Any:
    return next((s for s in container.streams.audio if s.codec_context and s.codec_context.sample_rate), None)


def _video_stream(container: Any) -> Any:
    """The first picture track; cover art is none."""
    streams = (s for s in container.streams.video if s.codec_context and s.codec_context.width)
    return next((s for s in streams if not s.disposition & Disposition.attached_pic), None)


def _begin_s(container: Any) -> float:
    return (container.start_time or 0) / av.time_base


def _duration_s(container: Any) -> float | None:
    return container.duration / av.time_base if container.duration and container.duration > 0 else None


def _seek(container: Any, stream: Any, time_s: float) -> None:
    """Go to the key frame before; a file that cannot be sought in is read from where it stands."""
    with contextlib.suppress(av.FFmpegError):
        container.seek(int(time_s / stream.time_base), stream=stream)


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """All frames from here on, None for a packet that does not decode."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):  # what is cut off ends here
            return
        try:
            yield from packet.decode()
        except av.FFmpegError:
            yield None


def _pictures(container: Any, stream: Any) -> Iterator[Any]:
    return (f for f in _decoded(container, stream) if f is not None and f.time is not None and not f.is_corrupt)


def _lay_out(
    pieces: list[tuple[float | None, np.ndarray]],
    rate: int,
    channels: int,
    start_s: float,
    end_s: float | None,
    *,
    fill: bool,
) -> np.ndarray:
    """Put decoded pieces where their time stamps say, between `start_s` and `end_s`.

    Neighbours are joined without a seam unless a stamp says that something between them is missing.

    Args:
        pieces: time in seconds, or None, and samples [channels, samples].
        fill: pad to `end_s` with silence.
    """
    stop = None if end_s is None else round((end_s - start_s) * rate)
    laid: list[np.ndarray] = []
    position: int | None = None  # of the next sample, 0 at start_s
    for time_s, samples in pieces:
        stamped = position or 0 if time_s is None else round((time_s - start_s) * rate)
        if position is None or (stop is not None and stamped - position > GAP_S * rate):
            laid.append(np.zeros((channels, max(0, stamped - max(0, position or 0))), np.float32))
            position = stamped
        laid.append(samples[:, max(0, -position) :])
        position += samples.shape[1]
    waveform = np.concatenate([*laid, np.zeros((channels, 0), np.float32)], axis=1)[:, :stop]
    if fill and stop is not None and waveform.shape[1] < stop:
        waveform = np.pad(waveform, ((0, 0), (0, stop - waveform.shape[1])))
    return np.ascontiguousarray(waveform)


def _to_float(frame: Any) -> np.ndarray:
    """[channels, samples] float32, whatever the format of the samples."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype.kind == "u":
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / 2.0 ** (8 * samples.itemsize - 1)
    return samples.astype(np.float32)


def _to_image(frame: Any, stream: Any, max_side: int | None) -> Image.Image:
    """Scale to square pixels and at most `max_side`, then turn upright."""
    aspect = float(stream.sample_aspect_ratio or 1)
    width, height = max(1, round(frame.width * aspect)), frame.height
    scale = min(1.0, (max_side or max(width, height)) / max(width, height))
    size = {"width": max(1, round(width * scale)), "height": max(1, round(height * scale))}
    image = frame.to_image(interpolation="BICUBIC", **size)
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image
