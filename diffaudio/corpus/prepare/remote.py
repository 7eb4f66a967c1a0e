"""Files elsewhere, by addresses that fsspec opens: `s3://bucket/a.mp4`, `memory://…`, `zip://a.mp4::videos.zip`."""

import contextlib
import functools
import glob
import posixpath
import re
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

from diffaudio.errors import UserError

__all__ = ["check_protocol", "find_remote", "is_remote", "open_anywhere", "path_beside"]

T = TypeVar("T")

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::.*://)")


def is_remote(source: str) -> bool:
    """Whether this is an address, and no local path (not even one that begins with a drive's letter)."""
    return ADDRESS.match(source) is not None


def check_protocol(address: str) -> None:
    """See that there is what reads such addresses.

    Raises:
        ValueError: the protocol is not known, or a package is missing that reads it.
    """
    _check_protocol(re.split("::|://", address, maxsplit=1)[0])


def find_remote(address: str, suffixes: tuple[str, ...]) -> list[str]:
    """The files at an address: itself, those below a folder, or those that match a pattern.

    Args:
        suffixes: of the files that are looked for; a file that is named itself may have any.

    Raises:
        ValueError: nothing is there, it cannot be read, or a package is missing that reads such addresses.
    """
    _, *beyond = address.split("::")  # of zip://*.mp4::s3://bucket/videos.zip only the first part is looked through

    def find() -> list[str]:
        import fsspec

        files, path = fsspec.url_to_fs(address)
        if files.isfile(path):  # first, for the addresses of the web may hold a question mark
            found = [path]
        elif glob.has_magic(path):
            found = [name for name in files.glob(path) if name.lower().endswith(suffixes)]
        else:
            found = [name for name in files.find(path) if _is_wanted(name.removeprefix(path), suffixes)]
            if not found and not files.exists(path):
                raise FileNotFoundError("there is no such file or folder")
        return ["::".join([files.unstrip_protocol(name), *beyond]) for name in found]

    return _tried(address, find)


@contextlib.contextmanager
def open_anywhere(source: str, mode: str = "rb") -> Iterator[IO[Any]]:
    """Open a local file, or the one at an address.

    Raises:
        ValueError: the address cannot be read, or a package is missing that reads such.
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
    """`path` counted from the folder of the file at an address."""
    first, *beyond = address.split("::")
    protocol, _, place = first.partition("://")
    return "::".join([f"{protocol}://{posixpath.normpath(posixpath.join(posixpath.dirname(place), path))}", *beyond])


@functools.lru_cache
def _check_protocol(protocol: str) -> None:
    import fsspec

    _tried(f"{protocol}://", lambda: fsspec.get_filesystem_class(protocol))


def _is_wanted(path: str, suffixes: tuple[str, ...]) -> bool:
    return path.lower().endswith(suffixes) and not any(part.startswith(".") for part in path.split("/"))


def _tried(address: str, attempt: Callable[[], T]) -> T:
    try:
        return attempt()
    except ImportError as error:
        raise UserError(f"{address}: a package is missing that reads such addresses ({error})") from error
    except Exception as error:  # each protocol has errors of its own
        detail = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{address}: cannot be read ({detail})") from error
