"""A folder of sound files, without pictures and without preparation, as clips to train an autoencoder on.

Sounds are cut into windows of ten seconds. `diffaudio prepare` does more: it drops duplicates and bad recordings, goes
on where it was stopped, and shares the work. Its corpora are recognised by their manifest.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffaudio.errors import UserError
from diffaudio.media.audio_streams import stream_audio
from diffaudio.media.container import MediaError
from diffaudio.media.file_extensions import MEDIA_SUFFIXES

__all__ = ["SOUND_SUFFIXES", "is_sound_folder", "read_windows", "sound_files"]

SOUND_SUFFIXES = (".aac", ".aif", ".aiff", ".flac", ".mp3", ".oga", ".opus", ".wav", ".wma", *MEDIA_SUFFIXES)
WINDOW_S, MIN_WINDOW_S = 10.0, 0.5
SILENCE = 1e-4  # -80 dB; a window whose samples all lie below teaches nothing

logger = logging.getLogger(__name__)


def is_sound_folder(folder: Path) -> bool:
    """Whether a folder holds sound files, and is no corpus."""
    return folder.is_dir() and not (folder / "manifest.json").exists() and next(_find(folder), None) is not None


def sound_files(folder: Path) -> list[Path]:
    """All sound files of a folder and of those in it, in order; hidden ones are passed over.

    Raises:
        UserError: there are none.
    """
    found = sorted(_find(folder))
    if not found:
        raise UserError(f"{folder}: holds no sound; looked for {', '.join(SOUND_SUFFIXES)}")
    return found


def _find(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in SOUND_SUFFIXES and path.is_file() and not is_hidden:
            yield path


def read_windows(path: Path) -> Iterator[tuple[float, Tensor, int]]:
    """The windows of a file that hold sound.

    A file that cannot be read, or only in part, is warned about.

    Yields:
        Start in seconds, waveform [channels, samples] and sample rate.
    """
    pieces: list[np.ndarray] = []
    size = start = rate = 0
    try:
        for rate, piece in stream_audio(path):
            pieces.append(piece)
            size += piece.shape[1]
            window = round(WINDOW_S * rate)
            while size >= window:
                joined = np.concatenate(pieces, axis=1)
                pieces, size = [joined[:, window:]], size - window
                yield from _window(joined[:, :window], start, rate)
                start += window
    except (MediaError, OSError) as error:
        logger.warning("%s: is left out from %.1f s on: %s", path, start / max(rate, 1), error)
        return
    if size:
        yield from _window(np.concatenate(pieces, axis=1), start, rate)


def _window(samples: np.ndarray, start: int, rate: int) -> Iterator[tuple[float, Tensor, int]]:
    if samples.shape[1] >= MIN_WINDOW_S * rate and np.isfinite(samples).all() and np.abs(samples).max() >= SILENCE:
        yield start / rate, torch.from_numpy(np.ascontiguousarray(samples)).float(), rate
