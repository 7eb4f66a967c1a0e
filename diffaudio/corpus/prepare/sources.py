"""The sources of a corpus: media files, each with the segments to use.

A source is a media file, a folder of them, a list or manifest of them (see `manifests`), or an address that fsspec
opens (see `remote`): a file, a folder or a pattern.
"""

import contextlib
import itertools
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from diffaudio.corpus.prepare import manifests, remote
from diffaudio.errors import UserError
from diffaudio.media.file_extensions import MEDIA_SUFFIXES

__all__ = ["Media", "NotLookedAt", "Segment", "Sources", "read_sources"]

CHECKED_FILES = 100  # the first files of a list are checked to exist
UNKNOWN_SUFFIX = "its suffix is not one of a media file"


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a media file to use.

    Attributes:
        end_s: None is the end of the file.
        caption: its caption in a manifest, if there is one.

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
    """One media file, the unit of work; files are processed in the order of their names.

    Attributes:
        name: name of the source in the corpus, which does not depend on where the sources are: the path relative to
            the folder of all sources, or the address of a remote file.
        path: the file to open: a local path, or an address that fsspec opens.
        segments: at least one, in chronological order.
        existed: whether the file is known to have existed when the sources were read.
    """

    name: str
    path: str
    segments: tuple[Segment, ...] = (Segment(),)
    existed: bool = field(default=True, compare=False)


class NotLookedAt(NamedTuple):
    """A file or folder within a source that is skipped."""

    name: str
    why: str


@dataclass(frozen=True)
class Sources:
    """The result of searching the sources of a corpus.

    Attributes:
        media: in the order of their names, independent of the order of the sources.
        not_looked_at: files whose suffix is none of MEDIA_SUFFIXES, and folders that cannot be listed, by name.
    """

    media: list[Media]
    not_looked_at: list[NotLookedAt]


class _Wanted(NamedTuple):
    """A segment to use, and the source or the row of a list that names it."""

    segment: Segment
    named_by: str


class _Found(NamedTuple):
    """A file, the segment of it to use, and a folder that names are relative to (None for a remote file)."""

    path: str
    wanted: _Wanted
    folder: str | None
    is_listed: bool = False  # by a list, which may be wrong


WHOLE = Segment()


def read_sources(sources: Sequence[str | Path]) -> Sources:
    """Find the media files that `sources` name, and the segments of each to use.

    Folders are searched recursively for files with one of MEDIA_SUFFIXES; hidden files and folders are skipped.
    Symbolic links to folders are followed; a folder that can be reached in several ways is searched once, by its own
    path if that is within a source. A file that is named more than once is used once, with all segments named.

    The names of local files are relative to the deepest folder that contains all of them, the folders searched, and
    the folders of lists with relative paths.

    Raises:
        UserError: a source does not exist or cannot be read, a row of a list is invalid, segments of a file overlap,
            or there is no media file at all.
        OSError: a folder cannot be read.
    """
    wanted: dict[str, list[_Wanted]] = {}
    folders: set[str] = set()
    listed: set[str] = set()
    skipped: dict[str, str] = {}
    for found in itertools.chain(_searched(sources, skipped), *(_named(str(source), skipped) for source in sources)):
        wanted.setdefault(found.path, []).append(found.wanted)
        if found.folder is not None:
            folders.add(found.folder)
        if found.is_listed:
            listed.add(found.path)
    if not wanted:
        given = ", ".join(str(source) for source in sources) or "nothing given"
        raise UserError(f"no media files found in {given}; looked for {', '.join(MEDIA_SUFFIXES)}")
    base = os.path.join(os.path.commonpath(folders), "") if folders else ""
    missing = listed - _existing(listed)
    media = [Media(_name(path, base), path, _merged(path, rows), path not in missing) for path, rows in wanted.items()]
    passed_over = (NotLookedAt(_name(path, base), why) for path, why in skipped.items() if path not in wanted)
    return Sources(sorted(media, key=lambda one: one.name), sorted(passed_over))


def _searched(sources: Sequence[str | Path], skipped: dict[str, str]) -> Iterator[_Found]:
    """The media files in all sources that are local folders."""
    roots = {os.path.abspath(source): str(source) for source in sources if _is_local_folder(str(source))}
    for path, root in _walk(sorted(roots), skipped):
        yield _Found(path, _Wanted(WHOLE, roots[root]), root)


def _named(source: str, skipped: dict[str, str]) -> Iterator[_Found]:
    """The media files of a source that is not a local folder."""
    if _is_local_folder(source):
        return
    if manifests.is_list(source):
        yield from _listed(source)
    elif remote.is_remote(source):
        addresses, others = remote.find_remote(source, MEDIA_SUFFIXES)
        skipped.update(dict.fromkeys(others, UNKNOWN_SUFFIX))
        yield from (_Found(address, _Wanted(WHOLE, source), None) for address in addresses)
    elif os.path.isfile(source):
        path = os.path.abspath(source)
        yield _Found(path, _Wanted(WHOLE, source), os.path.dirname(path))
    else:
        raise UserError(f"{source}: there is no such file or folder")


def _is_local_folder(source: str) -> bool:
    return not manifests.is_list(source) and not remote.is_remote(source) and os.path.isdir(source)


def _walk(roots: list[str], skipped: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Media files in folders and their subfolders, each with the root from which it was found.

    Links are followed only after everything that can be reached without them: so the files found, and their paths,
    do not depend on the order of the roots, and no file is found twice.
    """
    folders = deque((root, root) for root in roots if os.path.realpath(root) == root)
    links = [(root, root) for root in roots if os.path.realpath(root) != root]
    linked_files: list[tuple[str, str]] = []
    searched: set[tuple[int, int]] = set()
    while folders or links:
        if not folders:
            links.sort(reverse=True)
            folders.append(links.pop())
        folder, root = folders.popleft()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in searched:
            continue
        searched.add((status.st_dev, status.st_ino))
        for entry in _visible_entries(folder, skipped):
            if entry.is_symlink() and not os.path.exists(entry.path):
                skipped[entry.path] = "a symbolic link to what is not there"
            elif entry.is_dir():
                (links if entry.is_symlink() else folders).append((entry.path, root))
            elif not entry.name.lower().endswith(MEDIA_SUFFIXES):
                skipped[entry.path] = UNKNOWN_SUFFIX
            elif entry.is_symlink():
                linked_files.append((entry.path, root))
            else:
                yield entry.path, root
    targets: set[str] = set()
    for path, root in sorted(linked_files):
        target = os.path.realpath(path)
        if target not in targets and not _is_found(target, searched):
            targets.add(target)
            yield path, root


def _is_found(path: str, searched: set[tuple[int, int]]) -> bool:
    """Whether the search of the folders found this file already."""
    folder, name = os.path.split(path)
    status = os.stat(folder)
    is_media = name.lower().endswith(MEDIA_SUFFIXES) and not name.startswith(".")
    return is_media and (status.st_dev, status.st_ino) in searched


def _visible_entries(folder: str, skipped: dict[str, str]) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return sorted((one for one in entries if not one.name.startswith(".")), key=lambda one: one.name)
    except PermissionError as error:
        skipped[folder] = f"the folder cannot be listed ({error.strerror})"
        return []


def _existing(paths: Iterable[str]) -> set[str]:
    """The listed files that exist. Each folder is read once, which is faster than checking every file."""
    found = set()
    for folder, group in itertools.groupby(sorted(paths, key=os.path.dirname), key=os.path.dirname):
        with contextlib.suppress(OSError):
            names = set(os.listdir(folder))
            found.update(path for path in group if os.path.basename(path) in names)
    return found


def _listed(source: str) -> Iterator[_Found]:
    """The files of a list. If none of the first ones exists, something must be wrong with all of them."""
    is_local = not remote.is_remote(source)
    if is_local and not os.path.isfile(source):
        raise UserError(f"{source}: there is no such file or folder")
    list_folder = os.path.join(os.path.dirname(os.path.abspath(source)), "")
    first: list[str] = []
    for row in manifests.read_list(source):
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
            if is_local and len(first) < CHECKED_FILES:
                first.append(row.path)
        yield _Found(row.path, _Wanted(segment, row.place), folder, is_listed=True)
    if first and not any(os.path.isfile(path) for path in first):
        raise UserError(
            f"{source}: of the first {len(first)} files that it names none is there, such as {first[0]}; "
            f"relative paths count from {list_folder}"
        )


def _name(path: str, base: str) -> str:
    """The name of a source as valid text, which file names need not be.

    Bytes that are not UTF-8 become escapes, and backslashes are doubled, so that no two files have the same name.
    """
    if remote.is_remote(path):
        return path
    name = path.removeprefix(base).replace(os.sep, "/")
    return os.fsencode(name.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")


def _merged(path: str, rows: list[_Wanted]) -> tuple[Segment, ...]:
    """The segments of one file, each once, in chronological order."""
    if len(rows) == 1:
        return (rows[0].segment,)
    by_segment: dict[Segment, _Wanted] = {}
    for row in rows:
        by_segment.setdefault(row.segment, row)
    ordered = sorted(by_segment.values(), key=lambda row: (row.segment.start_s, row.segment.end_s or math.inf))
    for before, after in itertools.pairwise(ordered):
        if before.segment.end_s is None or after.segment.start_s < before.segment.end_s:
            is_same = (before.segment.start_s, before.segment.end_s) == (after.segment.start_s, after.segment.end_s)
            what = "has another caption than" if is_same else "overlaps"
            raise UserError(
                f"{path}: {after.segment} ({after.named_by}) {what} {before.segment} ({before.named_by}); "
                "name each segment once"
            )
    return tuple(row.segment for row in ordered)
