"""Media files: opening them, their streams, and what their headers say (PyAV, which brings its own FFmpeg).

All times are seconds from the beginning of the file, whatever its time stamps begin with. Damage is passed over where
that is possible: packets that do not decode leave silence, or no picture, in their place.
"""

import contextlib
import errno
import functools
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition

from diffaudio.errors import UserError
from diffaudio.media.timestamps import Timestamps, can_be_wrong

__all__ = [
    "PREROLL_S",
    "SEEK_S",
    "MediaError",
    "MediaInfo",
    "OpenMedia",
    "check_is_file",
    "decode_packet",
    "open_media",
    "probe",
]

PREROLL_S = 0.5  # decoders of AAC, MP3 and Opus need some packets before they are right
SEEK_S = 5.0  # reading on is cheaper than seeking below this
MAX_PEEKED_BYTES = 64 << 20  # of packets looked at after a seek for the one that shows where it landed
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1000, 1_000_000  # Hz; what claims another is damaged or an attack

# What is opened: formats that hold their own sound and pictures. Not among them are lists of other files (concat,
# HLS, DASH, IMF), patterns of names (image2), devices and scripts, under whatever name such a file comes.
FORMATS = (
    *("3dostr", "aac", "aa", "ac3", "ac4", "aiff", "amr", "amrnb", "amrwb", "ape", "apng", "asf", "ast", "au", "av1"),
    *("avi", "caf", "dirac", "dnxhd", "dsf", "dts", "dtshd", "dv", "eac3", "flac", "flv", "gif", "gsm", "gxf", "h261"),
    *("h263", "h264", "hevc", "iff", "ircam", "ivf", "latm", "loas", "m4v", "matroska", "webm", "mjpeg", "mlp", "mp3"),
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "mpc", "mpc8", "mpeg", "mpegts", "mpegvideo", "mxf", "nsv", "nut"),
    *("nuv", "obu", "ogg", "oma", "rm", "shn", "smk", "sox", "swf", "tak", "truehd", "tta", "ty", "vc1", "vc1test"),
    *("voc", "vvc", "w64", "wav", "wsaud", "wtv", "wv", "xwma", "yuv4mpegpipe"),
)
OPTIONS = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
LISTS = ((b"#EXTM3U", "an HLS playlist"), (b"ffconcat", "an FFmpeg list of files"), (b"<?xml", "an XML document"))


class MediaError(UserError):
    """A file that cannot be read, or lacks what was asked of it."""


@dataclass(frozen=True)
class MediaInfo:
    """What the header of a media file says; None where it says nothing.

    Attributes:
        unknown_audio_codec, unknown_video_codec: of a file whose only such track FFmpeg cannot decode.
    """

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
    unknown_audio_codec: str | None = None
    unknown_video_codec: str | None = None


class OpenMedia:
    """A media file that is being read.

    Attributes:
        info: what its header says.
        audio: the default sound track, else the first; None where there is none.
        video: the same of its pictures; cover art is none.
        begin_s: time stamp that the file begins with.
    """

    def __init__(self, path: Path, container: Any) -> None:
        self._path, self._container = path, container
        self.audio, self.video = _audio_stream(container), _video_stream(container)
        self.begin_s = _begin_s(container, self.audio, self.video)
        self.info = _info(container, self.audio, self.video)
        self._timestamps = Timestamps(container) if can_be_wrong(container.format.name) else None
        self._streams: tuple[Any, ...] = ()
        self._source: Iterator[Any] = iter(())
        self._peeked: deque[Any] = deque()

    @property
    def is_indexed(self) -> bool:
        """Whether the container lists its packets with their times."""
        return self._timestamps is None

    def packets(self, *streams: Any) -> Iterator[Any]:
        """Undecoded packets from here to the end, or to where damage ends the file. Seeking moves it.

        Raises:
            MemoryError: there is not enough for the next.
        """
        if not self._peeked or self._streams != streams:
            self._demux(streams)
        while True:
            packet = self._peeked.popleft() if self._peeked else self._next()
            if packet is None:
                return
            yield packet

    def time_s(self, packet: Any) -> float | None:
        """The presentation time of a packet."""
        stamp = packet.dts if packet.pts is None else packet.pts
        return None if stamp is None else stamp * float(packet.time_base) - self.begin_s

    def seek(self, time_s: float, stream: Any) -> bool:
        """Go to the last key frame of a stream that lies before a time, or to the beginning.

        Returns:
            False where the file cannot be sought in and stays where it is.
        """
        if self._timestamps and (self._timestamps.is_raw or self._timestamps.restarted or self._has_wrong_timestamps()):
            return False
        back_s = 0.0
        while self._land(time_s - back_s, stream):
            landed_s = self._landed_s(stream)
            if landed_s is not None and landed_s <= max(time_s, 0.0) + 1e-3:
                return True
            if back_s > time_s:
                return True  # at the beginning, or what lies before says no time
            back_s = max(2 * back_s, 2.0)  # transport and program streams have no index: the search can end late
        return False

    def _demux(self, streams: tuple[Any, ...]) -> None:
        packets = self._container.demux(*streams)
        self._streams, self._source = streams, self._timestamps.corrected(packets) if self._timestamps else packets
        self._peeked.clear()

    def _next(self) -> Any:
        try:
            return next(self._source, None)
        except av.FFmpegError as error:
            if error.errno == errno.ENOMEM:
                raise MemoryError(str(error)) from error
            return None

    def _land(self, time_s: float, stream: Any) -> bool:
        try:
            self._container.seek(int((self.begin_s + time_s) / stream.time_base), stream=stream)
        except av.FFmpegError:
            return False
        if self._timestamps:
            self._timestamps = Timestamps(self._container)
        self._demux(self._streams or (stream,))
        return True

    def _landed_s(self, stream: Any) -> float | None:
        """Time of the next key frame of a stream; the packets up to it are kept."""
        num_bytes = 0
        while num_bytes < MAX_PEEKED_BYTES and (packet := self._next()) is not None:
            self._peeked.append(packet)
            num_bytes += packet.size
            if packet.stream_index == stream.index and packet.is_keyframe and packet.size:
                return self.time_s(packet)
        return None

    def _has_wrong_timestamps(self) -> bool:
        status = self._path.stat()
        return _has_wrong_timestamps(str(self._path), status.st_size, status.st_mtime_ns)


@contextlib.contextmanager
def open_media(path: str | Path) -> Iterator[OpenMedia]:
    """Open a local media file; it decodes in this thread alone.

    Raises:
        MediaError: there is no such file, or it is not a media file.
    """
    path = check_is_file(path)
    try:
        with _open(path) as container:
            for stream in container.streams:
                if stream.type in ("audio", "video") and stream.codec_context:  # None: no decoder for it
                    stream.codec_context.thread_count = 1
            yield OpenMedia(path.absolute(), container)
    except av.FFmpegError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(str(error)) from error
        raise MediaError(f"{path}: cannot be read as a media file ({_reason(path, error)})") from error


def probe(path: str | Path) -> MediaInfo:
    """Read the header of a media file.

    Raises:
        MediaError: there is no such file, or it is not a media file.
    """
    with open_media(path) as media:
        return media.info


def check_is_file(path: str | Path) -> Path:
    """Refuse what cannot be a media file or a picture before it is opened: pipes and devices would not end.

    Raises:
        MediaError: there is no such file, it is a folder, a pipe or a device, or it is empty.
    """
    path = Path(path)
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise
        raise MediaError(f"{path}: there is no such file") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise MediaError(f"{path}: is {kind}; give a file")
    if status.st_size == 0:
        raise MediaError(f"{path}: the file is empty")
    return path


def decode_packet(packet: Any) -> list[Any] | None:
    """The frames of a packet, None for one that does not decode."""
    try:
        return packet.decode()
    except av.FFmpegError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(str(error)) from error
        return None


def _open(path: Path) -> Any:
    return av.open(str(path.absolute()), metadata_errors="ignore", options=OPTIONS)


@functools.lru_cache(maxsize=64)
def _has_wrong_timestamps(path: str, size: int, modified_ns: int) -> bool:
    """Whether stamps begin again somewhere in a file, so that a time does not say where to seek; nothing is decoded."""
    with _open(Path(path)) as container:
        timestamps = Timestamps(container)
        is_avi = container.format.name == "avi"
        for count, _ in enumerate(timestamps.corrected(container.demux())):
            if timestamps.restarted or timestamps.is_false:
                return True
            if is_avi and count > 1000:  # it has an index; only the stamps of its sound can be false
                break
    return False


def _reason(path: Path, error: av.FFmpegError) -> str:
    if error.errno != errno.EINVAL:  # what FFmpeg says of a format that is not among those allowed
        return str(error.strerror or error)
    with path.open("rb") as file:
        beginning = file.read(64).lstrip(b"\xef\xbb\xbf \r\n\t")
    kind = next((kind for mark, kind in LISTS if beginning.startswith(mark)), "of a format that is not opened")
    return f"it is {kind}; give a file that holds its own sound and pictures"


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
        unknown_audio_codec=None if audio else _unknown_codec(container, "audio"),
        unknown_video_codec=None if video else _unknown_codec(container, "video"),
    )


def _stream_duration_s(stream: Any) -> float | None:
    return float(stream.duration * stream.time_base) if stream and stream.duration and stream.duration > 0 else None


def _begin_s(container: Any, audio: Any, video: Any) -> float:
    """When the first of the two tracks begins: other streams, such as data, can begin long before."""
    begin_s = (container.start_time or 0) / av.time_base
    starts = [stream.start_time for stream in (audio, video) if stream]
    if not starts or None in starts:
        return begin_s
    first_s = min(float(s.start_time * s.time_base) for s in (audio, video) if s)
    return first_s if abs(first_s - begin_s) > 1e-3 else begin_s  # the same but for rounding


def _audio_stream(container: Any) -> Any:
    return _default([s for s in container.streams.audio if s.codec_context and s.codec_context.sample_rate])


def _video_stream(container: Any) -> Any:
    streams = [s for s in container.streams.video if s.codec_context and s.codec_context.width]
    return _default([s for s in streams if not s.disposition & Disposition.attached_pic])


def _default(streams: list[Any]) -> Any:
    flagged = (stream for stream in streams if stream.disposition & Disposition.default)
    return next(flagged, streams[0] if streams else None)


def _unknown_codec(container: Any, kind: str) -> str | None:
    """Name of the codec of the first track of a kind, if FFmpeg has no decoder for it."""
    stream = next((s for s in getattr(container.streams, kind) if s.codec_context is None), None)
    if stream is None:
        return None
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)  # PyAV collects the description by what FFmpeg would print
    try:
        description = container.dumps_format()
    finally:
        av.logging.set_level(level)
    lines = [line for line in description.splitlines() if f"Stream #0:{stream.index}" in line]
    return lines[0].partition(f"{kind.capitalize()}: ")[2].partition(",")[0] or "unknown" if lines else "unknown"
