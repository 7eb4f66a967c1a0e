"""Media files: opening them, their streams and what their headers say (PyAV, which brings its own FFmpeg).

All times are seconds from the beginning of the file, whatever its time stamps begin with.
"""

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition

from diffaudio.errors import UserError

__all__ = ["PREROLL_S", "SEEK_S", "MediaError", "MediaInfo", "OpenMedia", "decode_packet", "open_media", "probe"]

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
    audio_duration_s: float | None = None
    video_duration_s: float | None = None


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


def decode_packet(packet: Any) -> list[Any] | None:
    """The frames of a packet, None for one that does not decode."""
    try:
        return packet.decode()
    except av.FFmpegError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(str(error)) from error
        return None


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
        audio_duration_s=_stream_duration_s(audio),
        video_duration_s=_stream_duration_s(video),
    )


def _stream_duration_s(stream: Any) -> float | None:
    return float(stream.duration * stream.time_base) if stream and stream.duration and stream.duration > 0 else None


def _audio_stream(container: Any) -> Any:
    return next((s for s in container.streams.audio if s.codec_context and s.codec_context.sample_rate), None)


def _video_stream(container: Any) -> Any:
    streams = (s for s in container.streams.video if s.codec_context and s.codec_context.width)
    return next((s for s in streams if not s.disposition & Disposition.attached_pic), None)
