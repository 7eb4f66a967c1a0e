"""Prompts in time and layers, as they are written: without torch, so that a command checks them at once.

rain @0-8, thunder @5-9     prompts with the seconds in which they are to sound; one sound
thunder::-6dB               a layer and its gain; 0 dB where none is given
"""

import math
import re
from dataclasses import dataclass

from diffaudio.diffusion.settings import check_prompt
from diffaudio.errors import UserError

__all__ = ["Layer", "TimedPrompt", "check_timeline", "join_timed", "parse_layer", "parse_timeline"]

_NUMBER = r"\d+(?:\.\d+)?"
_RANGE = re.compile(rf"@\s*({_NUMBER})\s*-\s*({_NUMBER})\s*(?:[,;]\s*|$)")
_GAIN = re.compile(r"^\s*([+-]?\d+(?:\.\d+)?)\s*(?:dB)?\s*$", re.IGNORECASE)
MAX_GAIN_DB = 60.0


@dataclass(frozen=True)
class TimedPrompt:
    """A text, and the range of seconds in which it is to sound."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Layer:
    """A text that is generated as a sound of its own, and its gain against the sound that it is mixed with."""

    text: str
    gain_db: float


def parse_timeline(prompt: str) -> list[TimedPrompt] | None:
    """The timed prompts in a text; None where it has no time range.

    Raises:
        UserError: a prompt has no text or no range, or a range is empty.
    """
    timed, end = list[TimedPrompt](), 0
    for match in _RANGE.finditer(prompt):
        text = prompt[end : match.start()].strip()
        start_s, end_s = float(match[1]), float(match[2])
        check_prompt(text)
        if not start_s < end_s:
            raise UserError(f"'{text}': the time range {start_s:g}-{end_s:g} is empty; give the earlier time first")
        timed.append(TimedPrompt(text, start_s, end_s))
        end = match.end()
    rest = prompt[end:].strip()
    if timed and rest:
        raise UserError(f"'{rest}' has no time range; write '{rest} @START-END', in seconds")
    return timed or None


def join_timed(prompts: list[str]) -> list[str]:
    """Prompts of a command line: those with time ranges become one, which `parse_timeline` takes apart again.

    Raises:
        UserError: some have a time range and others do not.
    """
    timed = [parse_timeline(prompt) is not None for prompt in prompts]
    if not any(timed):
        return prompts
    if not all(timed):
        lacking = prompts[timed.index(False)]
        raise UserError(f"'{lacking}' has no time range and another prompt has; write '{lacking} @START-END'")
    return [", ".join(prompt.strip(" ,;") for prompt in prompts)]


def check_timeline(timed: list[TimedPrompt], duration_s: float) -> None:
    """Check that prompts lie in the sound.

    Raises:
        UserError: one ends after the sound.
    """
    for each in timed:
        if each.end_s > duration_s:
            raise UserError(
                f"'{each.text}' ends at {each.end_s:g} s and the sound at {duration_s:g} s; give a longer --duration"
            )


def parse_layer(argument: str) -> Layer:
    """Parse "text::gain", the gain in dB, or "text" with a gain of 0 dB.

    Raises:
        UserError: the text is empty, or the gain is not a number of dB from -60 to 60.
    """
    text, separator, gain = argument.rpartition("::")
    if not separator:
        text, gain = argument, "0"
    match = _GAIN.match(gain)
    gain_db = float(match[1]) if match else math.nan
    if not abs(gain_db) <= MAX_GAIN_DB:
        raise UserError(
            f"'{argument}': the gain '{gain}' is not a number from -{MAX_GAIN_DB:g} to {MAX_GAIN_DB:g} dB; "
            "write the layer such as 'thunder::-6dB'"
        )
    check_prompt(text.strip(), "layer")
    return Layer(text.strip(), gain_db)
