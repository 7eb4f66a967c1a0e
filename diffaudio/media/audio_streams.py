"""Sound files as streams of NumPy arrays, in bounded memory.

Formats of libsndfile (WAV, FLAC, Ogg) are read in this process, without relying on the length in their headers. All
others, and files that libsndfile fails to read, are decoded by FFmpeg in a child process; so are chained Ogg files, of
which libsndfile reads only the first link.
"""

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from diffaudio.media.audio_numpy import mix_channels
from diffaudio.media.container import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, MediaError, check_is_file
from diffaudio.media.subprocess_decoding import decode

__all__ = ["stream_audio"]

DIRECT_SUFFIXES = (".wav", ".flac", ".ogg")
BLOCK_VALUES = 1 << 20  # samples that are read at once, of all channels together
OGG_PAGE = re.compile(rb"OggS\x00[\x00\x01\x04\x05]")  # any page but the first of a stream
OGG_FIRST_PAGE = re.compile(rb"OggS\x00[\x02\x03\x06\x07]")
UNKNOWN_LENGTH = 1 << 62  # libsndfile's value for a header without a length


def stream_audio(
    path: Path, *, start_s: float = 0.0, duration_s: float | None = None, channels: int | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """The sound of any file, in consecutive chunks.

    Args:
        start_s: start time.
        duration_s: duration to read; None reads to the end. Fewer samples are yielded if the sound ends earlier.
        channels: 1 or 2 to mix to mono or stereo; None keeps the channels.

    Yields:
        The sample rate in Hz, and [channels, samples] float32; at least one chunk, which may be empty. Without
        `channels`, the number of channels changes from chunk to chunk where it changes in the file.

    Raises:
        MediaError: the file does not exist, has no sound, or cannot be read.
    """
    check_is_file(path)
    if path.suffix.lower() not in DIRECT_SUFFIXES or _is_chained_ogg(path):
        yield from _with_ffmpeg(path, start_s, duration_s, channels)
        return
    num_read, rate = 0, 0
    try:
        for rate, x in _with_soundfile(path, start_s, duration_s):
            yield rate, mix_channels(x, channels) if channels else x
            num_read += x.shape[1]
        return
    except soundfile.SoundFileError as error:
        reason = error
    read_s = num_read / rate if rate else 0.0
    try:
        yield from _with_ffmpeg(path, start_s + read_s, duration_s and duration_s - read_s, channels)
    except MediaError as error:
        if not num_read:  # otherwise the sound ends where the damage begins
            raise MediaError(f"{path}: cannot be read as a sound file ({reason})") from error


def _is_chained_ogg(path: Path) -> bool:
    """Whether one stream follows another, as in the recording of a radio stream (RFC 3533, section 4)."""
    if path.suffix.lower() != ".ogg" or not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        page = OGG_PAGE.search(content)
        return page is not None and OGG_FIRST_PAGE.search(content, page.end()) is not None


def _with_soundfile(path: Path, start_s: float, duration_s: float | None) -> Iterator[tuple[int, np.ndarray]]:
    with soundfile.SoundFile(path) as file:
        rate = file.samplerate
        if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
            raise MediaError(
                f"{path}: claims a sample rate of {rate} Hz; {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz can be read"
            )
        if not 0 < file.frames < UNKNOWN_LENGTH and path.suffix.lower() == ".flac":
            raise soundfile.SoundFileRuntimeError("its header does not say how long it is")
        file.seek(min(round(start_s * rate), file.frames))
        remaining = file.frames if duration_s is None else round(duration_s * rate)
        block = max(1, BLOCK_VALUES // file.channels)
        num_read = 0
        while remaining > 0 and len(x := file.read(min(remaining, block), dtype="float32", always_2d=True)):
            remaining -= len(x)
            num_read += len(x)
            yield rate, x.T.copy()
        if not num_read:
            yield rate, np.zeros((file.channels, 0), np.float32)


def _with_ffmpeg(
    path: Path, start_s: float, duration_s: float | None, channels: int | None
) -> Iterator[tuple[int, np.ndarray]]:
    arguments = {"start_s": start_s, "duration_s": duration_s, "channels": channels}
    for rate, (x,) in decode("audio", path, **arguments):
        yield rate, x
