"""Media files cut into clips by child processes, each file within bounds of time and memory.

    worker    a child process that cuts one file after the other, and is replaced when it dies
    fragment  the rows of one media file, written by `store.write_part`: rows never pile up in memory

Whatever a file does to its decoder (a crash, endless memory, no end), it costs that file and a new worker: the
fragment is then empty, and its note says that the file was dropped as crashed, out_of_memory or timeout.
A worker knows neither torch nor threads, so that it starts fast and gives the same bytes wherever it runs.
"""

import contextlib
import ctypes
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
from typing import Any, BinaryIO

from diffaudio.corpus import store
from diffaudio.corpus.cut import PrepareSettings, cut_clips
from diffaudio.corpus.sources import Media

__all__ = ["WorkerLimits", "cut_in_workers", "serve"]

AHEAD_PER_WORKER = 32  # files cut beyond the one that is waited for: a film must not hold up the others
SECONDS_PER_MB = 8.0  # what a file may take in all grows with its bytes, which do not lie, unlike its header
KILLED = "out_of_memory", "the system killed the worker"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class WorkerLimits:
    """What one file may cost before it is given up. No setting of the corpus: clips do not depend on it.

    Attributes:
        timeout_s: to open a file, and for each clip of it.
        max_memory_mb: of one worker with everything that it holds.
    """

    timeout_s: float = 120.0
    max_memory_mb: int = 1400

    def __post_init__(self) -> None:
        if self.timeout_s <= 0:
            raise ValueError(f"timeout_s is {self.timeout_s}; it must be above 0")
        if self.max_memory_mb < 256:
            raise ValueError(f"max_memory_mb is {self.max_memory_mb}; a worker needs at least 256")


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
        Each file with its fragment, in the order given: rows of `store.CLIP_SCHEMA`, and the note
        {"sources": [name], "dropped": [rows of dropped.csv]}. The fragment is the caller's to read and remove.

    Raises:
        ValueError: `num_workers` is below 1.
        RuntimeError: a worker cannot start.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers is {num_workers}; it must be at least 1")
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

    threads = ThreadPoolExecutor(num_workers)
    begun: deque[Future[tuple[Media, Path]]] = deque()
    try:
        for index, item in enumerate(media):
            begun.append(threads.submit(cut, item, folder / f"{index:08d}.parquet"))
            if len(begun) > AHEAD_PER_WORKER * num_workers:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.stop()
        threads.shutdown()
        for worker in workers:
            worker.close()


class _Worker:
    """A child process, started when it is first needed and again after it died."""

    def __init__(self, settings: PrepareSettings, limits: WorkerLimits) -> None:
        self._settings, self._limits = settings, limits
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def cut(self, media: Media, fragment: Path) -> None:
        """Have the fragment written; where the child fails to, write an empty one that says why.

        A child that somebody killed need not have died of this file: it gets a second chance.
        """
        verdict = self._cut(media, fragment)
        if verdict == KILLED and not self._stopped:
            verdict = self._cut(media, fragment)
        if verdict and not self._stopped:
            _write_dropped(fragment, media, *verdict)

    def _cut(self, media: Media, fragment: Path) -> tuple[str, str] | None:
        """Why the child failed to write the fragment, if it did."""
        process = self._process or self._start()
        began, spent_s = time.monotonic(), self._limits.timeout_s
        allowed_s = spent_s + SECONDS_PER_MB * _megabytes(media.path)
        try:
            _send(process.stdin, (media, str(fragment)))
            while True:
                left_s = min(self._limits.timeout_s, allowed_s - (time.monotonic() - began))
                if self._receive(process, left_s) == "done":
                    return None
        except TimeoutError:
            verdict = "timeout", f"gave up after {time.monotonic() - began:.0f} s"
        except (EOFError, OSError, pickle.UnpicklingError):
            verdict = self._cause_of_death(process)
        self._end(process)
        return verdict

    def stop(self) -> None:
        """End the child, from another thread than the one that may be waiting for it."""
        self._stopped = True
        if self._process:
            self._process.kill()

    def close(self) -> None:
        if self._process:
            self._end(self._process)

    def _start(self) -> subprocess.Popen[bytes]:
        program = f"import sys; sys.path[:] = {sys.path!r}; from diffaudio.corpus.workers import serve; serve()"
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | ONE_THREAD,
            start_new_session=True,  # Ctrl-C is for the parent, whose end is theirs
        )
        self._process = process
        try:
            _send(process.stdin, (os.getpid(), self._settings, self._limits))
            self._receive(process, 600)
        except (EOFError, OSError, TimeoutError) as error:
            self._end(process)
            if not self._stopped:
                raise RuntimeError("a worker of `diffaudio prepare` does not start; its error stands above") from error
        return process

    def _receive(self, process: subprocess.Popen[bytes], timeout_s: float) -> str:
        """The child's next word; TimeoutError when there is none in time, EOFError when it has died."""
        expired = threading.Event()

        def give_up() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(max(timeout_s, 0), give_up)
        timer.daemon = True
        timer.start()
        try:
            return pickle.load(process.stdout)  # type: ignore[arg-type]
        except EOFError:
            if expired.is_set():
                raise TimeoutError from None
            raise
        finally:
            timer.cancel()

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        self._process = None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]

    def _cause_of_death(self, process: subprocess.Popen[bytes]) -> tuple[str, str]:
        code = process.wait()
        if code == -signal.SIGKILL:  # none of ours: those end in TimeoutError
            return KILLED
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return "crashed", f"the decoder ended the worker ({name})"


def serve() -> None:
    """The child's side: cut what is asked for on the standard input until it ends."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    parent, settings, limits = pickle.load(sys.stdin.buffer)
    _die_with(parent)
    _limit_memory(limits.max_memory_mb)
    _send(replies, "ready")
    while True:
        try:
            media, fragment = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        _write_fragment(media, Path(fragment), settings, replies)
        _send(replies, "done")


def _write_fragment(media: Media, fragment: Path, settings: PrepareSettings, replies: BinaryIO) -> None:
    note: dict[str, Any] = {"sources": [media.name], "dropped": []}

    def rows() -> Iterator[dict[str, Any]]:
        for row in cut_clips(media, settings, note["dropped"]):
            _send(replies, "clip")
            yield row

    try:
        store.write_part(fragment, "clips", rows(), note)
    except MemoryError:
        _write_dropped(fragment, media, "out_of_memory", "more memory than a worker may have")


def _write_dropped(fragment: Path, media: Media, reason: str, detail: str) -> None:
    row = {
        "source": media.name,
        "start_s": media.segments[0].start_s,
        "duration_s": None,
        "reason": reason,
        "detail": detail,
    }
    store.write_part(fragment, "clips", [], {"sources": [media.name], "dropped": [row]})


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, even in the middle of a decoder's endless loop."""
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _limit_memory(max_memory_mb: int) -> None:
    """Let allocations fail beyond the bound. Linux counts all private memory as data; others need not."""
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (max_memory_mb << 20, max_memory_mb << 20))


def _send(pipe: Any, message: Any) -> None:
    pickle.dump(message, pipe)
    pipe.flush()


def _megabytes(path: str) -> float:
    try:
        return os.path.getsize(path) / 1e6
    except OSError:  # what is not there, or elsewhere
        return 0.0
