"""Recordings, their reconstruction and generated sounds of every kind, side by side: files, a table and a page.

The folder holds

    recordings/     some recordings of each kind, at the model's sample rate
    round_trip/     the same, encoded and decoded by the model's autoencoder
    generated/      what the model generates from the kind's name
    kinds.json      how many of each are recognised
    kinds.md        the same as a table for a model's card
    index.html      a page to listen
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffaudio import pages
from diffaudio.atomic_io import atomic_file
from diffaudio.errors import UserError
from diffaudio.evaluation.embed import AudioEmbeddings
from diffaudio.evaluation.page import recognised_as
from diffaudio.evaluation.recognition import by_kind, is_recognised, markdown_table
from diffaudio.evaluation.reconstruction import round_trip
from diffaudio.evaluation.sound_files import SoundFile, Texts, read_sounds
from diffaudio.evaluation.table import seeded_generator
from diffaudio.file_names import slug
from diffaudio.media.audio import write_audio
from diffaudio.models.autoencoders.base import Autoencoder

__all__ = ["COLUMNS", "SoundSet", "choose_recordings", "file_of", "write_recordings", "write_results"]

COLUMNS = {"recordings": "recordings", "round_trip": "after the round trip", "generated": "generated"}


@dataclass(frozen=True)
class SoundSet:
    """One column: its sounds, embedded, and their files."""

    embedded: AudioEmbeddings
    files: list[Path]


def choose_recordings(files: Sequence[SoundFile], per_kind: int, *, seed: int) -> list[SoundFile]:
    """At most `per_kind` recordings of each label at random, in order of their labels.

    Raises:
        ValueError: none has a label.
    """
    order = torch.randperm(len(files), generator=seeded_generator(seed, "kinds")).tolist()
    found: dict[str, list[SoundFile]] = {}
    for index in order:
        label = files[index].texts.label
        if label is not None and len(found.setdefault(label, [])) < per_kind:
            found[label].append(files[index])
    if not found:
        raise UserError(
            "no recording has a label; name a file of labels with --labels, or put NAME.json beside NAME.wav"
        )
    return [file for label in sorted(found) for file in found[label]]


def file_of(folder: Path, column: str, kind: str, number: int) -> Path:
    """The file of a kind's sound number `number`, from 1 on."""
    return folder / column / f"{slug(kind)}-{number}.wav"


def write_recordings(
    chosen: Sequence[SoundFile], autoencoder: Autoencoder, folder: Path
) -> tuple[list[SoundFile], list[SoundFile]]:
    """Write the recordings as the autoencoder gets them, and their reconstruction.

    Returns:
        The files of both.
    """
    recordings, reconstructed, numbers = [], [], dict.fromkeys((file.texts.label for file in chosen), 0)
    for sound in read_sounds(chosen):
        assert sound.label is not None
        numbers[sound.label] += 1
        original, waveform = round_trip(autoencoder, sound.waveform, sound.sample_rate)
        for column, files, x in (("recordings", recordings, original), ("round_trip", reconstructed, waveform)):
            path = file_of(folder, column, sound.label, numbers[sound.label])
            path.parent.mkdir(parents=True, exist_ok=True)
            write_audio(path, x / x.abs().amax().clamp(min=1.0), autoencoder.sample_rate)
            files.append(SoundFile(path, f"{column}/{path.stem}", Texts(label=sound.label)))
    return recordings, reconstructed


def write_results(folder: Path, sets: dict[str, SoundSet], backbone: str, facts: dict[str, Any]) -> str:
    """Write kinds.json, kinds.md and the page.

    Args:
        sets: by a key of `COLUMNS`.
        backbone: name of the classifier that counts.
        facts: about the model and the evaluation, for all three.

    Returns:
        The table.
    """
    found = {column: by_kind(each.embedded, backbone) for column, each in sets.items()}
    kinds = sorted({kind for counts in found.values() for kind in counts})
    if not kinds:
        raise UserError(f"{backbone} knows none of the kinds; label the recordings with kinds that it knows")
    table = markdown_table({COLUMNS[column]: counts for column, counts in found.items()}, kinds)
    counts = {kind: {column: vars(found[column][kind]) for column in found if kind in found[column]} for kind in kinds}
    _write(folder / "kinds.json", json.dumps(facts | {"kinds": counts}, indent=1, ensure_ascii=False) + "\n")
    _write(folder / "kinds.md", table)
    data = {
        "title": f"{facts['model']}, kind by kind",
        "facts": facts,
        "columns": [{"name": column, "title": COLUMNS[column]} for column in sets],
        "kinds": [{"name": kind, "counts": counts[kind]} for kind in kinds],
        "sounds": [each for column, of_column in sets.items() for each in _sounds(folder, column, of_column, backbone)],
    }
    pages.write_page(folder / "index.html", "kinds", data)
    return table


def _sounds(folder: Path, column: str, sounds: SoundSet, backbone: str) -> Iterator[dict[str, Any]]:
    right, recognised = is_recognised(sounds.embedded, backbone), recognised_as(sounds.embedded)
    for index, file in enumerate(sounds.files):
        kind = sounds.embedded.wanted()[index]
        yield {
            "address": pages.address(file, folder),
            "title": f"{kind} – {COLUMNS[column]}: {recognised[index]}",
            "kind": kind,
            "column": column,
            "recognised": recognised[index],
            "right": right[index],
        }


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
