"""Atomic files and folders: complete or absent, even if the process is killed or the power fails.

Data is written under a hidden name next to its target. At the end it is flushed to disk and renamed, and the
rename is flushed as well; only then is an older version deleted. The hidden name carries the process id: two writers
never share a file, and what a killed one left is removed by the next.
"""

import errno
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_file", "atomic_folder", "scratch_file"]


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a new empty folder to write to; it replaces `target` only if the block succeeds.

    Missing parent folders are created. A symbolic link is preserved: the folder that it points to is replaced.
    """
    target = target.resolve() if target.is_symlink() else target
    temporary, old = _beside(target, "part"), _beside(target, "old")
    _remove_abandoned(target)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _flush_tree(temporary)
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        _flush(target.parent)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path with the suffix of `target`; the file written there replaces it if the block succeeds.

    The folder of `target` must exist. Within another such block, for its temporary path, it is that path itself.
    """
    if target.name.startswith(".") and target.name.endswith(f".{os.getpid()}.part{target.suffix}"):
        yield target  # a hidden file beside a hidden file would outlive a kill: nobody looks for it
        return
    temporary = _beside(target, "part")
    _remove_abandoned(target)
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(target)
        _flush(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def scratch_file(target: Path) -> Iterator[Path]:
    """Yield a hidden path beside `target` for intermediate data; it is removed at the end, or by the next run."""
    beside = target.with_name(f"{target.stem}.scratch")
    temporary = _beside(beside, "part")
    _remove_abandoned(beside)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _flush_tree(folder: Path) -> None:
    for above, _, names in os.walk(folder):
        for name in names:
            _flush(Path(above, name))
        _flush(Path(above))


def _flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk.

    Raises:
        OSError: the disk is full or fails, which some file systems report only at this point.
    """
    is_folder = path.is_dir()
    if (is_folder and os.name == "nt") or path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # not universal
            raise
    finally:
        os.close(descriptor)


def _beside(target: Path, role: str) -> Path:
    return target.with_name(f".{target.stem}.{os.getpid()}.{role}{target.suffix}")


def _remove_abandoned(target: Path) -> None:
    """Remove what dead processes left next to `target`; an old version without a replacement is restored."""
    for role in ("old", "part"):
        before, after = f".{target.stem}.", f".{role}{target.suffix}"
        for path in target.parent.glob(f"{glob.escape(before)}*{glob.escape(after)}"):
            process = path.name.removeprefix(before).removesuffix(after)
            if not process.isdecimal() or _is_alive(int(process)):
                continue
            if role == "old" and not target.exists():
                path.rename(target)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _is_alive(process: int) -> bool:
    if process == os.getpid():
        return False  # a reused process id: this process has only just started
    if os.name == "nt":
        return True  # on Windows, signal 0 would interrupt the process
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
