"""Names for files and metrics, made out of free text."""

import re

__all__ = ["slug"]


def slug(text: str, *, separator: str = "-", max_length: int = 50) -> str:
    """The lower-case letters and digits of a text, of any script, with `separator` for everything between them.

    Args:
        max_length: longer names are cut.

    Returns:
        "sound" where the text has neither letters nor digits.
    """
    name = re.sub(r"[\W_]+", separator, text.lower()).strip(separator)
    return name[:max_length].strip(separator) or "sound"
