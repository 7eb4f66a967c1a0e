"""Settings of the file that a sound is written to; without torch."""

import math
from dataclasses import dataclass

from diffaudio.errors import UserError

__all__ = ["FileSettings"]

MIN_RATE, MAX_RATE = 4000, 384_000
BIT_DEPTHS = (16, 24, 32)


@dataclass(frozen=True)
class FileSettings:
    """How a sound is written to its file, whose suffix decides the format.

    Attributes:
        sample_rate: in Hz, to resample to (default: the model's).
        bit_depth: 16, 24, or 32 for floating point, of .wav and .flac files (default: 16).
        fade_in: seconds in which the sound fades in from silence.
        fade_out: seconds in which it fades out.
    """

    sample_rate: int | None = None
    bit_depth: int | None = None
    fade_in: float = 0.0
    fade_out: float = 0.0

    def __post_init__(self) -> None:
        if self.sample_rate is not None and not MIN_RATE <= self.sample_rate <= MAX_RATE:
            raise UserError(f"sample rate is {self.sample_rate}; choose {MIN_RATE} to {MAX_RATE} Hz")
        if self.bit_depth is not None and self.bit_depth not in BIT_DEPTHS:
            raise UserError(f"bit depth is {self.bit_depth}; choose from {', '.join(map(str, BIT_DEPTHS))}")
        for name, value in (("fade-in", self.fade_in), ("fade-out", self.fade_out)):
            if not 0 <= value < math.inf:
                raise UserError(f"{name} is {value}; choose 0 (none) or more seconds")

    def check_duration(self, duration_s: float) -> None:
        """Check that the fades fit into a sound.

        Raises:
            UserError: they do not.
        """
        if self.fade_in + self.fade_out > duration_s:
            raise UserError(
                f"a fade-in of {self.fade_in:g} s and a fade-out of {self.fade_out:g} s do not fit into "
                f"{duration_s:g} s; shorten them"
            )
