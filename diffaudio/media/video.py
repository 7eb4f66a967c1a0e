"""Media files: what is in one, its sound and its pictures (PyAV, which brings its own FFmpeg).

All times are seconds from the beginning of the file, whatever its time stamps begin with. Damage is
passed over where that is possible: packets that do not decode leave silence, or no picture, in their place.
"""

import contextlib
import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from PIL import Image

from diffaudio.errors import UserError
from diffaudio.media.decoders import HOLD_S, PictureTrack, SoundTrack

__all__ = ["MediaError", "MediaInfo", "OpenMedia", "open_media", "probe", "read_frames", "read_sound"]

PREROLL_S = 0.5  # decoders of AAC, MP3 and Opus need some packets before they are right
SEEK_S = 5.0  # reading on is cheaper than seeking below this


class MediaError(UserError):
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
    sound_duration_s: float | None = None
    picture_duration_s: float | None = None


@dataclass(frozen=True)
class OpenMedia:
    """A media file that is being read.

    Attributes:
        audio: the first sound track, None where there is none.
        video: the first picture track; cover art is none.
        begin_s: time stamp that the file begins with.
    """

    info: MediaInfo
    audio: Any
    video: Any
    begin_s: float
    container: Any

    def packets(self, *streams: Any) -> Iterator[Any]:
        """Undecoded packets from here to the end, or to where damage ends the file.

        Raises:
            MemoryError: there is not enough for the next.
        """
        try:
            yield from self.container.demux(*streams)
        except av.FFmpegError as error:
            if error.errno == errno.ENOMEM:
                raise MemoryError(str(error)) from error

    def time_s(self, packet: Any) -> float | None:
        """When a packet is heard or seen."""
        stamp = packet.dts if packet.pts is None else packet.pts
        return None if stamp is None else stamp * float(packet.time_base) - self.begin_s

    def seek(self, time_s: float, stream: Any) -> bool:
        """Go to the key frame before a time; False where the file cannot be sought in and stays where it is."""
        try:
            self.container.seek(int((self.begin_s + time_s) / stream.time_base), stream=stream)
        except av.FFmpegError:
            return False
        return True


@contextlib.contextmanager
def open_media(path: str | Path) -> Iterator[OpenMedia]:
    """Open a local media file; it decodes in this thread alone.

    Raises:
        MediaError: there is no such file, or it is not a media file.
    """
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
            audio, video = _audio_stream(container), _video_stream(container)
            begin_s = (container.start_time or 0) / av.time_base
            yield OpenMedia(_info(container, audio, video), audio, video, begin_s, container)
    except av.FFmpegError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(str(error)) from error
        raise MediaError(f"{path}: cannot be read as a media file ({error.strerror or error})") from error


def probe(path: str | Path) -> MediaInfo:
    """Read the header of a media file.

    Raises:
        MediaError: there is no such file, or it is not a media file.
    """
    with open_media(path) as media:
        return media.info


def read_sound(path: str | Path, *, start_s: float = 0.0, duration_s: float | None = None) -> tuple[np.ndarray, int]:
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
    with open_media(path) as media:
        if media.audio is None:
            raise MediaError(f"{path}: has no sound track")
        if start_s > PREROLL_S:
            media.seek(start_s - PREROLL_S, media.audio)
        total_s = media.info.duration_s
        end_s = start_s + duration_s if duration_s is not None else total_s and total_s + HOLD_S
        track, damaged = SoundTrack(media.begin_s), False
        for packet in media.packets(media.audio):
            damaged = track.feed([packet]) or damaged
            if end_s is not None and track.end_s >= end_s:
                break
        if track.format is None:
            if damaged:
                raise MediaError(f"{path}: no sound decodes from {start_s:g} s on")
            context = media.audio.codec_context
            return np.zeros((context.channels, 0), np.float32), context.sample_rate
        return np.ascontiguousarray(track.cut(start_s, end_s)), track.format[0]


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
    found: dict[float, Image.Image] = {}

    def take(time_s: float, picture: Image.Image | None) -> None:
        if picture is not None:
            found[time_s] = picture

    with open_media(path) as media:
        if media.video is None:
            raise MediaError(f"{path}: has no picture track")
        track = PictureTrack(media.video, media.begin_s, max_side)
        for time_s in times_s:
            track.want(time_s, take)
        _follow(media, track)
        if times_s and not track.decoded_any:
            raise MediaError(f"{path}: no picture decodes")
    return sorted(found.items())


def _follow(media: OpenMedia, track: PictureTrack) -> None:
    """Read on until all that is wanted has been seen, passing over what lies between."""
    packets = media.packets(media.video)
    sought_s: float | None = None
    while (wanted_s := track.next_wanted_s) is not None:
        packet = next(packets, None)
        if packet is None:
            break
        time_s = media.time_s(packet)
        if time_s is not None and wanted_s > time_s + SEEK_S and sought_s != wanted_s:
            sought_s = wanted_s
            if media.seek(wanted_s, media.video):
                track.restart()
                continue
        track.feed(packet)
    track.finish()


def _info(container: Any, audio: Any, video: Any) -> MediaInfo:
    return MediaInfo(
        duration_s=container.duration / av.time_base if container.duration and container.duration > 0 else None,
        has_audio=audio is not None,
        has_video=video is not None,
        sample_rate=audio.codec_context.sample_rate if audio else None,
        audio_channels=audio.codec_context.channels if audio else None,
        width=video.codec_context.width if video else None,
        height=video.codec_context.height if video else None,
        frame_rate=float(video.average_rate) if video and video.average_rate else None,
        sound_duration_s=_stream_duration_s(audio),
        picture_duration_s=_stream_duration_s(video),
    )


def _stream_duration_s(stream: Any) -> float | None:
    return float(stream.duration * stream.time_base) if stream and stream.duration and stream.duration > 0 else None


def _audio_stream(container: Any) -> Any:
    return next((s for s in container.streams.audio if s.codec_context and s.codec_context.sample_rate), None)


def _video_stream(container: Any) -> Any:
    streams = (s for s in container.streams.video if s.codec_context and s.codec_context.width)
    return next((s for s in streams if not s.disposition & Disposition.attached_pic), None)
