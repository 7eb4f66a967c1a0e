"""A sound under the picture of a video: the video stream is copied as it is, the sound encoded beside it.

The other streams of the video (its old sound, subtitles) are left out. Everything happens in a child process, as for
decoding.
"""

import errno
import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile

from diffaudio.media.container import MediaError, OpenMedia, open_media
from diffaudio.media.file_extensions import VIDEO_CONTAINERS
from diffaudio.media.subprocess_decoding import decode
from diffaudio.media.video_frames import check_has_video, video_duration_s

__all__ = ["Picture", "check_dubbing", "dub", "dub_in_this_process"]

BIT_RATE = 96_000  # per channel, of lossy encoders
BLOCK = 4096  # samples of a sound that are encoded together, where the encoder takes any number
NUM_TRIED = 100  # packets of the picture that are copied to see whether a container can hold them
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES)


@dataclass(frozen=True)
class Picture:
    """The picture of a video that a sound is to be put under."""

    duration_s: float


def check_dubbing(video: str | Path, output: str | Path) -> Picture:
    """Check that the picture of a video can be copied to a file with the extension of `output`; nothing is written.

    Raises:
        MediaError: the video cannot be read, has no picture, or that container cannot hold it.
    """
    ((facts, _),) = decode("dub", Path(video), output=str(output), sound=None)
    return Picture(**facts)


def dub(video: str | Path, sound: str | Path, output: str | Path) -> None:
    """Write the picture of a video, from its first frame on, with a sound.

    Args:
        sound: a .wav or .flac file; it begins with the picture. Either of the two may end first.
        output: a file with an extension in `VIDEO_CONTAINERS`; it is not written atomically.

    Raises:
        MediaError: the video cannot be read, has no picture, or the container cannot hold it.
    """
    # absolute, since the child may have another working directory
    list(decode("dub", Path(video), output=str(Path(output).absolute()), sound=str(Path(sound).absolute())))


def dub_in_this_process(video: Path, output: str, sound: str | None) -> dict[str, Any] | None:
    """`dub`, or `check_dubbing` where there is no sound; gives the facts of the latter."""
    suffix = Path(output).suffix.lower()
    if suffix not in VIDEO_CONTAINERS:
        raise MediaError(f"{output}: cannot write {suffix or 'this'}; a video is {', '.join(VIDEO_CONTAINERS)}")
    with open_media(video) as media:
        check_has_video(media, video)
        codec = media.video.codec_context.name
        try:
            if sound is None:
                trial = io.BytesIO()
                _copy(media, trial, suffix, np.zeros((0, 1), np.float32), 48_000)
                _check_readable(trial, codec)
            else:
                with soundfile.SoundFile(sound) as file:
                    _copy(media, output, suffix, file, file.samplerate)
        except (av.FFmpegError, ValueError) as error:
            if getattr(error, "errno", None) in DISK_ERRORS:
                raise OSError(error.errno, error.strerror) from error  # type: ignore[union-attr]
            raise MediaError(
                f"{video}: a {suffix} file cannot hold its {codec} picture ({_reason(error)}); choose another, such as "
                ".mkv or that of the video"
            ) from error
    return {"duration_s": video_duration_s(video)} if sound is None else None


def _copy(media: OpenMedia, output: Any, suffix: str, sound: Any, sample_rate: int) -> None:
    """Copy the packets of the picture, and encode the sound between them.

    Args:
        sound: a file that is being read; an array [0, 1] for a trial, of some packets only.
    """
    container_format, encoder = VIDEO_CONTAINERS[suffix]
    is_trial = isinstance(sound, np.ndarray)
    with av.open(output, "w", format=container_format) as container:
        picture: Any = container.add_stream_from_template(media.video, opaque=True)
        audio = _audio_stream(container, encoder, sample_rate, 1 if is_trial else sound.channels)
        container.start_encoding()
        blocks = iter(()) if is_trial else _encoded(audio, sound, sample_rate)
        pending = next(blocks, None)
        for count, packet in enumerate(_picture_packets(media)):
            if is_trial and count == NUM_TRIED:
                break
            while pending is not None and pending[0] <= float(packet.dts * packet.time_base):
                container.mux(pending[1])
                pending = next(blocks, None)
            packet.stream = picture
            container.mux(packet)
        while pending is not None:
            container.mux(pending[1])
            pending = next(blocks, None)


def _check_readable(trial: io.BytesIO, codec: str) -> None:
    """Some containers accept any stream, and players then do not find it."""
    trial.seek(0)
    with av.open(trial) as container:
        streams = container.streams.video
        if not streams or streams[0].codec_context is None or streams[0].codec_context.name != codec:
            raise ValueError("it would not be recognised")


def _picture_packets(media: OpenMedia) -> Iterator[Any]:
    """The packets of the picture, with times that begin with the first frame."""
    start = None
    for packet in media.packets(media.video):
        if not packet.size:
            continue
        packet.dts = packet.pts if packet.dts is None else packet.dts
        packet.pts = packet.dts if packet.pts is None else packet.pts
        if packet.pts is None:
            raise ValueError("its frames have no times")
        if start is None:
            known = media.video.start_time
            start = packet.pts if known is None or abs(known - packet.pts) * packet.time_base > 1 else known
        packet.pts, packet.dts = packet.pts - start, packet.dts - start
        yield packet


def _audio_stream(container: Any, encoder: str, sample_rate: int, channels: int) -> Any:
    rates = av.Codec(encoder, "w").audio_rates or [sample_rate]
    rate = min((r for r in rates if r >= sample_rate), default=max(rates))
    stream = container.add_stream(encoder, rate=rate, layout="mono" if channels == 1 else "stereo")
    if encoder != "flac":
        stream.bit_rate = BIT_RATE * channels
    return stream


def _encoded(stream: Any, sound: soundfile.SoundFile, sample_rate: int) -> Iterator[tuple[float, list[Any]]]:
    """The time in seconds at which each block of the sound begins, and its packets."""
    context = stream.codec_context
    resampler = av.AudioResampler(context.format, context.layout, context.sample_rate, frame_size=context.frame_size)
    layout, num_read = "mono" if sound.channels == 1 else "stereo", 0
    for block in sound.blocks(context.frame_size or BLOCK, dtype="float32", always_2d=True):
        samples = np.ascontiguousarray(block, dtype=np.float32).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = sample_rate, num_read, Fraction(1, sample_rate)
        packets = [packet for each in resampler.resample(frame) for packet in stream.encode(each)]
        yield num_read / sample_rate, packets
        num_read += len(block)
    rest = [packet for each in resampler.resample(None) for packet in stream.encode(each)]
    yield num_read / sample_rate, [*rest, *stream.encode(None)]


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
