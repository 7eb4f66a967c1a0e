"""Remote files, by addresses that fsspec opens: `s3://bucket/a.mp4`, `memory://…`, `zip://a.mp4::videos.zip`."""

import contextlib
import functools
import glob
import lzma
import posixpath
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

from diffaudio.corpus.prepare.source_guard import SourceUnavailableError
from diffaudio.errors import UserError

__all__ = [
    "TooLargeError",
    "check_protocol",
    "find_remote",
    "is_remote",
    "open_anywhere",
    "path_beside",
    "read_chunks",
]

T = TypeVar("T")

CHUNK_BYTES = 1 << 20
# Faults of the file itself, or of the archive that contains it; any other error may be temporary.
DAMAGED = (ValueError, EOFError, ImportError, NotImplementedError, zipfile.BadZipFile, tarfile.TarError, zlib.error)
DAMAGED += (lzma.LZMAError, KeyError, IsADirectoryError)
NOT_THERE = (FileNotFoundError, PermissionError)

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::.*://)")


class TooLargeError(UserError):
    """A remote file is larger than the limit."""


def is_remote(source: str) -> bool:
    """Whether this is an address rather than a local path (including one that begins with a drive letter)."""
    return ADDRESS.match(source) is not None


def check_protocol(address: str) -> None:
    """Check that the packages for this kind of address are installed.

    Raises:
        UserError: the protocol is unknown, or the package that reads it is missing.
    """
    _check_protocol(re.split("::|://", address, maxsplit=1)[0])


def find_remote(address: str, suffixes: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The files at an address: the file itself, those in a folder and its subfolders, or those matching a pattern.

    Args:
        suffixes: suffixes to search for; a file that is named explicitly may have any.

    Returns:
        Their addresses, and those of visible files with another suffix.

    Raises:
        UserError: nothing is there, it cannot be read, or the package that reads such addresses is missing.
    """
    _, *beyond = address.split("::")  # of zip://*.mp4::s3://bucket/videos.zip only the first part is searched

    def find() -> tuple[list[str], list[str]]:
        import fsspec

        files, path = fsspec.url_to_fs(address)

        def address_of(name: str) -> str:
            return "::".join([files.unstrip_protocol(name), *beyond])

        if files.isfile(path):  # checked first, since web addresses may contain a question mark
            return [address_of(path)], []
        if glob.has_magic(path):
            entries: Any = files.glob(path, detail=True)
            names = [name for name, entry in entries.items() if entry["type"] == "file"]
        else:
            names = [name for name in files.find(path) if _is_visible(name.removeprefix(path))]
            if not names and not files.exists(path):
                raise FileNotFoundError("there is no such file or folder")
        found = [address_of(name) for name in names if name.lower().endswith(suffixes)]
        return found, [address_of(name) for name in names if not name.lower().endswith(suffixes)]

    return _tried(address, find)


def read_chunks(address: str, max_bytes: int, *, existed: bool) -> Iterator[bytes]:
    """The content of the file at an address, a megabyte at a time.

    Args:
        existed: whether the file existed when the run began.

    Raises:
        SourceUnavailableError: it cannot be reached at the moment.
        TooLargeError: it is larger than `max_bytes`.
        UserError: there is no readable file at the address.
    """
    size = 0
    try:
        with open_anywhere(address) as file:
            while chunk := file.read(CHUNK_BYTES):
                size += len(chunk)
                if size > max_bytes:
                    raise TooLargeError(f"has more than the {max_bytes >> 20} MB that a remote file may have")
                yield chunk
    except TooLargeError:
        raise
    except Exception as error:  # each protocol has errors of its own
        cause = error.__cause__ if isinstance(error, UserError) and error.__cause__ else error
        if not isinstance(cause, DAMAGED) and not (isinstance(cause, NOT_THERE) and not existed):
            raise SourceUnavailableError(_one_line(cause)) from error
        raise error if isinstance(error, UserError) else _unreadable(address, error) from error


@contextlib.contextmanager
def open_anywhere(source: str, mode: str = "rb") -> Iterator[IO[Any]]:
    """Open a local file, or the one at an address.

    Raises:
        UserError: the address cannot be read, or the package that reads such addresses is missing.
        OSError: the local file cannot be read.
    """
    with contextlib.ExitStack() as closing:
        if not is_remote(source):
            yield closing.enter_context(open(source, mode))
            return

        def opened() -> IO[Any]:
            import fsspec

            file: Any = fsspec.open(source, mode)
            return closing.enter_context(file)

        yield _tried(source, opened)


def path_beside(address: str, path: str) -> str:
    """The address of `path`, which is relative to the folder of the file at `address`."""
    first, *beyond = address.split("::")
    protocol, _, place = first.partition("://")
    return "::".join([f"{protocol}://{posixpath.normpath(posixpath.join(posixpath.dirname(place), path))}", *beyond])


@functools.lru_cache
def _check_protocol(protocol: str) -> None:
    import fsspec

    _tried(f"{protocol}://", lambda: fsspec.get_filesystem_class(protocol))


def _is_visible(path: str) -> bool:
    return not any(part.startswith(".") for part in path.split("/"))


def _tried(address: str, attempt: Callable[[], T]) -> T:
    try:
        return attempt()
    except ImportError as error:
        raise UserError(f"{address}: a package is missing that reads such addresses ({error})") from error
    except Exception as error:  # each protocol has errors of its own
        raise _unreadable(address, error) from error


def _unreadable(address: str, error: BaseException) -> UserError:
    return UserError(f"{address}: cannot be read ({_one_line(error)})")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
