"""What makes a clip useless for training: no sound to speak of, overloaded sound, pictures that show nothing.

    x   waveform [channels, samples] float32 as decoded, before mixing, resampling or scaling

Three judges look at a file's header, at the sound of a clip and at its pictures; each returns None, or the reason
(a word) and the detail (a sentence with the number that condemned it). The defaults let every honest recording pass,
however quiet or loud. Nothing here needs torch: what prepares a corpus stays small.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from diffaudio.video import MediaInfo

__all__ = ["FilterSettings", "Verdict", "is_black", "judge_file", "judge_pictures", "judge_sound", "loudest_level_db"]

Verdict = tuple[str, str]  # reason, detail

WINDOW_S = 0.1  # a clip counts as loud as its loudest stretch of this length
FULL_SCALE = 0.95  # lossy codecs ripple around the level at which a sound was clipped
CREDIBLE_PEAK = 16.0  # decoded AAC and MP3 reach 2 or so; far beyond, it is noise from damaged bytes


@dataclass(frozen=True)
class FilterSettings:
    """Thresholds of the filters.

    Attributes:
        min_level_db: a clip is silent when its loudest tenth of a second is below (RMS, dB below full scale).
        max_clipped_fraction: a clip is overloaded when more of its samples stand at full scale.
        min_brightness: a picture is black when 99 % of it is darker (0 black, 1 white).
        max_duplicate_distance: a clip is a duplicate when its fingerprint differs by no more from that of a clip of
            another source (0 equal, 0.5 unrelated; see `duplicates`); None keeps duplicates.
    """

    min_level_db: float = -60.0
    max_clipped_fraction: float = 0.12
    min_brightness: float = 0.1
    max_duplicate_distance: float | None = 0.2


def judge_file(info: MediaInfo, settings: FilterSettings) -> Verdict | None:
    """Reasons no_sound, no_picture."""
    if not info.has_audio:
        return "no_sound", "the file has no sound track"
    if not info.has_video:
        return "no_picture", "the file has no picture track"
    return None


def judge_sound(x: np.ndarray, sample_rate: int, settings: FilterSettings) -> Verdict | None:
    """Reasons damaged, silent, clipped.

    Args:
        x: at least one sample.
    """
    checks = (
        ("damaged", _damaged(x)),
        ("silent", _silent(x, sample_rate, settings.min_level_db)),
        ("clipped", _clipped(x, settings.max_clipped_fraction)),
    )
    return next(((reason, detail) for reason, detail in checks if detail), None)


def judge_pictures(pictures: Sequence[Image.Image], settings: FilterSettings) -> Verdict | None:
    """Reason black: all of them are.

    Args:
        pictures: of one clip, at least one.
    """
    if all(is_black(picture, settings.min_brightness) for picture in pictures):
        return "black", f"all {len(pictures)} pictures are black"
    return None


def is_black(picture: Image.Image, min_brightness: float) -> bool:
    """Whether 99 % of a picture is darker than `min_brightness` (0 black, 1 white)."""
    return float(np.percentile(np.asarray(picture.convert("L")), 99)) < 255 * min_brightness


def loudest_level_db(x: np.ndarray, sample_rate: int) -> float:
    """RMS of the loudest `WINDOW_S` of a sound, in dB below full scale; -120 for digital silence."""
    window = min(round(WINDOW_S * sample_rate), x.shape[-1])
    power = np.square(x, dtype=np.float64).mean(axis=0)
    loudest = power[: len(power) // window * window].reshape(-1, window).mean(axis=1).max()
    return 10 * float(np.log10(max(loudest, 1e-12)))


def _silent(x: np.ndarray, sample_rate: int, min_level_db: float) -> str | None:
    level_db = loudest_level_db(x, sample_rate)
    return f"loudest {WINDOW_S} s at {level_db:.1f} dB, below {min_level_db:g} dB" if level_db < min_level_db else None


def _clipped(x: np.ndarray, max_fraction: float) -> str | None:
    """Drums and gunshots that touch full scale do so in a few samples of a hundred."""
    fraction = float((np.abs(x) >= FULL_SCALE).mean(axis=1).max())
    return f"{fraction:.1%} of the samples at full scale, above {max_fraction:.1%}" if fraction > max_fraction else None


def _damaged(x: np.ndarray) -> str | None:
    """Whether the samples are none that a recording can have: not finite, or far beyond full scale."""
    peak = float(np.abs(x).max())
    if not np.isfinite(peak):
        return "samples that are not finite"
    return f"peak {peak:.3g} is far beyond full scale" if peak > CREDIBLE_PEAK else None
