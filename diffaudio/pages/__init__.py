"""Pages that show results: one HTML file each, with its style, script and data inside.

A page asks for nothing beyond its own folder, so it works from a disk, offline. NAME.html, NAME.css and NAME.js are
what is its own; frame.html, common.css and common.js what all pages share: filters, sorted tables, the player.
"""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from diffaudio.atomic_io import atomic_file

__all__ = ["address", "write_page"]


def write_page(path: Path, name: str, data: Mapping[str, Any]) -> None:
    """Write a page, whole.

    Args:
        path: of the .html file.
        name: whose parts to take: "corpus", "evaluate" or "sweep".
        data: for its script, whose first line says what it has to contain.
    """
    part = files("diffaudio.pages")
    # "<" as an escape, so that no text of the user's ends the script
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    page = (part / "frame.html").read_text(encoding="utf-8")
    for mark, replacement in (
        ("<!--BODY-->", (part / f"{name}.html").read_text(encoding="utf-8")),
        ("/*STYLE*/", _joined("css", name)),
        ("/*SCRIPT*/", _joined("js", name)),
        ("/*DATA*/", text),  # the last, as it may hold any text
    ):
        page = page.replace(mark, replacement, 1)
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def address(file: Path, folder: Path) -> str:
    """Of a file in the page's folder, as the page has to write it."""
    return quote(file.relative_to(folder).as_posix())


def _joined(suffix: str, name: str) -> str:
    part = files("diffaudio.pages")
    return "".join((part / f"{each}.{suffix}").read_text(encoding="utf-8") for each in ("common", name))
