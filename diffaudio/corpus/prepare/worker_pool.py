"""Media files cut into clips by child processes, each file within bounds of time and memory.

    worker    a child process that cuts one file after the other, and is replaced when it dies
    fragment  the rows of one media file (see `fragments`): rows never pile up in memory

Whatever a file does to its decoder (a crash, endless memory, no end), it costs that file and a new worker: the
fragment is then empty, and its note says that the file was dropped as crashed, out_of_memory or timeout.
A worker knows neither torch nor threads, so that it starts fast and gives the same bytes wherever it runs.
"""

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffaudio.corpus.prepare.fragments import dropped_row, new_note, write_fragment
from diffaudio.corpus.prepare.remote import is_remote
from diffaudio.corpus.prepare.settings import PrepareSettings
from diffaudio.corpus.prepare.sources import Media
from diffaudio.errors import UserError

__all__ = ["WorkerLimits", "cut_in_workers"]

AHEAD_PER_WORKER = 32  # files cut beyond the one that is waited for: a film must not hold up the others
SECONDS_PER_MB = 8.0  # what a file may take in all grows with its bytes, which do not lie, unlike its header
REMOTE_MB = 4000.0  # what a remote file may have as far as its time is concerned
LOOK_S = 0.25  # how often it is looked whether a worker is over its time
START_S = 600.0  # for a worker on a machine that is very busy
KILLED = "out_of_memory", "the system killed the worker"
ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # others set a GB aside, which counts as used
}


@dataclass(frozen=True)
class WorkerLimits:
    """What one file may cost before it is given up. No setting of the corpus: clips do not depend on it.

    Attributes:
        timeout_s: of a worker without a sign of life; one that gives some may take 8 seconds more for each megabyte
            of its file in all.
        max_memory_mb: of one worker with everything that it holds.
    """

    timeout_s: float = 120.0
    max_memory_mb: int = 1400

    def __post_init__(self) -> None:
        if self.timeout_s <= 0:
            raise UserError(f"timeout_s is {self.timeout_s}; it must be above 0")
        if self.max_memory_mb < 256:
            raise UserError(f"max_memory_mb is {self.max_memory_mb}; a worker needs at least 256")


def cut_in_workers(
    media: Iterable[Media],
    settings: PrepareSettings,
    *,
    num_workers: int,
    folder: Path,
    limits: WorkerLimits | None = None,
) -> Iterator[tuple[Media, Path]]:
    """Cut media files into clips, several at a time.

    Args:
        num_workers: child processes.
        folder: where fragments are written; made where it is missing. Nobody else writes there.
        limits: of time and memory for each file.

    Yields:
        Each file with its fragment, in the order given: its rows, and the note of `new_note`. The fragment is the
        caller's to read and remove.

    Raises:
        ValueError: `num_workers` is below 1.
        RuntimeError: a worker cannot start.
    """
    if num_workers < 1:
        raise UserError(f"num_workers is {num_workers}; it must be at least 1")
    folder.mkdir(parents=True, exist_ok=True)
    workers = [_Worker(settings, limits or WorkerLimits()) for _ in range(num_workers)]
    free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        free.put(worker)

    def cut(item: Media, fragment: Path) -> tuple[Media, Path]:
        worker = free.get()
        try:
            worker.cut(item, fragment)
        finally:
            free.put(worker)
        return item, fragment

    ended = threading.Event()
    threading.Thread(target=_watch, args=(workers, ended), daemon=True).start()
    threads = ThreadPoolExecutor(num_workers)
    begun: deque[Future[tuple[Media, Path]]] = deque()
    try:
        for index, item in enumerate(media):
            begun.append(threads.submit(cut, item, folder / f"{index:08d}.arrow"))
            if len(begun) > AHEAD_PER_WORKER * num_workers:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.stop()
        ended.set()
        threads.shutdown()
        for worker in workers:
            worker.close()


class _Worker:
    """A child process, started when it is first needed and again after it died."""

    def __init__(self, settings: PrepareSettings, limits: WorkerLimits) -> None:
        self._settings, self._limits = settings, limits
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = self._expired = False
        self._deadline_s = float("inf")
        self._lock = threading.Lock()  # of the last two

    def cut(self, media: Media, fragment: Path) -> None:
        """Have the fragment written; where the child fails to, write an empty one that says why.

        A child that somebody killed need not have died of this file: it gets a second chance.
        """
        verdict = self._cut(media, fragment)
        if verdict == KILLED and not self._stopped:
            verdict = self._cut(media, fragment)
        if verdict and not self._stopped:
            note = new_note(media)
            note["dropped"].append(dropped_row(media, media.segments[0].start_s, None, verdict))
            write_fragment(fragment, [], note)

    def end_if_late(self) -> None:
        """Called by another thread every now and then."""
        with self._lock:
            if time.monotonic() > self._deadline_s and self._process:
                self._expired = True
                self._process.kill()

    def stop(self) -> None:
        """End the child, from another thread than the one that may be waiting for it."""
        self._stopped = True
        if self._process:
            self._process.kill()

    def close(self) -> None:
        if self._process:
            self._end(self._process)

    def _cut(self, media: Media, fragment: Path) -> tuple[str, str] | None:
        """Why the child failed to write the fragment, if it did."""
        if self._process and self._expired:  # it was killed when it had just finished
            self._end(self._process)
        process = self._process or self._start()
        began_s = time.monotonic()
        last_s = began_s + self._limits.timeout_s + SECONDS_PER_MB * _megabytes(media.path)
        try:
            _send(process.stdin, (media, str(fragment)))
            while self._receive(process, self._limits.timeout_s, last_s) != "done":
                pass
            return None
        except (EOFError, OSError, pickle.UnpicklingError):
            code = process.wait()
        self._end(process)
        if self._expired:
            return "timeout", f"gave up after {time.monotonic() - began_s:.0f} s"
        if code == -signal.SIGKILL:
            return KILLED
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return "crashed", f"the decoder ended the worker ({cause})"

    def _start(self) -> subprocess.Popen[bytes]:
        program = f"import sys; sys.path[:] = {sys.path!r}; from diffaudio.corpus.prepare.worker import serve; serve()"
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | ENVIRONMENT,
            start_new_session=True,  # Ctrl-C is for the parent, whose end is theirs
        )
        self._process, self._expired = process, False
        try:
            _send(process.stdin, (os.getpid(), self._settings, self._limits.max_memory_mb))
            self._receive(process, START_S)
        except (EOFError, OSError) as error:
            self._end(process)
            if not self._stopped:
                raise RuntimeError("a worker of `diffaudio prepare` does not start; its error stands above") from error
        return process

    def _receive(self, process: subprocess.Popen[bytes], timeout_s: float, last_s: float = float("inf")) -> str:
        """The child's next word; EOFError when it has died, or was killed because it came too late."""
        self._set_deadline(min(time.monotonic() + timeout_s, last_s))
        try:
            return pickle.load(process.stdout)  # type: ignore[arg-type]
        finally:
            self._set_deadline(float("inf"))

    def _set_deadline(self, deadline_s: float) -> None:
        with self._lock:
            self._deadline_s = deadline_s

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        self._process = None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


def _watch(workers: list[_Worker], ended: threading.Event) -> None:
    while not ended.wait(LOOK_S):
        for worker in workers:
            worker.end_if_late()


def _send(pipe: Any, message: Any) -> None:
    pickle.dump(message, pipe)
    pipe.flush()


def _megabytes(path: str) -> float:
    if is_remote(path):
        return REMOTE_MB
    try:
        return os.path.getsize(path) / 1e6
    except OSError:
        return 0.0
