"""The sounds to evaluate: folders, sidecars, a file of labels.

A folder may hold sound files and videos, also in subfolders. What a sound should be is written in

    NAME.json beside NAME.wav    its entries `prompt` and `label`, as `diffaudio generate` writes the first
    a CSV for the whole folder   columns `file` (with or without suffix), and `prompt` or `label` or both; it wins
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from diffaudio.errors import UserError
from diffaudio.evaluation.embed import Sound
from diffaudio.media.audio import read_audio
from diffaudio.media.file_extensions import MEDIA_SUFFIXES
from diffaudio.tables import read_csv

__all__ = ["SUFFIXES", "SoundFile", "Texts", "find_sounds", "read_sounds", "read_texts"]

SUFFIXES = (".aac", ".aif", ".aiff", ".flac", ".mp3", ".opus", ".wav", ".wma", *MEDIA_SUFFIXES)


@dataclass(frozen=True)
class Texts:
    """What a sound should be."""

    prompt: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class SoundFile:
    """A file to be evaluated; `name` is its path below the folder, without suffix."""

    path: Path
    name: str
    texts: Texts


def read_texts(path: Path) -> dict[str, Texts]:
    """Prompts and labels out of a CSV, by file name without suffix.

    Raises:
        ValueError: the file is missing, lacks a column, or says two things of one name.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of labels")
    found: dict[str, Texts] = {}
    with path.open("rb") as file:
        columns, rows = read_csv(file, str(path))
        if "file" not in columns or not {"label", "prompt"} & set(columns):
            named = ", ".join(sorted(columns)) or "none"
            raise UserError(f"{path}: its columns are {named}; wanted are file, and label or prompt or both")
        for number, row in rows:
            name, texts = _without_suffix(row["file"]), Texts(row.get("prompt") or None, row.get("label") or None)
            if not name:
                raise UserError(f"{path}, line {number}: names no file")
            if found.setdefault(name, texts) != texts:
                raise UserError(f"{path}, line {number}: says something else of '{name}' than a line before")
    return found


def find_sounds(folder: Path, texts: dict[str, Texts] | None = None) -> list[SoundFile]:
    """All sounds and videos of a folder, in order of their names, with what they should be.

    Args:
        texts: from `read_texts`; a file is looked up by its path below the folder, then by its own name.

    Raises:
        ValueError: there is no such folder, it holds no sound, two of one name, or a damaged sidecar.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    found: dict[str, SoundFile] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise UserError(f"{path}: has the name of {found[name].path.name}; keep one of the two")
        found[name] = SoundFile(path, name, _texts_of(path, name, texts or {}))
    if not found:
        raise UserError(f"{folder}: holds no sound; looked for {', '.join(SUFFIXES)}")
    return list(found.values())


def read_sounds(files: Sequence[SoundFile]) -> Iterator[Sound]:
    """Read sound after sound.

    Raises:
        MediaError: a file has no sound, or cannot be read.
    """
    for file in files:
        waveform, sample_rate = read_audio(file.path)
        yield Sound(waveform, sample_rate, file.name, file.texts.prompt, file.texts.label)


def _texts_of(path: Path, name: str, texts: dict[str, Texts]) -> Texts:
    listed = texts.get(name) or texts.get(path.stem)
    beside = _read_sidecar(path.with_suffix(".json"))
    if listed is None:
        return beside
    return Texts(listed.prompt or beside.prompt, listed.label or beside.label)


def _read_sidecar(path: Path) -> Texts:
    if not path.is_file():
        return Texts()
    try:
        described: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is damaged: {error}") from error
    if not isinstance(described, dict):
        return Texts()
    prompt, label = described.get("prompt"), described.get("label")
    return Texts(prompt if isinstance(prompt, str) else None, label if isinstance(label, str) else None)


def _without_suffix(file: str) -> str:
    path = PurePosixPath(file.strip())
    return (path.with_suffix("") if path.suffix.lower() in SUFFIXES else path).as_posix() if file.strip() else ""
