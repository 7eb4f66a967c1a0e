"""Failures of the place, told apart from failures of the file.

A file that is damaged stays damaged: it is dropped, and the reason recorded. A disk that fails, a share that goes away
or a file that vanishes while it is read says nothing about the file: nothing is recorded, and the next run tries again.

FFmpeg cannot tell the two apart: a read error looks like the end of the file to it, and its demuxers report damage as
an input/output error. So the file is read here too, as far as FFmpeg did not get, and what the system says of that
counts.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path

__all__ = ["SourceGuard", "SourceUnavailableError", "is_place_failure"]

BLOCK_BYTES = 1 << 20
HEAD_BYTES = 4 << 20  # of a file, and of its end, are read however far FFmpeg got: there the headers lie


class SourceUnavailableError(Exception):
    """A source cannot be read now, for a reason that lies outside of it; the message says which."""


def is_place_failure(error: OSError, path: str, *, existed: bool) -> bool:
    """Whether a local file could not be read for a reason that lies outside of it.

    Args:
        existed: whether the file was there when the run began.
    """
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return existed or not _lists_files(os.path.dirname(path))
    if isinstance(error, PermissionError):  # of one file; where its folder is closed too, the share has locked us out
        return not _lists_files(os.path.dirname(path))
    return True


def _lists_files(folder: str) -> bool:
    """A share that is not mounted leaves an empty folder, or none."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


class SourceGuard:
    """Watches a local file while FFmpeg reads it."""

    def __init__(self, path: str, *, existed: bool) -> None:
        """Open the file; one that is missing, or is no ordinary file, is not watched.

        Raises:
            SourceUnavailableError: it cannot be opened for a reason that lies outside of it.
        """
        self._path, self._existed = path, existed
        self._descriptor: int | None = None
        try:
            self._before = os.stat(path)
            if stat.S_ISREG(self._before.st_mode):  # opening a pipe would wait for its writer
                self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            self._raise_if_place_failure(error)

    def check(self, read_to: int | None, alive: Callable[[], None]) -> None:
        """Read what FFmpeg did not, to see whether it could have.

        Args:
            read_to: the byte at which FFmpeg said that the file ends; None where it was not asked to read so far.
            alive: called after each megabyte.

        Raises:
            SourceUnavailableError: the file cannot be read to its end, or is no longer what it was.
        """
        if self._descriptor is None:
            return
        size = self._before.st_size
        try:
            for start, stop in (
                (0, HEAD_BYTES),
                (size - HEAD_BYTES, size),
                (size if read_to is None else read_to, size),
            ):
                self._read(max(0, start), min(stop, size), alive)
            now = os.stat(self._path)
        except OSError as error:
            self._raise_if_place_failure(error)
            return
        if (now.st_size, now.st_mtime_ns) != (size, self._before.st_mtime_ns):
            raise SourceUnavailableError("it changed while it was read")

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def _read(self, start: int, stop: int, alive: Callable[[], None]) -> None:
        while start < stop and self._descriptor is not None:
            block = os.pread(self._descriptor, min(BLOCK_BYTES, stop - start), start)
            if not block:  # it became shorter, as its size will say
                return
            start += len(block)
            alive()

    def _raise_if_place_failure(self, error: OSError) -> None:
        if is_place_failure(error, self._path, existed=self._existed):
            folder = Path(self._path).parent
            missing = isinstance(error, FileNotFoundError) and not folder.is_dir()
            detail = f"its folder {folder} is not there" if missing else error.strerror or str(error)
            raise SourceUnavailableError(detail) from error
