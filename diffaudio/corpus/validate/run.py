"""Check a corpus: every row of every part, the parts against each other, the manifest and dropped.csv.

Parts are checked independently, by several processes if asked for. What is kept of each are a few totals, and 8 bytes a
row and a source, by which duplicates are found.
"""

import contextlib
import csv
import multiprocessing
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diffaudio.corpus import latent_shards, store
from diffaudio.corpus.snapshot import Corpus
from diffaudio.corpus.validate.shard_checks import Dropped, PartReport, Problem, check_part, row_key, source_key
from diffaudio.errors import UserError
from diffaudio.folder_lock import LOCK_NAME

__all__ = ["Problem", "validate"]

SECONDS_TOLERANCE = 0.01  # the manifest's are rounded


def validate(
    corpus: Corpus, *, decode: bool = True, num_workers: int = 1, on_part: Callable[[int], None] = lambda num_rows: None
) -> Iterator[Problem]:
    """Yield all problems of a corpus: part by part as they are checked, then those that concern several parts.

    Of an unfinished corpus only the parts written so far are checked, not totals and dropped.csv.

    Args:
        decode: whether sound and pictures are decoded, which takes most of the time.
        num_workers: number of processes; 1 checks in this one.
        on_part: called with the number of rows of each part that has been checked.

    Raises:
        ValueError: a process died while it checked a part.
    """
    reports: list[PartReport] = []
    for report in _checked(corpus, decode, num_workers):
        yield from report.problems
        report.problems.clear()
        reports.append(report)
        on_part(report.num_rows)
    yield from _repeated_rows(corpus, reports)
    yield from _repeated_sources(corpus, reports)
    yield from _missing_parts(corpus)
    if corpus.finished:
        yield from _wrong_totals(corpus, reports)
        if corpus.kind == "clips":
            yield from _wrong_dropped(corpus, reports)
        for path in sorted(path for path in corpus.folder.glob(".*") if path.name != LOCK_NAME):
            yield Problem(path.name, f"was left by a run that was killed; run `{corpus.made_by}` again, or delete it")


def _checked(corpus: Corpus, decode: bool, num_workers: int) -> Iterator[PartReport]:
    """Reports in the order of the parts; a few are computed ahead."""
    check = partial(check_part, kind=corpus.kind, manifest=corpus.manifest, decode=decode)
    if num_workers == 1 or len(corpus.parts) < 2:
        yield from map(check, corpus.parts)
        return
    context = multiprocessing.get_context("spawn")  # a fork would take along the threads of what is loaded here
    with ProcessPoolExecutor(min(num_workers, len(corpus.parts)), mp_context=context) as pool:
        waiting: deque[Future[PartReport]] = deque()
        try:
            for part in corpus.parts:
                waiting.append(pool.submit(check, part))
                if len(waiting) == 4 * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                f"{corpus.folder}: a process died while it checked a part; try again with --workers 1, which tells more"
            ) from error


def _repeated(keys: "list[array[int]]") -> set[int]:
    """Keys that come more than once in several arrays."""
    together = np.sort(np.concatenate([np.empty(0, np.uint64), *(np.asarray(each, np.uint64) for each in keys)]))
    return set(together[1:][together[1:] == together[:-1]].tolist())


def _repeated_rows(corpus: Corpus, reports: list[PartReport]) -> Iterator[Problem]:
    """Only parts that hold a repeated key are read again, and of these the ids."""
    repeated = _repeated([report.row_keys for report in reports])
    first: dict[tuple[str, int], str] = {}
    for part, report in zip(corpus.parts, reports, strict=True):
        if repeated.isdisjoint(report.row_keys):
            continue
        with contextlib.suppress(UserError):  # rows that cannot be read were reported before
            for number, row in enumerate(_identities(corpus, part)):
                if row_key(row) in repeated:
                    identity = (row["id"], row.get("copy") or 0)
                    if identity in first:
                        what = f"the same id stands in {first[identity]}"
                        yield Problem(part.name, what, row=number, id=row["id"], source=row["source"])
                    first.setdefault(identity, f"{part.name} row {number}")


def _identities(corpus: Corpus, part: Path) -> Iterator[dict[str, Any]]:
    """Id, source and, in an encoded corpus, copy of each row."""
    if corpus.kind == "latents":
        for batch in latent_shards.read_batches(part, ["id", "source", "copy"]):
            yield from batch.to_pylist()
    else:
        for rows in store.read_groups(part, ["id", "source"], rejected=True):
            yield from rows


def _repeated_sources(corpus: Corpus, reports: list[PartReport]) -> Iterator[Problem]:
    repeated = _repeated([report.source_keys for report in reports])
    first: dict[str, str] = {}
    for part, report in zip(corpus.parts, reports, strict=True):
        if not repeated.isdisjoint(report.source_keys):
            for source in store.read_note(part)["sources"]:
                if source in first:
                    yield Problem(part.name, f"holds '{source}', which {first[source]} holds")
                elif source_key(source) in repeated:
                    first[source] = part.name


def _missing_parts(corpus: Corpus) -> Iterator[Problem]:
    """Parts are numbered without gaps."""
    present = {part.name for part in corpus.parts}
    for index in range(len(present)):
        name = store.part_path(corpus.folder, corpus.kind, index).name
        if name not in present:
            yield Problem(name, f"is missing; run `{corpus.made_by}` again")
            return


def _wrong_totals(corpus: Corpus, reports: list[PartReport]) -> Iterator[Problem]:
    found = Counter[str]()
    for report in reports:
        found.update(report.totals)
    for name in ("sources", "clips", "seconds", "rejected", "dropped"):
        stated = corpus.manifest.get(name)
        if stated is not None and abs(stated - found[name]) > (SECONDS_TOLERANCE if name == "seconds" else 0):
            yield Problem("manifest.json", f"says {stated} {name}, the parts hold {round(found[name], 3)}")


def _wrong_dropped(corpus: Corpus, reports: list[PartReport]) -> Iterator[Problem]:
    """dropped.csv has to hold what the parts' notes say, in whatever order."""
    path = corpus.folder / "dropped.csv"
    if not path.is_file():
        yield Problem(path.name, f"is missing; run `{corpus.made_by}` again")
        return
    noted, listed = Dropped(), Dropped()
    for report in reports:
        noted.merge(report.dropped)
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != store.DROPPED_COLUMNS:
            yield Problem(path.name, f"has columns {reader.fieldnames}, not {', '.join(store.DROPPED_COLUMNS)}")
            return
        for row in reader:
            try:
                listed.add(row)
            except (TypeError, ValueError):
                yield Problem(path.name, f"line {reader.line_num} is damaged")
    for reason in sorted(noted.lines | listed.lines):
        if noted.lines[reason] != listed.lines[reason]:
            what = f"has {listed.lines[reason]} lines of reason '{reason}', the parts say {noted.lines[reason]}"
            yield Problem(path.name, what)
        elif noted.sums[reason] != listed.sums[reason]:
            yield Problem(path.name, f"lines of reason '{reason}' are not those that the parts say")
