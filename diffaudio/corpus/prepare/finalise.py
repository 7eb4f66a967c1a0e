"""The end of `prepare`: duplicates are dropped, the parts are added up, and the files written that describe them."""

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from diffaudio.atomic_io import atomic_file
from diffaudio.corpus import store
from diffaudio.corpus.prepare.deduplicate import drop_duplicates
from diffaudio.corpus.prepare.resume import Notes
from diffaudio.corpus.prepare.settings import PrepareSettings
from diffaudio.corpus.prepare.sources import NotLookedAt
from diffaudio.tables import csv_text, read_csv, write_csv

__all__ = ["FORMAT", "VERSION", "PrepareReport", "finish_corpus", "write_manifest"]

FORMAT, VERSION = store.FORMATS["clips"]
CARD = """\
{clips} clips ({seconds:.0f} seconds) out of {sources} media files, cut and checked by `diffaudio prepare`; {dropped}
files and clips were left out, or are kept with a `reason`. What was left out stands in dropped.csv, the settings in
manifest.json.

| column | |
| --- | --- |
| id | of the clip |
| source, start_s, duration_s | the file it was cut from, and where, in seconds |
| caption | of the source, where one was given |
| sample_rate, audio | the sound as FLAC |
| frames | as JPEG, with their times in the source in seconds |
| fingerprint | of the sound, by which duplicates are found |
| reason | why the clip would be left out, where such clips are kept |"""


@dataclass(frozen=True)
class PrepareReport:
    """What a corpus holds after `prepare`.

    Attributes:
        sources: media files looked at.
        media_seconds: of these, as far as it is known.
        clips: clips to train on.
        seconds: of sound in them.
        rejected: clips that are kept although a filter rejects them.
        dropped: files and clips that were left out or kept as rejected, as in dropped.csv.
        reasons: how many of these for each reason.
        not_looked_at: files below the sources that were passed over, as in not_looked_at.csv.
    """

    sources: int = 0
    media_seconds: float = 0.0
    clips: int = 0
    seconds: float = 0.0
    rejected: int = 0
    dropped: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    not_looked_at: int = 0


def finish_corpus(
    out: Path, settings: PrepareSettings, notes: Notes, not_looked_at: list[NotLookedAt], *, is_new: bool
) -> PrepareReport:
    """Drop duplicates, add up the parts, and write the files that describe them; the manifest comes last.

    Args:
        notes: of all parts, in order; brought up to date.
        is_new: whether there can be duplicates that were not searched for.
    """
    if is_new and settings.max_duplicate_distance is not None:
        drop_duplicates(notes, settings.max_duplicate_distance, keep=settings.keep_dropped)
    totals = {key: sum(note[key] for note in notes.values()) for key in ("clips", "rejected", "dropped")}
    reasons = Counter[str]()
    for part in notes:
        for table in store.read_dropped(part):
            reasons.update(table["reason"].to_pylist())
    report = PrepareReport(
        sources=sum(len(note["sources"]) for note in notes.values()),
        media_seconds=round(math.fsum(note["media_seconds"] for note in notes.values()), 3),
        seconds=round(math.fsum(note["seconds"] for note in notes.values()), 3),
        reasons=dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        not_looked_at=_write_not_looked_at(out, not_looked_at, {name for n in notes.values() for name in n["sources"]}),
        **totals,
    )
    store.write_dropped_csv(out, notes)
    store.write_card(out, "clips", "Sound with pictures, cut from video", CARD.format(**asdict(report)))
    write_manifest(out, settings, report, finished=True)
    return report


def _write_not_looked_at(out: Path, found: list[NotLookedAt], sources: set[str]) -> int:
    """List what was passed over, in this run or in an earlier one, and has not been looked at since.

    Returns:
        How many rows there are.
    """
    path, listed = out / "not_looked_at.csv", {csv_text(name): csv_text(why) for name, why in found}
    if path.is_file():
        with path.open("rb") as file:
            listed = {row["source"]: row["why"] for _, row in read_csv(file, str(path))[1]} | listed
    rows = [{"source": name, "why": why} for name, why in sorted(listed.items()) if name not in sources]
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        write_csv(file, ["source", "why"], rows)
    return len(rows)


def write_manifest(out: Path, settings: PrepareSettings, report: PrepareReport, *, finished: bool) -> None:
    """Write manifest.json."""
    head = {"format": FORMAT, "version": VERSION, "settings": asdict(settings)}
    store.write_manifest(out, {**head, **asdict(report), "finished": finished})
