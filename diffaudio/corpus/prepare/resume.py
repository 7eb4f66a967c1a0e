"""Resuming a corpus: checks that settings, file names and segments are those of the run that started it."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffaudio.corpus import store
from diffaudio.corpus.prepare.settings import PrepareSettings
from diffaudio.corpus.prepare.sources import Media
from diffaudio.errors import UserError

__all__ = ["Notes", "check_settings", "check_sources", "digest"]

Notes = dict[Path, dict[str, Any]]  # of all parts, in order


def check_settings(manifest: dict[str, Any], settings: PrepareSettings, out: Path) -> None:
    """Check that the corpus in `out` was started with these settings and in this format.

    Raises:
        ValueError: the settings or the format differ.
    """
    version = store.FORMATS["clips"][1]
    if manifest["version"] < version:
        raise UserError(
            f"{out}: was made by an older diffaudio (version {manifest['version']} of the format, now {version}); "
            "it stays readable, but new clips have to go to another folder"
        )
    before = manifest["settings"]
    changed = [f"{k} was {before.get(k)}, now {v}" for k, v in asdict(settings).items() if before.get(k) != v]
    if changed:
        raise UserError(
            f"{out}: was prepared with other settings ({'; '.join(changed)}); use the same, or write to another folder"
        )


def check_sources(media: Sequence[Media], notes: Notes) -> None:
    """Check that the finished parts hold the segments that are requested now of their sources.

    Raises:
        ValueError: other segments or captions are requested, or the same files would be added again under new names.
    """
    by_name = {one.name: one for one in media}
    for part, note in notes.items():
        again = [by_name[name] for name in note["sources"] if name in by_name]
        if len(again) == len(note["sources"]) and digest(again) != note["wanted"]:
            raise UserError(
                f"{part}: was made when other stretches or captions of its sources were wanted, such as of "
                f"{again[0].name}; write to another folder, or delete this file to have it made again"
            )
    done = {name for note in notes.values() for name in note["sources"]}
    _check_names(set(by_name), done)


def digest(media: Sequence[Media]) -> str:
    """A hash of the segments and captions that are requested of some files."""
    wanted = [[one.name, *((s.start_s, s.end_s, s.caption) for s in one.segments)] for one in media]
    return hashlib.blake2b(json.dumps(wanted).encode(), digest_size=8).hexdigest()


def _check_names(names: set[str], done: set[str]) -> None:
    """Names are relative to the folder that contains all sources, so one more folder can rename all files."""
    if not names.isdisjoint(done):
        return
    longer = ((tail, name) for name in names for tail in _tails(name) if tail in done)
    shorter = ((name, tail) for name in done for tail in _tails(name) if tail in names)
    before, now = min(itertools.chain(longer, shorter), default=(None, None))
    if before is not None:
        raise UserError(
            f"these sources give files new names, such as {now} to what the corpus has as {before}, and all would be "
            "taken twice; name the sources as before, and new ones inside their folder, or write to another folder"
        )


def _tails(name: str) -> Iterator[str]:
    """`a/b/c` -> `b/c`, `c`"""
    while "/" in name:
        name = name.partition("/")[2]
        yield name
