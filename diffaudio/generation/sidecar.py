"""The JSON beside a sound: reading it, and the hashes of the files that a sound was made from."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffaudio.errors import UserError

__all__ = ["hash_of", "hashes_of", "read_sidecar"]


def read_sidecar(file: Path) -> dict[str, Any]:
    """The settings in the sidecar of a generated sound.

    Raises:
        UserError: the file is damaged, or is not the companion of a sound.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise UserError(f"{file}: is not valid JSON; remove it together with its sound") from None
    if not isinstance(found, dict) or not {"prompt", "seed"} <= found.keys():
        raise UserError(f"{file}: is not the companion of a generated sound; remove it, or write to another folder")
    return found


def hashes_of(files: Iterable[Path]) -> dict[str, str]:
    """The SHA-256 hash of each file, by its path as it was given."""
    return {str(file): hash_of(file) for file in files}


def hash_of(file: Path) -> str:
    """The SHA-256 hash of a file, as hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
