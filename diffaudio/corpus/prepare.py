"""Media files -> clips: sound with a few pictures, cut, checked, and written as a Parquet corpus.

Parts take the sources in the order of their names, `sources_per_part` each. Running again does what is missing;
new files in the folders make new parts, finished ones stay as they are.
"""

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffaudio.corpus import store
from diffaudio.corpus.cut import PrepareSettings, cut_clips
from diffaudio.corpus.sources import Media

__all__ = ["MEDIA_SUFFIXES", "PrepareReport", "PrepareSettings", "find_media", "prepare"]

FORMAT, VERSION = "diffaudio-clips", 2
MEDIA_SUFFIXES = (
    *(".3gp", ".asf", ".avi", ".f4v", ".flv", ".m2ts", ".m4a", ".m4v", ".mka", ".mkv", ".mov"),
    *(".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogg", ".ogv", ".ts", ".webm", ".wmv"),
)


@dataclass(frozen=True)
class PrepareReport:
    """What a corpus holds after `prepare`.

    Attributes:
        sources: media files looked at.
        clips: clips kept.
        seconds: of sound kept.
        dropped: files and clips left out, as in dropped.csv.
        reasons: how many of these for each reason.
    """

    sources: int
    clips: int
    seconds: float
    dropped: int
    reasons: dict[str, int] = field(default_factory=dict)


def prepare(
    sources: list[Path], out: Path, settings: PrepareSettings | None = None, *, progress: bool = True
) -> PrepareReport:
    """Cut media files into clips and write them as a corpus; files that cannot be used go to dropped.csv.

    Args:
        sources: files, and folders that are searched for media files with everything below them.
        out: folder of the corpus, made where it is missing; a corpus begun there is continued.
        progress: show a progress bar.

    Raises:
        ValueError: a source does not exist, no media file was found, `out` holds something else, or a corpus made
            with other settings.
    """
    settings = settings or PrepareSettings()
    base, media = find_media(sources)
    _begin(out, settings)
    done = {source for part in store.part_files(out, "clips") for source in store.read_note(part)["sources"]}
    names = [source for source in media if source not in done]
    if names:
        _write_manifest(out, settings, PrepareReport(0, 0, 0.0, 0), finished=False)
    free = (index for index in itertools.count() if not store.part_path(out, "clips", index).exists())
    with tqdm(total=len(media), initial=len(media) - len(names), unit="file", disable=not progress) as bar:
        for first in range(0, len(names), settings.sources_per_part):
            part_sources = names[first : first + settings.sources_per_part]
            note: dict[str, Any] = {"sources": part_sources, "dropped": []}
            rows = _part_rows(base, part_sources, settings, note["dropped"], bar)
            store.write_part(store.part_path(out, "clips", next(free)), "clips", rows, note)
    return _finish(out, settings)


def find_media(sources: list[Path]) -> tuple[Path, list[str]]:
    """Find the media files among `sources` and in the folders among them.

    Returns:
        The folder that holds them all, and their paths relative to it, in order.

    Raises:
        ValueError: a source does not exist, or no media file was found.
    """
    folders, files = [], set[Path]()
    for source in sources:
        path = Path(source).absolute()
        if path.is_dir():
            folders.append(path)
            found = (p for p in path.rglob("*") if p.suffix.lower() in MEDIA_SUFFIXES and not p.name.startswith("."))
            files.update(p for p in found if p.is_file())
        elif path.is_file():
            folders.append(path.parent)
            files.add(path)
        else:
            raise ValueError(f"{source}: there is no such file or folder")
    if not files:
        given = ", ".join(str(s) for s in sources) or "nothing given"
        raise ValueError(f"no media files found in {given}; looked for {', '.join(MEDIA_SUFFIXES)}")
    base = Path(os.path.commonpath(folders))
    return base, sorted(path.relative_to(base).as_posix() for path in files)


def _begin(out: Path, settings: PrepareSettings) -> None:
    """Make the folder, or see that the corpus there goes with these settings."""
    if (out / "manifest.json").is_file():
        before = store.read_manifest(out, FORMAT, VERSION)["settings"]
        changed = [f"{k} was {before.get(k)}, now {v}" for k, v in asdict(settings).items() if before.get(k) != v]
        if changed:
            raise ValueError(
                f"{out}: was prepared with other settings ({'; '.join(changed)}); "
                "use the same, or write to another folder"
            )
    else:
        store.make_folder(out)


def _finish(out: Path, settings: PrepareSettings) -> PrepareReport:
    """Add up the parts, and write dropped.csv and the final manifest."""
    parts = store.part_files(out, "clips")
    notes = [store.read_note(part) for part in parts]
    dropped = [row for note in notes for row in note["dropped"]]
    counts = [store.count_rows(part) for part in parts]
    report = PrepareReport(
        sources=sum(len(note["sources"]) for note in notes),
        clips=sum(clips for clips, _ in counts),
        seconds=sum(seconds for _, seconds in counts),
        dropped=len(dropped),
        reasons=dict(Counter(row["reason"] for row in dropped).most_common()),
    )
    store.write_dropped(out, dropped)
    _write_manifest(out, settings, report, finished=True)
    return report


def _write_manifest(out: Path, settings: PrepareSettings, report: PrepareReport, *, finished: bool) -> None:
    totals = {"clips": report.clips, "seconds": round(report.seconds, 3), "dropped": report.dropped}
    head = {"format": FORMAT, "version": VERSION, "settings": asdict(settings)}
    store.write_manifest(out, {**head, **totals, "finished": finished})


def _part_rows(
    base: Path, sources: list[str], settings: PrepareSettings, dropped: list[dict[str, Any]], bar: Any
) -> Iterator[dict[str, Any]]:
    for source in sources:
        yield from cut_clips(Media(source, str(base / source)), settings, dropped)
        bar.update()
