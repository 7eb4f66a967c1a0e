"""Media files cut into clips by worker processes, each file within limits of time and memory.

    worker    a process that cuts one file after the other (see `worker`), replaced when it dies (Pebble)
    fragment  the rows of one media file (see `fragments`): rows never pile up in memory

Whatever a file does to its decoder (a crash, endless memory, no end), it costs that file and a new worker: the
fragment is then empty, and says that the file was dropped as crashed, out_of_memory or timeout. A file that cannot be
read for a reason that lies outside of it has no fragment: nothing is to be recorded of it.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pebble import ProcessExpired, ProcessPool

from diffaudio.corpus.prepare.fragments import remove_fragment, write_empty_fragment
from diffaudio.corpus.prepare.settings import PrepareSettings
from diffaudio.corpus.prepare.sources import Media
from diffaudio.corpus.prepare.worker import WorkerLimits, cut_file, process_file, start_worker
from diffaudio.errors import UserError

__all__ = ["CutFile", "cut_in_workers"]

AHEAD_PER_WORKER = 32  # files cut beyond the one that is waited for: a film must not hold up the others
LOOK_S = 1.0  # how often it is looked whether the worker of a file that is waited for has died
AGAIN = "again"


class CutFile(NamedTuple):
    """A media file after it was cut.

    Attributes:
        fragment: its rows, to be read and removed; not there where the file was unavailable.
        unavailable: why the file cannot be read now, for a reason that lies outside of it, else None.
    """

    media: Media
    fragment: Path
    unavailable: str | None = None


@dataclass
class _Task:
    media: Media
    fragment: Path
    future: Any = None
    was_killed: bool = False
    looks_lost: int = 0


def cut_in_workers(
    media: Iterable[Media],
    settings: PrepareSettings,
    *,
    num_workers: int,
    folder: Path,
    limits: WorkerLimits | None = None,
) -> Iterator[CutFile]:
    """Cut media files into clips, several at a time.

    Workers are spawned: a script that calls this has to keep its own work under `if __name__ == "__main__"`.

    Args:
        folder: where fragments are written; made where it is missing. Nobody else writes there.
        limits: of time and memory for each file.

    Yields:
        Each file with its fragment, in the order given.

    Raises:
        ValueError: `num_workers` is below 1.
        OSError: a fragment cannot be written.
        RuntimeError: a worker cannot start.
    """
    if num_workers < 1:
        raise UserError(f"num_workers is {num_workers}; it must be at least 1")
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(_Workers(settings, num_workers, limits or WorkerLimits())) as workers:
        for index, item in enumerate(media):
            workers.begin(_Task(item, folder / f"{index:08d}.arrow"))
            if len(workers.begun) > AHEAD_PER_WORKER * num_workers:
                yield workers.finish_first()
        while workers.begun:
            yield workers.finish_first()


class _Workers:
    """A pool of workers, and the tasks that were given to it, in order."""

    def __init__(self, settings: PrepareSettings, num_workers: int, limits: WorkerLimits) -> None:
        self._num_workers, self._limits = num_workers, limits
        self._arguments = os.getpid(), pickle.dumps(settings), limits
        self._pool = self._new_pool()
        self._has_worked = False  # since the pool was made
        self.begun: deque[_Task] = deque()

    def begin(self, task: _Task) -> None:
        self.begun.append(task)
        self._schedule(task)

    def finish_first(self) -> CutFile:
        """Wait for the task that was begun first."""
        task = self.begun.popleft()
        while True:
            try:
                unavailable = task.future.result(timeout=LOOK_S)
            except BrokenProcessPool as error:
                self._restart(task, error)
                continue
            except TimeoutError as error:
                if not self._pool.active:  # it broke before it knew of this task
                    self._restart(task, error)
                    continue
                if not self._is_lost(task):
                    continue
                unavailable = self._record_death(task, -signal.SIGKILL)
            except ProcessExpired as error:
                unavailable = self._record_death(task, error.exitcode)
            self._has_worked = True
            if unavailable is AGAIN:
                self._schedule(task)
                continue
            if isinstance(unavailable, OSError):
                raise unavailable
            return CutFile(task.media, task.fragment, unavailable)

    def close(self) -> None:
        self._pool.stop()
        self._pool.join()

    def _is_lost(self, task: _Task) -> bool:
        """Whether the worker died so early that Pebble did not yet know what it was working on, and never will."""
        try:
            process = int(process_file(task.fragment).read_text())
        except (OSError, ValueError):
            return False
        is_dead = all(child.pid != process for child in multiprocessing.active_children())
        task.looks_lost = task.looks_lost + 1 if is_dead else 0
        return task.looks_lost > 2

    def _record_death(self, task: _Task, code: int) -> str | None:
        """Drop the file that its worker died of; where it is not to blame, return what was."""
        remove_fragment(task.fragment)
        if code == -signal.SIGKILL and not task.was_killed:  # perhaps by chance: it gets a second try
            task.was_killed = True
            return AGAIN
        if code == -signal.SIGALRM:
            return f"nothing came of it for {self._limits.idle_timeout_s:g} s; is what it lies on out of reach?"
        if code == -signal.SIGKILL:
            return "the system killed its worker twice; if memory is short, use fewer workers"
        if code == -signal.SIGPROF:
            used = f"{self._limits.timeout_s:g} s of processor time"
            reason = "timeout", f"took {used} without progress, or too long for its size"
        else:
            cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            reason = "crashed", f"the decoder ended the worker ({cause})"
        write_empty_fragment(task.fragment, task.media, reason)
        return None

    def _new_pool(self) -> ProcessPool:
        context = multiprocessing.get_context("spawn")  # a forked child would inherit torch, threads and memory
        return ProcessPool(self._num_workers, initializer=start_worker, initargs=self._arguments, context=context)

    def _schedule(self, task: _Task) -> None:
        try:
            task.future = self._pool.schedule(cut_file, (task.media, task.fragment))
        except RuntimeError as error:  # the pool broke just now
            task.future = Future()
            task.future.set_exception(BrokenProcessPool(str(error)))

    def _restart(self, first: _Task, error: Exception) -> None:
        """Begin again with what is not finished: Pebble gives a pool up when a worker dies that has no task."""
        if not self._has_worked:
            raise RuntimeError("a worker of `diffaudio prepare` does not start; its error stands above") from error
        self.close()
        self._pool, self._has_worked = self._new_pool(), False
        for task in (first, *self.begun):
            if not task.future.done() or isinstance(task.future.exception(), BrokenProcessPool):
                self._schedule(task)
