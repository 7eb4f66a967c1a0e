"""What makes a clip useless for training: no sound to speak of, overloaded sound, pictures that show nothing.

Each filter looks at one clip and returns None, or a sentence with the number that condemned it. The thresholds
are fields of `prepare.PrepareSettings`; their defaults let every honest recording pass, however quiet or loud.
"""

import numpy as np
from PIL import Image
from torch import Tensor

__all__ = ["clipped_sound", "damaged_sound", "is_black", "silent_sound"]

WINDOW_S = 0.1  # a clip counts as loud as its loudest stretch of this length
FULL_SCALE = 0.95  # lossy codecs ripple around the level at which a sound was clipped
CREDIBLE_PEAK = 16.0  # decoded AAC and MP3 reach 2 or so; far beyond, it is noise from damaged bytes


def silent_sound(waveform: Tensor, sample_rate: int, *, min_level_db: float) -> str | None:
    """Whether even the loudest tenth of a second lies below `min_level_db` (RMS, dB below full scale).

    Args:
        waveform: [channels, samples], at least one sample.
    """
    window = min(round(WINDOW_S * sample_rate), waveform.shape[-1])
    power = waveform.double().square().mean(dim=0)
    loudest = power[: power.numel() // window * window].reshape(-1, window).mean(dim=1).max()
    level_db = 10 * float(loudest.clamp_min(1e-12).log10())
    return f"loudest {WINDOW_S} s at {level_db:.1f} dB, below {min_level_db:g} dB" if level_db < min_level_db else None


def clipped_sound(waveform: Tensor, *, max_fraction: float) -> str | None:
    """Whether more than `max_fraction` of the samples of some channel stand at full scale.

    Drums and gunshots that touch full scale do so in a few samples of a hundred.

    Args:
        waveform: [channels, samples] as decoded, before mixing, resampling or scaling.
    """
    fraction = float((waveform.abs() >= FULL_SCALE).double().mean(dim=1).max())
    return f"{fraction:.1%} of the samples at full scale, above {max_fraction:.1%}" if fraction > max_fraction else None


def damaged_sound(waveform: Tensor) -> str | None:
    """Whether the samples are none that a recording can have: not finite, or far beyond full scale."""
    if not waveform.isfinite().all():
        return "samples that are not finite"
    peak = float(waveform.abs().max())
    return f"peak {peak:.3g} is far beyond full scale" if peak > CREDIBLE_PEAK else None


def is_black(picture: Image.Image, *, min_brightness: float) -> bool:
    """Whether 99 % of a picture is darker than `min_brightness` (0 black, 1 white)."""
    return float(np.percentile(np.asarray(picture.convert("L")), 99)) < 255 * min_brightness
