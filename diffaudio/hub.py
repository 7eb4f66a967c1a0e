"""What the Hugging Face hub has under a name, as a local folder. Only configs, safetensors and texts are fetched."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from diffaudio.errors import UserError

__all__ = ["fetch", "is_hub_id"]


def is_hub_id(name: str | Path) -> bool:
    """Whether this can be a hub id, `owner/name`, and is no path."""
    return str(name).count("/") == 1 and str(name)[0] not in "./~" and not Path(name).parent.is_dir()


def fetch(
    name: str | Path, patterns: Sequence[str] = ("*.json", "*.safetensors", "*.txt"), **hub_settings: Any
) -> Path:
    """The local folder of a hub id.

    Args:
        patterns: of the files that are wanted.
        hub_settings: of `huggingface_hub.snapshot_download`, such as `revision`, `token`, `local_files_only`.

    Raises:
        ValueError: the hub does not have it, or is out of reach.
    """
    try:
        return Path(snapshot_download(str(name), allow_patterns=list(patterns), **hub_settings))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{name}: no such folder here, and the hub did not give it: {reason}") from error
