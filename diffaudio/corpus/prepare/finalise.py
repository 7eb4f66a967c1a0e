"""The end of `prepare`: duplicates are dropped, and the corpus is summed up in its manifest, card and lists."""

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
    """The totals of a corpus after `prepare`.

    Attributes:
        sources: number of media files examined.
        media_seconds: their total duration, as far as it is known.
        clips: number of clips to train on.
        seconds: their total duration.
        rejected: number of clips that are kept although a filter rejects them.
        dropped: number of files and clips that were dropped, or kept as rejected, as in dropped.csv.
        reasons: their number by reason.
        not_looked_at: number of files within the sources that were skipped, as in not_looked_at.csv.
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
    """Drop duplicates, sum up the parts, and write the files that describe the corpus, the manifest last.

    Args:
        notes: notes of all parts, in order; they are updated.
        is_new: whether there are clips that have not been searched for duplicates.
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
    """List the files skipped in this run or an earlier one, except those examined since.

    Returns:
        The number of rows.
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
