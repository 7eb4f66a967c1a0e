"""Settings of sound design: what a sound is made from, beside its prompt. Without torch; times are in seconds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from diffaudio.errors import UserError

__all__ = ["DEFAULT_STRENGTH", "EditSettings", "check_edit", "check_spans", "parse_span"]

DEFAULT_STRENGTH = 0.6  # of init audio without a mask

Span = tuple[float, float]


@dataclass(frozen=True)
class EditSettings:
    """What a sound is made from.

    Attributes:
        init_audio: recording to start from, or to fill gaps in with --mask; a sound file, or a video with sound. It
            sets the duration and the level unless these are given.
        strength: how much of the recording is replaced: 0 leaves it as it is, 1 replaces it (default: 0.6, with --mask
            1).
        mask: time range START:END in seconds to generate anew; several may be given. Everything else comes back as it
            was.
        continue_audio: recording that the sound begins with.
        lead_in_audio: recording that the sound ends with.
        loop: make a sound whose end continues with its beginning.
        resamples: how often each part of the noise levels is gone through, so that what is generated fits what is kept
            (default: 1).
        variation_seed: seed of the sound to make a variation of; needs --amount.
        amount: how far a variation is from the sound that it is made of, above 0 (the same) to 1 (unrelated).
    """

    init_audio: Path | None = None
    strength: float | None = None
    mask: tuple[str, ...] = ()
    continue_audio: Path | None = None
    lead_in_audio: Path | None = None
    loop: bool = False
    resamples: int | None = None
    variation_seed: int | None = None
    amount: float | None = None

    def __post_init__(self) -> None:
        check_edit(
            init=self.init_audio is not None,
            strength=self.strength,
            spans=[parse_span(each) for each in self.mask],
            joins=[name for name, value in self._joins.items() if value is not None],
            loop=self.loop,
            resamples=self.resamples,
        )
        if (self.variation_seed is None) != (self.amount is None):
            raise UserError("a variation needs both the sound that it is made of and an amount")
        if self.amount is not None and not 0 < self.amount <= 1:
            raise UserError(f"amount is {self.amount}; choose above 0 (the same sound) to 1 (an unrelated one)")

    @property
    def _joins(self) -> dict[str, Path | None]:
        return {"continue": self.continue_audio, "lead-in": self.lead_in_audio}

    @property
    def recordings(self) -> list[Path]:
        """The files that are needed."""
        files = (self.init_audio, self.continue_audio, self.lead_in_audio)
        return [file for file in files if file is not None]


def parse_span(text: str) -> Span:
    """Parse a time range, START:END in seconds.

    Raises:
        UserError: it is not one.
    """
    start, separator, end = text.partition(":")
    try:
        return float(start), float(end if separator else "none")
    except ValueError:
        raise UserError(f"mask '{text}' is not a time range; write START:END in seconds, such as 1.5:2.2") from None


def check_spans(spans: Sequence[Span], duration_s: float | None = None) -> list[Span]:
    """The spans in order of time.

    Raises:
        UserError: a span is empty, lies outside of the sound, or overlaps another, or they cover all of it.
    """
    ordered = sorted(spans)
    for start, end in ordered:
        name = f"mask {start:g}:{end:g}"
        if not (math.isfinite(start) and math.isfinite(end) and start < end):
            raise UserError(f"{name} is empty; write START:END in seconds, the earlier time first")
        if start < 0 or (duration_s is not None and end > duration_s):
            length = "" if duration_s is None else f", which has {duration_s:g} s"
            raise UserError(f"{name} lies outside of the sound{length}")
    for (start, end), (other_start, other_end) in pairwise(ordered):
        if other_start < end:
            raise UserError(f"masks {start:g}:{end:g} and {other_start:g}:{other_end:g} overlap; join them to one")
    covered = sum(end - start for start, end in ordered)
    if duration_s is not None and ordered and covered >= duration_s - 1e-6:
        raise UserError("the masks cover the whole sound, so nothing of it would be kept; leave it out")
    return ordered


def check_edit(
    *,
    init: bool,
    strength: float | None,
    spans: Sequence[Span],
    joins: Sequence[str],
    loop: bool,
    resamples: int | None,
) -> None:
    """Check that all that is asked for has an effect and nothing contradicts.

    Args:
        init: whether there is a recording to start from.
        joins: "continue", "lead-in" or both, where the sound begins or ends with a recording.

    Raises:
        UserError: see above.
    """
    check_spans(spans)
    if strength is not None and not 0 <= strength <= 1:
        raise UserError(f"strength is {strength:g}; choose 0 (leave the sound as it is) to 1 (replace it)")
    if resamples is not None and not 1 <= resamples <= 100:
        raise UserError(f"resamples is {resamples}; choose 1 (no repetition) to 100")
    for name, is_set in (("strength", strength is not None), ("a mask", bool(spans))):
        if is_set and not init:
            raise UserError(f"{name} has no effect without init audio; name a recording")
    if init and joins:
        raise UserError(f"init audio and {joins[0]} contradict each other; choose one")
    if resamples is not None and not (spans or joins):
        raise UserError("resamples has no effect without a mask, continue or lead-in; leave it out")
    if loop and (spans or joins):
        raise UserError(f"loop and {'a mask' if spans else joins[0]} contradict each other; choose one")
