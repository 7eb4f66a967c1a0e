"""File names out of free text."""

import re

__all__ = ["slug"]


def slug(text: str) -> str:
    """A file name without suffix out of a text: its letters and digits, of any script, joined by hyphens."""
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-")[:50].strip("-") or "sound"
