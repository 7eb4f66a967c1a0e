"""Free text made into names for files and metrics, and shortened for messages."""

import re

__all__ = ["shorten", "slug"]


def slug(text: str, *, separator: str = "-", max_length: int = 50) -> str:
    """The lower-case letters and digits of a text, of any script, with `separator` for everything between them.

    Args:
        max_length: longer names are cut.

    Returns:
        "sound" where the text has neither letters nor digits.
    """
    name = re.sub(r"[\W_]+", separator, text.lower()).strip(separator)
    return name[:max_length].strip(separator) or "sound"


def shorten(text: str, max_length: int = 80) -> str:
    """A text of any length as one short line, for a message or a title; an ellipsis stands for what is cut off."""
    line = " ".join(text[: 4 * max_length].split())
    return line if len(line) <= max_length and len(text) <= 4 * max_length else f"{line[: max_length - 1]}…"
