"""Downloads from the Hugging Face hub, as local folders; only configs, safetensors and text files are fetched.

`hf-hub:owner/name` always means the hub; `owner/name` means a local folder, and if there is none, the hub, with a
warning.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from diffaudio.errors import UserError

__all__ = ["PREFIX", "fetch", "is_hub_id"]

PREFIX = "hf-hub:"

logger = logging.getLogger(__name__)


def is_hub_id(name: str | Path) -> bool:
    """Whether this can be a hub id, `owner/name` or `hf-hub:owner/name`, rather than a path."""
    if str(name).startswith(PREFIX):
        return True
    return str(name).count("/") == 1 and str(name)[:1] not in "./~" and not Path(name).parent.is_dir()


def fetch(
    name: str | Path, patterns: Sequence[str] = ("*.json", "*.safetensors", "*.txt"), **hub_settings: Any
) -> Path:
    """The local folder of a hub id, downloaded if necessary.

    Args:
        patterns: patterns of the files to download.
        hub_settings: arguments of `huggingface_hub.snapshot_download`, such as `revision`, `token`, `local_files_only`.

    Raises:
        ValueError: the hub does not have it, or cannot be reached.
    """
    hub_id = str(name).removeprefix(PREFIX)
    if hub_id == str(name):
        logger.warning("%s: there is no such folder here; asking the Hugging Face hub for it", name)
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns), **hub_settings))
    except Exception as error:  # several libraries raise errors of their own for the hub, the network or the name
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{name}: no such folder here, and the hub did not give it: {reason}") from error
