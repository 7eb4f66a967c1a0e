"""What a corpus is made of: media files, each with the stretches of it that are wanted.

A source is a media file, a folder of them, a list or manifest of them (see `lists`), or an address that fsspec opens
(see `remote`): a file, a folder or a pattern.
"""

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from diffaudio.corpus.prepare import manifests as lists
from diffaudio.corpus.prepare import remote
from diffaudio.errors import UserError
from diffaudio.media.suffixes import MEDIA_SUFFIXES

__all__ = ["Media", "Segment", "read_sources"]

LOOKED_UP = 100  # files of a list, to see whether they are where it says


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a media file.

    Attributes:
        start_s: where it begins.
        end_s: where it ends; None is the end of the file.
        caption: what it is of, where somebody says.

    Raises:
        ValueError: it ends before it begins, or begins before the file does.
    """

    start_s: float = 0.0
    end_s: float | None = None
    caption: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start_s < math.inf:
            raise UserError(f"start is {self.start_s:g}; it must be 0 seconds or more")
        if self.end_s is not None and not self.start_s < self.end_s < math.inf:
            raise UserError(f"end is {self.end_s:g}; it must be above start, which is {self.start_s:g} seconds")

    def __str__(self) -> str:
        end = "the end" if self.end_s is None else f"{self.end_s:g} s"
        return f"{self.start_s:g} s to {end}"


@dataclass(frozen=True, slots=True)
class Media:
    """One media file, the unit of work: what makes a corpus works through these in the order of their names.

    Attributes:
        name: of the source in the corpus, the same wherever it lies: the path below the folder of all sources, or the
            address of a remote file.
        path: what to open: a local path, or an address that fsspec opens.
        segments: at least one, in order of time.
    """

    name: str
    path: str
    segments: tuple[Segment, ...] = (Segment(),)


class _Wanted(NamedTuple):
    segment: Segment
    said_by: str

    def __str__(self) -> str:
        return self.said_by


class _Found(NamedTuple):
    """A file, what is wanted of it, and a folder that names are counted from (None where the file is remote)."""

    path: str
    wanted: _Wanted
    folder: str | None


WHOLE = Segment()


def read_sources(sources: Sequence[str | Path]) -> list[Media]:
    """Find the media files that `sources` name, and what is wanted of each.

    Folders are searched with everything below them for files with one of MEDIA_SUFFIXES; hidden files and folders
    are passed over. A file that is named more than once is taken once, with all the stretches that are named.

    Returns:
        In the order of their names, whatever the order of `sources`. Local files are named from the deepest folder
        in which all of them lie, with the folders searched and the folders of lists that have relative paths.

    Raises:
        ValueError: a source does not exist or cannot be read, a row of a list is wrong, stretches of a file overlap,
            or there is no media file at all.
    """
    wanted: dict[str, list[_Wanted]] = {}
    folders: set[str] = set()
    for source in sources:
        for found in _found(str(source)):
            wanted.setdefault(found.path, []).append(found.wanted)
            if found.folder is not None:
                folders.add(found.folder)
    if not wanted:
        given = ", ".join(str(source) for source in sources) or "nothing given"
        raise UserError(f"no media files found in {given}; looked for {', '.join(MEDIA_SUFFIXES)}")
    base = os.path.join(os.path.commonpath(folders), "") if folders else ""
    media = [Media(_name(path, base), path, _joined(path, rows)) for path, rows in wanted.items()]
    return sorted(media, key=lambda one: one.name)


def _found(source: str) -> Iterator[_Found]:
    if lists.is_list(source):
        yield from _listed(source)
    elif remote.is_remote(source):
        whole = _Wanted(WHOLE, source)
        yield from (_Found(address, whole, None) for address in remote.find_remote(source, MEDIA_SUFFIXES))
    elif os.path.isdir(source):
        folder, whole = os.path.abspath(source), _Wanted(WHOLE, source)
        yield from (_Found(path, whole, folder) for path in _walk(folder))
    elif os.path.isfile(source):
        path = os.path.abspath(source)
        yield _Found(path, _Wanted(WHOLE, source), os.path.dirname(path))
    else:
        raise UserError(f"{source}: there is no such file or folder")


def _walk(folder: str) -> Iterator[str]:
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(MEDIA_SUFFIXES) and not name.startswith("."):
                yield os.path.join(where, name)


def _listed(source: str) -> Iterator[_Found]:
    """What a list names; where none of the first files is there, something is wrong with all of them."""
    is_local = not remote.is_remote(source)
    if is_local and not os.path.isfile(source):
        raise UserError(f"{source}: there is no such file or folder")
    list_folder = os.path.join(os.path.dirname(os.path.abspath(source)), "")
    first: list[str] = []
    for row in lists.read_list(source):
        try:
            segment = Segment(row.start_s or 0.0, row.end_s, row.caption) if row[2:5] != (None, None, None) else WHOLE
        except ValueError as error:
            raise UserError(f"{row.place}: {error}") from error
        folder = None
        if remote.is_remote(row.path):
            remote.check_protocol(row.path)
        else:
            is_below = row.is_relative and row.path.startswith(list_folder)
            folder = list_folder if is_below else os.path.dirname(row.path)
            if row.is_relative and not is_below:
                folder = os.path.commonpath([folder, list_folder])
            if is_local and len(first) < LOOKED_UP:
                first.append(row.path)
        yield _Found(row.path, _Wanted(segment, row.place), folder)
    if first and not any(os.path.isfile(path) for path in first):
        raise UserError(
            f"{source}: of the first {len(first)} files that it names none is there, such as {first[0]}; "
            f"relative paths count from {list_folder}"
        )


def _name(path: str, base: str) -> str:
    if remote.is_remote(path):
        return path
    name = path.removeprefix(base).replace(os.sep, "/")
    return os.fsencode(name).decode("utf-8", "backslashreplace")  # names of files need not be text


def _joined(path: str, rows: list[_Wanted]) -> tuple[Segment, ...]:
    """What is wanted of one file, each stretch once, in order of time."""
    if len(rows) == 1:
        return (rows[0].segment,)
    first_said: dict[Segment, _Wanted] = {}
    for row in rows:
        first_said.setdefault(row.segment, row)
    ordered = sorted(first_said.values(), key=lambda row: (row.segment.start_s, row.segment.end_s or math.inf))
    for before, after in itertools.pairwise(ordered):
        if before.segment.end_s is None or after.segment.start_s < before.segment.end_s:
            is_same = (before.segment.start_s, before.segment.end_s) == (after.segment.start_s, after.segment.end_s)
            what = "has another caption than" if is_same else "overlaps"
            raise UserError(
                f"{path}: {after.segment} ({after}) {what} {before.segment} ({before}); name each stretch once"
            )
    return tuple(row.segment for row in ordered)
