"""Tiny real media files for tests: pictures that tell their number, and any sound."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from PIL import Image

FRAME_RATE = 4

# container -> codecs of picture and sound, and a sample rate that both can do
CODECS = {
    ".mp4": ("libx264", "aac", 44100),
    ".mov": ("libx264", "pcm_s16le", 44100),
    ".mkv": ("libx264", "flac", 8000),
    ".webm": ("libvpx-vp9", "libopus", 48000),
    ".avi": ("mpeg4", "libmp3lame", 44100),
    ".ts": ("libx264", "aac", 44100),
}
MPEG2 = ("mpeg2video", "mp2", 48000)  # of .mpg files, whose pictures come at 25 a second


LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


def tone(duration_s: float, rate: int, *, frequency: float = 440.0, gain: float = 0.3, channels: int = 1) -> np.ndarray:
    """[channels, samples]"""
    t = np.arange(round(duration_s * rate)) / rate
    return np.tile(gain * np.sin(2 * np.pi * frequency * t), (channels, 1)).astype(np.float32)


def noise(duration_s: float, rate: int, *, gain: float = 0.1, channels: int = 1, seed: int = 0) -> np.ndarray:
    """[channels, samples]"""
    return (gain * np.random.default_rng(seed).standard_normal((channels, round(duration_s * rate)))).astype(np.float32)


def numbered_pictures(duration_s: float, *, size: tuple[int, int] = (64, 48), first: int = 60) -> list[Image.Image]:
    """Grey pictures, each 3 brighter than the one before, so that `picture_number` finds out which it was."""
    return [Image.new("RGB", size, (first + 3 * i,) * 3) for i in range(round(duration_s * FRAME_RATE))]


def picture_number(picture: Image.Image, *, first: int = 60) -> int:
    """The position of a picture in `numbered_pictures`."""
    return round((np.asarray(picture.convert("L")).mean() - first) / 3)


def write_media(
    path: Path,
    *,
    sound: np.ndarray | None = None,
    pictures: list[Image.Image] | None = None,
    begin_s: float = 0.0,
    sound_start_s: float = 0.0,
    gap: tuple[float, float] | None = None,
    rotation: int = 0,
    sound_codec: str | None = None,
    picture_codec: str | None = None,
    pixel_aspect: Fraction | None = None,
    cover: bool = False,
    gop_size: int = 8,
    rate: int | None = None,
    muxer: dict[str, str] | None = None,
) -> Path:
    """Write a file with the codecs of its suffix.

    Args:
        sound: [channels, samples] at the rate that `CODECS` says.
        pictures: at FRAME_RATE; 25 a second in a .mpg file.
        begin_s: time stamp that everything begins with.
        sound_start_s: when the sound begins, counted from there.
        gap: from this second of the sound on, everything comes so many seconds later.
        rotation: that a player has to turn the pictures by, counterclockwise.
        sound_codec: instead of the one in `CODECS`.
        picture_codec: likewise.
        pixel_aspect: how much wider than high a pixel is to be shown.
        cover: whether the picture is cover art.
        gop_size: pictures from one key frame to the next.
        rate: sample rate of the sound instead of the one in `CODECS`.
        muxer: options of it.
    """
    usual_picture_codec, usual_sound_codec, usual_rate = CODECS.get(path.suffix, MPEG2)
    rate = rate or usual_rate
    with av.open(str(path), "w", container_options=muxer or {}) as container:
        video = audio = None
        if pictures:
            picture_codec = picture_codec or usual_picture_codec
            frame_rate = 25 if picture_codec == "mpeg2video" else FRAME_RATE  # which knows no such low rate
            video = container.add_stream(picture_codec, rate=frame_rate)
            video.width, video.height = pictures[0].size
            video.pix_fmt = "yuvj420p" if picture_codec == "mjpeg" else "yuv420p"
            video.codec_context.gop_size = gop_size
            video.bit_rate = 2_000_000
            if picture_codec == "mpeg4":
                video.options = {"sc_threshold": "1000000000"}
            if picture_codec == "libx264":
                video.options = {"threads": "1", "preset": "ultrafast", "crf": "10"}
            if cover:
                video.disposition = Disposition.attached_pic
            if pixel_aspect:
                video.codec_context.sample_aspect_ratio = pixel_aspect
            if rotation:
                video.set_display_rotation(rotation)
        if sound is not None:
            layout = LAYOUTS.get(len(sound)) or f"{len(sound)} channels"
            audio = container.add_stream(sound_codec or usual_sound_codec, rate=rate, layout=layout)
        if video:
            for index, picture in enumerate(pictures or []):
                frame = av.VideoFrame.from_image(picture)
                frame.pts, frame.time_base = index + round(begin_s * frame_rate), Fraction(1, frame_rate)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if audio and sound is not None:
            _write_sound(container, audio, sound, rate, begin_s + sound_start_s, gap)
    return path


def write_huge_picture(path: Path) -> Path:
    """Write a .mkv file with a second of sound under a picture of 225 million pixels, which take 2 MB as JPEG."""
    picture = io.BytesIO()
    Image.new("L", (15000, 15000), 90).save(picture, "JPEG")
    sound = write_media(path.with_suffix(".mov"), sound=tone(1, 44100))
    with av.open(str(sound)) as source, av.open(str(path), "w") as container:
        audio = container.add_stream_from_template(source.streams.audio[0])
        video = container.add_stream("mjpeg", rate=1, width=15000, height=15000, pix_fmt="yuvj420p")
        packet = av.Packet(picture.getvalue())
        packet.stream, packet.pts, packet.dts, packet.time_base = video, 0, 0, Fraction(1, 1)
        container.mux(packet)
        for packet in source.demux(audio=0):
            if packet.size:
                packet.stream = audio
                container.mux(packet)
    return path


def _write_sound(container, audio, sound, rate, start_s, gap) -> None:
    resampler = av.AudioResampler(format=audio.codec_context.format, layout=audio.layout, rate=rate)
    block = audio.codec_context.frame_size or 1024
    for first in range(0, sound.shape[1], block):
        samples = np.ascontiguousarray(sound[:, first : first + block].T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, format="flt", layout=audio.layout.name)
        late_s = start_s + (gap[1] if gap and first / rate >= gap[0] else 0.0)
        frame.sample_rate, frame.pts, frame.time_base = rate, first + round(late_s * rate), Fraction(1, rate)
        for converted in resampler.resample(frame):
            converted.pts, converted.time_base = frame.pts, Fraction(1, rate)
            container.mux(audio.encode(converted))
    container.mux(audio.encode(None))


def patched(path: Path, target: Path, old: bytes, new: bytes, *, after: bytes = b"", skip: int = 0) -> Path:
    """A copy of a file with some bytes replaced: the first `old`, or what lies `skip` bytes after the first `after`."""
    data = bytearray(path.read_bytes())
    at = data.index(after) + len(after) + skip if after else data.index(old)
    data[at : at + len(new)] = new
    target.write_bytes(data)
    return target
