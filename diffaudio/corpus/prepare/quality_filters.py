"""What makes a clip useless for training: no audible sound, clipped sound, frames that show nothing.

    x   waveform [channels, samples] float32 as decoded, before mixing, resampling or scaling

Three checks, of a file's header, of a clip's audio and of its frames, return None or why it is to be dropped: the
reason (a word) and the detail (a sentence with the number that led to it). The defaults let every honest recording
pass, however quiet or loud, and photographs under sound. Nothing here needs torch: what prepares a corpus stays small.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from diffaudio.corpus.prepare.bandwidth import cutoff_hz
from diffaudio.errors import UserError
from diffaudio.media.container import MediaInfo

__all__ = [
    "DropReason",
    "FilterSettings",
    "check_audio",
    "check_frames",
    "check_header",
    "is_black",
    "loudest_level_db",
]

DropReason = tuple[str, str]  # reason, detail

WINDOW_S = 0.1  # the level of a clip is that of its loudest window of this length
FULL_SCALE = 0.95  # lossy codecs ripple around the level at which the sound was clipped
BLACK_PART = 0.01  # of a frame's pixels may be bright in a black frame


@dataclass(frozen=True)
class FilterSettings:
    """Thresholds of the filters.

    Attributes:
        min_sample_rate: a file is dropped when the sample rate of its sound is lower, in Hz.
        min_length_ratio: a file is dropped when the shorter of sound and picture is a smaller part of the longer one
            (0 to 1); 0 lets everything pass.
        max_peak: a clip is damaged when a sample lies beyond. Decoded AAC and MP3 reach 2 or so.
        min_level_db: a clip is silent when its loudest tenth of a second is below (RMS, dB below full scale).
        max_clipped_fraction: a clip is clipped when a larger share of its samples is at full scale.
        min_bandwidth: a clip is upsampled when its spectrum breaks off below this part of what its sample rate
            promises (0 to 1); telephone sound at 44.1 kHz does at 0.2. 0 lets everything pass.
        min_brightness: a picture is black when 99 % of it is darker (0 black, 1 white).
        min_motion: a clip is frozen when no picture differs from the next by as much (mean over the pixels, 0 to 1).
            0, the default, lets still pictures pass: a photograph shows what sounds as well; 0.002 takes them out.
        max_duplicate_distance: a clip is a duplicate when its fingerprint differs by no more from that of a clip of
            another source (0 equal, 0.5 unrelated; see `duplicates`); None keeps duplicates.
    """

    min_sample_rate: int = 8000
    min_length_ratio: float = 0.25
    max_peak: float = 16.0
    min_level_db: float = -60.0
    max_clipped_fraction: float = 0.12
    min_bandwidth: float = 0.22
    min_brightness: float = 0.1
    min_motion: float = 0.0
    max_duplicate_distance: float | None = 0.15

    def __post_init__(self) -> None:
        for name in ("min_length_ratio", "max_clipped_fraction", "min_bandwidth", "min_brightness", "min_motion"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")
        if self.min_sample_rate < 0:
            raise UserError(f"min_sample_rate is {self.min_sample_rate}; it must be at least 0")
        if not self.max_peak >= 1:
            raise UserError(f"max_peak is {self.max_peak}; it must be at least 1, which is full scale")
        if not self.min_level_db <= 0:
            raise UserError(f"min_level_db is {self.min_level_db}; it must be at most 0, which is full scale")
        if self.max_duplicate_distance is not None and not 0 <= self.max_duplicate_distance <= 0.25:
            raise UserError(
                f"max_duplicate_distance is {self.max_duplicate_distance}; it must be from 0 to 0.25, "
                "or None to keep duplicates"
            )


def check_header(info: MediaInfo, settings: FilterSettings) -> DropReason | None:
    """Reasons no_sound, no_picture, low_sample_rate, length_mismatch; what the header does not say passes."""
    if not info.has_audio:
        return "no_sound", _missing("sound", info.unknown_audio_codec)
    if not info.has_video:
        return "no_picture", _missing("picture", info.unknown_video_codec)
    if info.sample_rate is not None and info.sample_rate < settings.min_sample_rate:
        return "low_sample_rate", f"sound at {info.sample_rate} Hz, below {settings.min_sample_rate} Hz"
    sound_s, picture_s = info.audio_duration_s, info.video_duration_s
    if sound_s and picture_s and min(sound_s, picture_s) < settings.min_length_ratio * max(sound_s, picture_s):
        return "length_mismatch", (
            f"{sound_s:.2f} s of sound and {picture_s:.2f} s of pictures, "
            f"the shorter below {settings.min_length_ratio:.0%} of the longer"
        )
    return None


def _missing(track: str, unknown_codec: str | None) -> str:
    if unknown_codec is None:
        return f"the file has no {track} track"
    return f"the {track} is coded as {unknown_codec}, which cannot be decoded"


def check_audio(
    x: np.ndarray, sample_rate: int, settings: FilterSettings, *, mixed: np.ndarray | None = None
) -> DropReason | None:
    """Reasons damaged, silent, clipped, upsampled.

    Args:
        x: at least one sample.
        mixed: the same sound as the clip will have it, which alone can be silent: channels can cancel out.
    """
    peak = float(max(x.max(), -x.min()))  # NaN where there is one
    if not math.isfinite(peak):
        return "damaged", "samples that are not finite"
    if peak > settings.max_peak:
        return "damaged", f"peak {peak:.3g} is far beyond full scale, above {settings.max_peak:g}"
    level_db = loudest_level_db(x if mixed is None else mixed, sample_rate)
    if level_db < settings.min_level_db:
        return "silent", f"loudest {WINDOW_S} s at {level_db:.1f} dB, below {settings.min_level_db:g} dB"
    clipped = float((np.abs(x) >= FULL_SCALE).mean(axis=1).max()) if peak >= FULL_SCALE else 0.0
    if clipped > settings.max_clipped_fraction:
        return "clipped", f"{clipped:.1%} of the samples at full scale, above {settings.max_clipped_fraction:.1%}"
    highest_hz = settings.min_bandwidth * sample_rate / 2
    cutoff = cutoff_hz(x, sample_rate, highest_hz=highest_hz)
    if cutoff is not None:
        return "upsampled", (
            f"the spectrum breaks off at {cutoff / 1000:.1f} kHz, below {settings.min_bandwidth:.0%} of the "
            f"{sample_rate / 2000:g} kHz that {sample_rate} Hz promise"
        )
    return None


def check_frames(pictures: Sequence[Image.Image], settings: FilterSettings) -> DropReason | None:
    """Reasons black (all of them are) and frozen (each looks like the next).

    Args:
        pictures: of one clip in order of time, at least one. One alone has stood all the time.
    """
    if all(is_black(picture, settings.min_brightness) for picture in pictures):
        return "black", f"all {len(pictures)} pictures are black"
    if settings.min_motion > 0:
        motion = largest_difference(pictures)
        if motion < settings.min_motion:
            return (
                "frozen",
                f"no picture differs from the next by more than {motion:.2g}, below {settings.min_motion:g}",
            )
    return None


def is_black(picture: Image.Image, min_brightness: float) -> bool:
    """Whether 99 % of a picture is darker than `min_brightness` (0 black, 1 white)."""
    counts = picture.convert("L").histogram()
    bright = sum(counts[math.ceil(255 * min_brightness) :])
    return bright <= BLACK_PART * sum(counts)


def largest_difference(pictures: Sequence[Image.Image]) -> float:
    """Of a picture from the next, as the mean over their pixels in grey (0 equal, 1 black and white)."""
    grey = [np.asarray(picture.convert("L"), np.float32) / 255 for picture in pictures]
    changes = (float(np.abs(a - b).mean()) for a, b in itertools.pairwise(grey))
    return max(changes, default=0.0)


def loudest_level_db(x: np.ndarray, sample_rate: int) -> float:
    """RMS of the loudest `WINDOW_S` of a sound [channels, samples], in dB re full scale; -120 for digital silence."""
    window = min(round(WINDOW_S * sample_rate), x.shape[-1])
    windows = x[:, : x.shape[-1] // window * window].reshape(len(x), -1, window)
    power = np.einsum("cws,cws->w", windows, windows) / (window * len(x))
    return 10 * math.log10(max(float(power.max()), 1e-12))
