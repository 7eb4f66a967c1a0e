"""One writer per folder: a lock that commands hold on the folder they write to.

The lock is flock(2) on the file `.lock` in that folder. The file is never removed: a process waiting for a lock on
a file that is unlinked and recreated would end up with a second, independent lock. The file names the process that
holds the lock, so that a waiting process can report which one that is. The kernel releases the lock
when that process ends, however it ends.
"""

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from diffaudio.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no flock
    fcntl = None

__all__ = ["LOCK_NAME", "FolderLockedError", "locked_folder"]

LOCK_NAME = ".lock"
RETRY_S = 0.1
NOT_SUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # some network file systems are mounted without locks


class FolderLockedError(UserError):
    """Another process is writing to the folder."""


@contextlib.contextmanager
def locked_folder(folder: Path, command: str, *, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of a folder while the block runs.

    Processes that share the work of one command take the lock once, in their main process. On file systems without
    locks, nothing is locked.

    Args:
        folder: created if missing.
        command: name of this process's command, reported to other processes: "diffaudio prepare".
        patience_s: how long to wait for another process to release the lock; one that was just killed may take a
            while to exit.

    Raises:
        FolderLockedError: another process (or another block of this one) holds the lock; the message names it.
        OSError: the folder cannot be created or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_NAME
    # O_NOFOLLOW: a symbolic link planted in the folder must not cause another file to be overwritten.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        until_s = time.monotonic() + patience_s
        while not _try_lock(descriptor):
            if time.monotonic() >= until_s:
                raise FolderLockedError(
                    f"{folder}: {_describe_holder(descriptor)} is writing to this folder; wait until it has ended, "
                    "end it, or name another folder"
                )
            time.sleep(RETRY_S)
        _write_holder(descriptor, command)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
            if fcntl is not None:  # explicitly: a forked child may have inherited the descriptor
                with contextlib.suppress(OSError):
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
    return True


def _write_holder(descriptor: int, command: str) -> None:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    holder = {"command": command, "pid": os.getpid(), "host": socket.gethostname(), "since": since}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _describe_holder(descriptor: int) -> str:
    """The holder of the lock, if the file names it: the file is empty for a moment after the lock is taken."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        command, pid, host, since = (holder[key] for key in ("command", "pid", "host", "since"))
        return f"`{command}`, process {int(pid)} on {host}, started {since},"
    except (ValueError, TypeError, KeyError):
        return "another process"
