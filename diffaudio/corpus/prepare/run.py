"""Media files -> clips: sound with a few frames, cut, checked, and written as a Parquet corpus.

    part      `sources_per_part` media files, in the order of their names, and the clips of these
    fragment  the clips of one media file on their way into a part

Every process takes its share of the missing parts by index, and cuts their files in child processes. The rows and
bytes of a corpus do not depend on how many there are of either. Running again does what is missing; new files make
new parts, finished ones stay as they are. A part with a file that cannot be read now, for a reason that lies outside of
it, is not written: the next run tries it again.
"""

import contextlib
import itertools
import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from tqdm import tqdm

from diffaudio.corpus import store
from diffaudio.corpus.prepare.finalise import FORMAT, VERSION, PrepareReport, finish_corpus, write_manifest
from diffaudio.corpus.prepare.fragments import Fragment, remove_fragment
from diffaudio.corpus.prepare.resume import Notes, check_settings, check_sources, digest
from diffaudio.corpus.prepare.settings import PrepareSettings
from diffaudio.corpus.prepare.sources import Media, NotLookedAt, read_sources
from diffaudio.corpus.prepare.worker_pool import CutFile, WorkerLimits, cut_in_workers
from diffaudio.errors import UserError
from diffaudio.folder_lock import locked_folder

__all__ = ["UnavailableSourcesError", "prepare"]

T = TypeVar("T")

WORK, UNAVAILABLE = ".work", "unavailable.json"
PATIENCE_S = 20.0  # for the processes of a run that was killed to be gone
MAX_UNAVAILABLE = 100  # files in a row that cannot be read now, after which no more are tried


class UnavailableSourcesError(UserError):
    """Some files could not be read for reasons that lie outside of them; running again tries them again."""


@dataclass(frozen=True)
class _Job:
    """What is to be done, as the main process tells it to all.

    Attributes:
        run: a name that no other run has.
        plan: number of each part that is missing, and the files that go into it.
        is_unfinished: whether there is anything to do, if only to finish a corpus that has all its parts.
    """

    run: str
    plan: list[tuple[int, list[Media]]]
    is_unfinished: bool
    not_looked_at: list[NotLookedAt] = field(default_factory=list)


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
        UserError: a source is wrong (see `read_sources`), `out` holds something else, a corpus made with other
            settings, or one that another run is writing to.
        UnavailableSourcesError: files are left to be tried again.
        OSError: the corpus cannot be written.
    """
    settings = settings or PrepareSettings()
    index, count = (state.process_index, state.num_processes) if state else (0, 1)
    notes: Notes = {}
    with contextlib.ExitStack() as held:
        job = _on_main(state, lambda: _begin(sources, out, settings, notes, held))
        if not out.is_dir():
            raise UserError(f"{out}: is not there on all machines; name a folder that they share")
        share, work = job.plan[index::count], out / WORK / f"{job.run}-{index}"
        with tqdm(total=sum(len(media) for _, media in share), unit="file", disable=not progress) as bar:
            _make_parts(out, share, settings, num_workers, limits, work, bar)
        if state:
            state.wait_for_everyone()
        return _on_main(state, lambda: _finish(out, settings, job, notes))


def _on_main(state: Any, task: Callable[[], T]) -> T:
    """Have the main process do something, and all know what came of it, be it an error."""
    if state is None:
        return task()
    from accelerate.utils import broadcast_object_list

    outcome: Any = None
    if state.is_main_process:
        try:
            outcome = task()
        except (UserError, OSError) as error:
            outcome = error
    (outcome,) = broadcast_object_list([outcome])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _begin(
    sources: Sequence[str | Path], out: Path, settings: PrepareSettings, notes: Notes, held: contextlib.ExitStack
) -> _Job:
    """Make the folder, or check that the corpus there goes with these settings and sources; find out what is missing.

    Args:
        notes: filled with those of the finished parts.
        held: takes the lock of the folder.
    """
    found = read_sources(sources)
    if not (out / "manifest.json").is_file():
        store.make_folder(out)
    held.enter_context(locked_folder(out, "diffaudio prepare", patience_s=PATIENCE_S))
    held.callback(shutil.rmtree, out / WORK, ignore_errors=True)
    _clear(out)
    is_finished = False
    if (out / "manifest.json").is_file():
        manifest = store.read_manifest(out, FORMAT, VERSION)
        check_settings(manifest, settings, out)
        is_finished = manifest["finished"]
    notes |= {part: store.read_note(part) for part in store.part_files(out, "clips")}
    check_sources(found.media, notes)
    done = {name for note in notes.values() for name in note["sources"]}
    missing = [one for one in found.media if one.name not in done]
    unused = (index for index in itertools.count() if store.part_path(out, "clips", index) not in notes)
    size = settings.sources_per_part
    plan = [(next(unused), missing[first : first + size]) for first in range(0, len(missing), size)]
    is_unfinished = bool(plan) or not is_finished
    if is_unfinished:
        write_manifest(out, settings, PrepareReport(), finished=False)
    return _Job(secrets.token_hex(4), plan, is_unfinished, found.not_looked_at)


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
    """Cut the files of a process's parts without a pause between parts, and join the fragments of each.

    What could not be read is written down in `work`, for the main process to report.
    """
    media = [one for _, part in share for one in part]
    if not media:
        return
    unavailable: list[dict[str, str]] = []
    cut: Any = cut_in_workers(media, settings, num_workers=min(num_workers, len(media)), folder=work, limits=limits)
    with contextlib.closing(cut):
        in_a_row = 0
        for index, part in share:
            files: list[CutFile] = []
            for file in itertools.islice(cut, len(part)):
                files.append(file)
                in_a_row = in_a_row + 1 if file.unavailable else 0
                if in_a_row == MAX_UNAVAILABLE:
                    break
                bar.update()
            missing = [{"source": file.media.name, "why": file.unavailable} for file in files if file.unavailable]
            unavailable += missing
            if not missing:
                _join(store.part_path(out, "clips", index), part, [file.fragment for file in files])
            for file in files:
                remove_fragment(file.fragment)
            if in_a_row == MAX_UNAVAILABLE:
                break
    (work / UNAVAILABLE).write_text(json.dumps(unavailable), encoding="utf-8")


def _join(part: Path, media: list[Media], paths: list[Path]) -> None:
    """Write a part, and before it what was dropped, out of the fragments of its files."""
    fragments = [Fragment.read(path) for path in paths]
    note: dict[str, Any] = {
        "sources": [one.name for one in media],
        "wanted": digest(media),
        "dropped": store.write_dropped(part, [fragment.dropped for fragment in fragments]),
        "media_seconds": sum(fragment.media_seconds for fragment in fragments),
        "clips": 0,
        "seconds": 0.0,
        "rejected": 0,
    }

    def tables() -> Iterator[pa.Table]:
        for fragment in fragments:
            seconds = fragment.clips.filter(fragment.clips["reason"].is_null())["duration_s"].to_pylist()
            note["clips"] += len(seconds)
            note["seconds"] += sum(seconds)
            note["rejected"] += fragment.clips.num_rows - len(seconds)
            yield fragment.clips

    store.write_tables(part, tables(), note)


def _finish(out: Path, settings: PrepareSettings, job: _Job, notes: Notes) -> PrepareReport:
    _check_complete(out, job)
    notes = {part: notes.get(part) or store.read_note(part) for part in store.part_files(out, "clips")}
    return finish_corpus(out, settings, notes, job.not_looked_at, is_new=job.is_unfinished)


def _check_complete(out: Path, job: _Job) -> None:
    """Raise an error where a part was not written, be it because of files that cannot be read now."""
    lacking = [index for index, _ in job.plan if not store.part_path(out, "clips", index).exists()]
    if not lacking:
        return
    unavailable = [
        one for path in (out / WORK).glob(f"{job.run}-*/{UNAVAILABLE}") for one in json.loads(path.read_text())
    ]
    if not unavailable:
        name = store.part_path(out, "clips", lacking[0]).name
        raise UserError(f"{out}: {name} is not there, though it was written; run the same command again")
    first = min(unavailable, key=lambda one: one["source"])
    raise UnavailableSourcesError(
        f"{out}: {len(lacking)} of {len(job.plan)} parts are left to be tried again, for {len(unavailable)} files "
        f"cannot be read now, such as {first['source']} ({first['why']}); run the same command again when they can be "
        "read, or take them out of the sources"
    )
