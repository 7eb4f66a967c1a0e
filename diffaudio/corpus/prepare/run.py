"""Media files -> clips: sound with a few pictures, cut, checked, and written as a Parquet corpus.

    part      `sources_per_part` media files, in the order of their names, and the clips of these
    fragment  the clips of one media file on their way into a part

Every process takes its share of the missing parts by index, and cuts their files in child processes. The rows and
bytes of a corpus do not depend on how many there are of either. Running again does what is missing; new files make
new parts, finished ones stay as they are.
"""

import contextlib
import itertools
import math
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from tqdm import tqdm

from diffaudio.atomic_io import locked
from diffaudio.corpus import store
from diffaudio.corpus.prepare.deduplicate import drop_duplicates
from diffaudio.corpus.prepare.fragments import read_fragment
from diffaudio.corpus.prepare.resume import Notes, check_settings, check_sources, digest
from diffaudio.corpus.prepare.settings import PrepareSettings
from diffaudio.corpus.prepare.sources import Media, read_sources
from diffaudio.corpus.prepare.worker_pool import WorkerLimits, cut_in_workers
from diffaudio.errors import UserError

__all__ = ["FORMAT", "VERSION", "PrepareReport", "PrepareSettings", "prepare"]

T = TypeVar("T")

FORMAT, VERSION = store.FORMATS["clips"]
WORK, LOCK = ".work", ".lock"
PATIENCE_S = 20.0  # for the processes of a run that was killed to be gone
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
| frames | pictures as JPEG, with their times in the source in seconds |
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
    """

    sources: int = 0
    media_seconds: float = 0.0
    clips: int = 0
    seconds: float = 0.0
    rejected: int = 0
    dropped: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    """What is to do, as the main process tells it to all.

    Attributes:
        run: a name that no other run has.
        plan: number of each part that is missing, and the files that go into it.
        is_new: whether the corpus has to be finished, be it that all parts are there.
    """

    run: str
    plan: list[tuple[int, list[Media]]]
    is_new: bool


def prepare(
    sources: Sequence[str | Path],
    out: Path,
    settings: PrepareSettings | None = None,
    *,
    num_workers: int = 1,
    limits: WorkerLimits | None = None,
    state: Any = None,
    progress: bool = True,
) -> PrepareReport:
    """Cut media files into clips and write them as a corpus; files that cannot be used go to dropped.csv.

    Args:
        sources: files, folders, lists, manifests and addresses; see `sources.read_sources`.
        out: folder of the corpus, made where it is missing; a corpus begun there is continued.
        num_workers: child processes that cut, of each process.
        limits: what a file may cost.
        state: `accelerate.PartialState` where several processes were launched to share the work.
        progress: show a progress bar.

    Returns:
        What the corpus holds, the same on all processes.

    Raises:
        ValueError: a source is wrong (see `read_sources`), `out` holds something else, a corpus made with other
            settings, or one that another run is writing to.
    """
    settings = settings or PrepareSettings()
    index, count = (state.process_index, state.num_processes) if state else (0, 1)
    notes: Notes = {}
    with contextlib.ExitStack() as held:
        job = _told(state, lambda: _begin(sources, out, settings, notes, held))
        if not out.is_dir():
            raise UserError(f"{out}: is not there on all machines; name a folder that they share")
        share, work = job.plan[index::count], out / WORK / f"{job.run}-{index}"
        with tqdm(total=sum(len(media) for _, media in share), unit="file", disable=not progress) as bar:
            _make_parts(out, share, settings, num_workers, limits, work, bar)
        if state:
            state.wait_for_everyone()
        return _told(state, lambda: _finish(out, settings, job, notes))


def _told(state: Any, main_does: Callable[[], T]) -> T:
    """Have the main process do something, and all know what came of it, be it an error."""
    if state is None:
        return main_does()
    from accelerate.utils import broadcast_object_list

    outcome: Any = None
    if state.is_main_process:
        try:
            outcome = main_does()
        except (ValueError, OSError) as error:
            outcome = ValueError(str(error))
    (outcome,) = broadcast_object_list([outcome])
    if isinstance(outcome, ValueError):
        raise outcome
    return outcome


def _begin(
    sources: Sequence[str | Path], out: Path, settings: PrepareSettings, notes: Notes, held: contextlib.ExitStack
) -> _Job:
    """Make the folder, or see that the corpus there goes with these settings and sources; find out what is missing."""
    media = read_sources(sources)
    if not (out / "manifest.json").is_file():
        store.make_folder(out)
    if not held.enter_context(locked(out / LOCK, PATIENCE_S)):
        raise UserError(f"{out}: another run is writing to this corpus; wait until it has ended, or end it")
    held.callback(shutil.rmtree, out / WORK, ignore_errors=True)
    _clear(out)
    is_finished = False
    if (out / "manifest.json").is_file():
        manifest = store.read_manifest(out, FORMAT, VERSION)
        check_settings(manifest, settings, out)
        is_finished = manifest["finished"]
    notes |= {part: store.read_note(part) for part in store.part_files(out, "clips")}
    check_sources(media, notes)
    done = {name for note in notes.values() for name in note["sources"]}
    missing = [one for one in media if one.name not in done]
    free = (index for index in itertools.count() if store.part_path(out, "clips", index) not in notes)
    size = settings.sources_per_part
    plan = [(next(free), missing[first : first + size]) for first in range(0, len(missing), size)]
    is_new = bool(plan) or not is_finished
    if is_new:
        _write_manifest(out, settings, PrepareReport(), finished=False)
    return _Job(secrets.token_hex(4), plan, is_new)


def _clear(out: Path) -> None:
    """Remove what a killed run left."""
    shutil.rmtree(out / WORK, ignore_errors=True)
    for path in out.glob(".*.part.*"):
        path.unlink()


def _make_parts(
    out: Path,
    share: list[tuple[int, list[Media]]],
    settings: PrepareSettings,
    num_workers: int,
    limits: WorkerLimits | None,
    work: Path,
    bar: Any,
) -> None:
    """Cut the files of a process's parts without a pause between parts, and join the fragments of each."""
    media = [one for _, part in share for one in part]
    if not media:
        return
    cut: Any = cut_in_workers(media, settings, num_workers=min(num_workers, len(media)), folder=work, limits=limits)
    with contextlib.closing(cut):
        for index, part in share:
            fragments = []
            for _, fragment in itertools.islice(cut, len(part)):
                fragments.append(fragment)
                bar.update()
            _join(store.part_path(out, "clips", index), part, fragments)
            for fragment in fragments:
                fragment.unlink()


def _join(path: Path, media: list[Media], fragments: list[Path]) -> None:
    """Write a part out of the fragments of its files."""
    read = [read_fragment(fragment) for fragment in fragments]
    notes = [note for _, note in read]
    note: dict[str, Any] = {
        "sources": [one.name for one in media],
        "wanted": digest(media),
        "dropped": 0,
        "media_seconds": sum(each["media_seconds"] for each in notes),
        "clips": 0,
        "seconds": 0.0,
        "rejected": 0,
    }

    def tables() -> Iterator[pa.Table]:
        for table, _ in read:
            seconds = table.filter(table["reason"].is_null())["duration_s"].to_pylist()
            note["clips"] += len(seconds)
            note["seconds"] += sum(seconds)
            note["rejected"] += len(table) - len(seconds)
            yield table

    dropped = pa.Table.from_pylist([row for each in notes for row in each["dropped"]], store.DROPPED_SCHEMA)
    note["dropped"] = store.write_dropped(path, [dropped])
    store.write_tables(path, tables(), note)


def _finish(out: Path, settings: PrepareSettings, job: _Job, notes: Notes) -> PrepareReport:
    """Drop duplicates, add up the parts, and write what tells of them; the manifest comes last."""
    lacking = [path for path in (store.part_path(out, "clips", index) for index, _ in job.plan) if not path.exists()]
    if lacking:
        raise UserError(f"{out}: {lacking[0].name} is not there, though it was written; run the same command again")
    notes = {part: notes.get(part) or store.read_note(part) for part in store.part_files(out, "clips")}
    if job.is_new and settings.max_duplicate_distance is not None:
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
        **totals,
    )
    store.write_dropped_csv(out, notes)
    store.write_card(out, "clips", "Sound with pictures, cut from video", CARD.format(**asdict(report)))
    _write_manifest(out, settings, report, finished=True)
    return report


def _write_manifest(out: Path, settings: PrepareSettings, report: PrepareReport, *, finished: bool) -> None:
    head = {"format": FORMAT, "version": VERSION, "settings": asdict(settings)}
    store.write_manifest(out, {**head, **asdict(report), "finished": finished})
