"""How an adapter and its strength are written: FOLDER, or FOLDER::STRENGTH. Without torch, so that a command checks it.

adapters/birds          as it was trained
adapters/birds::0.7     at 0.7 of its strength
owner/name::-1          from the hub, the other way round
"""

import math

from diffaudio.errors import UserError

__all__ = ["check_strength", "parse_adapter"]

SEPARATOR = "::"


def parse_adapter(text: str) -> tuple[str, float]:
    """Folder or hub id, and strength, which is 1 where none is named.

    Raises:
        UserError: there is no name, or what follows `::` is no number, not finite or 0.
    """
    place, separator, number = text.rpartition(SEPARATOR)
    if not separator:
        place, number = text, "1"
    if not place.strip():
        raise UserError(f"lora {text!r}: names no adapter; write FOLDER or FOLDER{SEPARATOR}STRENGTH")
    try:
        strength = float(number)
    except ValueError:
        raise UserError(
            f"lora {text!r}: {number!r} is no number; write FOLDER{SEPARATOR}STRENGTH, such as {place}{SEPARATOR}0.7"
        ) from None
    check_strength(strength, f"lora {place}")
    return place, strength


def check_strength(strength: float, name: str) -> None:
    """Reject a strength that is not finite, or that would have no effect.

    Raises:
        UserError: see above.
    """
    if not math.isfinite(strength):
        raise UserError(f"{name}: strength is {strength}; give a number, 1 is as trained")
    if strength == 0:
        raise UserError(f"{name}: strength 0 has no effect; leave the adapter out")
