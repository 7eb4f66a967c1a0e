"""Storage and network: room, the right to write, what the file system can do, open files, and the hub."""

import errno
import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from diffaudio.atomic_io import atomic_file
from diffaudio.doctor.findings import Finding, gigabytes

__all__ = ["check_folder", "check_hub", "check_open_files"]

MIN_FREE_BYTES = 2e9
MIN_OPEN_FILES = 1024
HUB_TIMEOUT_S = 3.0


def check_folder(folder: Path) -> Iterator[Finding]:
    """Whether corpora, runs and sounds can be written to a folder, or to where it would be made.

    A file is written, renamed and locked there, and removed again.
    """
    place = next((each for each in (folder.absolute(), *folder.absolute().parents) if each.is_dir()), Path("/"))
    free = shutil.disk_usage(place).free
    status = "ok" if free >= MIN_FREE_BYTES else "slow"
    advice = "" if status == "ok" else "a corpus takes 200 MB an hour, a training run about 1 GB; make room"
    yield Finding("disk", status, f"{gigabytes(free)} are free at {place}", advice)
    try:
        with tempfile.TemporaryDirectory(prefix=".diffaudio-doctor-", dir=place) as temporary:
            file = Path(temporary) / "file"
            with atomic_file(file) as part:
                part.write_bytes(b"x")
            yield from _check_lock(file, place)
    except OSError as error:
        advice = "choose another folder, or mend its permissions"
        yield Finding("writing", "missing", f"{place}: {error.strerror}", advice)
    else:
        yield Finding("writing", "ok", f"{place} can be written to")


def _check_lock(file: Path, place: Path) -> Iterator[Finding]:
    with file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            advice = "have only one command write to a folder at a time"
            yield Finding("locks", "slow", f"the file system at {place} has no locks", advice)


def check_open_files() -> Iterator[Finding]:
    """How many files a process may have open; a large corpus is mapped shard by shard."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < MIN_OPEN_FILES:
        yield Finding("open files", "slow", f"at most {soft} a process", f"ulimit -n {MIN_OPEN_FILES}")


def check_hub() -> Iterator[Finding]:
    """Whether the Hugging Face hub can be reached, and its cache written; neither is needed for what is local."""
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield Finding("hub", "note", "HF_HUB_OFFLINE is set: only models that are on this machine can be used")
    else:
        address = urlsplit(constants.ENDPOINT)
        host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
        try:
            socket.create_connection((host, port), timeout=HUB_TIMEOUT_S).close()
        except OSError as error:
            text = f"{host} cannot be reached ({error.strerror or type(error).__name__})"
            yield Finding("hub", "note", text, "models in folders work; name them by their path")
        else:
            yield Finding("hub", "ok", f"{host} can be reached")
    cache = Path(constants.HF_HUB_CACHE)
    existing = next(place for place in (cache.absolute(), *cache.absolute().parents) if place.exists())
    if not os.access(existing, os.W_OK):
        yield Finding("hub", "note", f"its cache {cache} cannot be written to", "set HF_HOME to a folder of yours")
