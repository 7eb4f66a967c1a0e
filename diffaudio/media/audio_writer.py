"""Sound files written from a stream of any length, whole or not at all, by libsndfile."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from diffaudio.atomic_io import atomic_file
from diffaudio.errors import UserError
from diffaudio.media.audio_formats import FORMATS, check_format

__all__ = ["write_stream"]

BLOCK = 16384  # samples of a channel that are written at once; libsndfile's Vorbis overflows the stack on long ones
MAX_WAV_BYTES = 2**32 - 2**16  # a WAV file has 32 bits for its length


def write_stream(path: Path, chunks: Iterable[np.ndarray], sample_rate: int, *, bit_depth: int | None = None) -> int:
    """Write a sound file. Samples outside [-1, 1] are clipped, except in floating point.

    Args:
        chunks: [channels, samples] float32 each, at least one.
        bit_depth: of `FORMATS`; None is the format's default.

    Returns:
        The number of samples of each channel.

    Raises:
        UserError: see `check_format`; or the sound is too long for a WAV file.
        OSError: the disk is full, or cannot be written; libsndfile itself would lose the error of the last block.
    """
    check_format(path, bit_depth=bit_depth, sample_rate=sample_rate)
    form = FORMATS[path.suffix.lower()]
    subtype = form.subtypes[bit_depth] if bit_depth is not None else next(iter(form.subtypes.values()))
    stream = iter(chunks)
    chunk = next(stream)
    max_samples = MAX_WAV_BYTES // (len(chunk) * ((bit_depth or 16) // 8)) if form.name == "WAV" else None
    count = 0
    with atomic_file(path) as temporary, temporary.open("wb+", buffering=0) as raw:
        checked: Any = _Checked(raw)
        try:
            with soundfile.SoundFile(checked, "w", sample_rate, len(chunk), format=form.name, subtype=subtype) as file:
                while chunk is not None and checked.error is None:
                    count += chunk.shape[1]
                    if max_samples is not None and count > max_samples:
                        raise UserError(f"{path}: a .wav file holds up to 4 GB, and this sound is longer; choose .flac")
                    samples = (chunk if subtype == "FLOAT" else np.clip(chunk, -1, 1)).T
                    for start in range(0, len(samples), BLOCK):
                        file.write(samples[start : start + BLOCK])
                    chunk = next(stream, None)
        except (soundfile.SoundFileError, AssertionError) as error:  # what follows from a failed write
            raise checked.error or error from error
        if checked.error:
            raise checked.error
    return count


class _Checked:
    """A file for libsndfile that keeps the first error of writing, which would be lost in its callbacks."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.error: OSError | None = None
        self.seek, self.tell, self.read, self.readinto = raw.seek, raw.tell, raw.read, raw.readinto

    def write(self, data: bytes) -> int:
        view, written = memoryview(data), 0
        while written < len(view) and self.error is None:
            try:
                written += self._raw.write(view[written:])
            except OSError as error:
                self.error = error
        return written
