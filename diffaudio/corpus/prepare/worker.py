"""What a worker process does: it cuts one media file after another, within limits of time and memory.

Time is limited by timers of the kernel, which end the process even in the middle of a decoder's endless loop:

    SIGPROF   so much processor time has gone by: the file is to blame, and dropped as `timeout`
    SIGALRM   so much time has gone by with the processor idle: whatever the file lies on is to blame

Nothing heavy is imported before `start_worker` has set the environment, which libraries read when they are loaded.
"""

import contextlib
import ctypes
import gc
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaudio.errors import UserError

if TYPE_CHECKING:
    from diffaudio.corpus.prepare.settings import PrepareSettings
    from diffaudio.corpus.prepare.sources import Media

__all__ = ["WorkerLimits", "cut_file", "process_file", "start_worker"]

ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # others set a GB aside, which counts as used
}
SECONDS_PER_MB = 8.0  # what a file may take in all grows with its bytes, which do not lie, unlike its header
REUSED_BYTES = 256 << 20  # freed memory is reused for the next file up to here
LARGEST_BYTES = 32 << 20  # of it in one piece; the C library takes no larger bound
CHUNK_BYTES = 1 << 20  # of a remote file

_settings: "PrepareSettings"
_limits: "WorkerLimits"


@dataclass(frozen=True)
class WorkerLimits:
    """What one file may cost before it is given up. No settings of the corpus: its clips do not depend on them.

    Attributes:
        timeout_s: processor time between two signs of progress; a file that goes on making progress may take 8 seconds
            more for each megabyte that it has. Beyond that it is dropped.
        idle_timeout_s: time between two signs of progress; beyond that what the file lies on is out of reach, or the
            machine is far too busy, and the next run tries it again.
        max_memory_mb: memory of one worker, with everything that it holds.
        max_remote_mb: size of a remote file, which is copied into the folder of the corpus while it is cut.
    """

    timeout_s: float = 120.0
    idle_timeout_s: float = 900.0
    max_memory_mb: int = 1400
    max_remote_mb: int = 16_000

    def __post_init__(self) -> None:
        for name in ("timeout_s", "idle_timeout_s", "max_remote_mb"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.max_memory_mb < 256:
            raise UserError(f"max_memory_mb is {self.max_memory_mb}; a worker needs at least 256")


def start_worker(parent: int, settings: bytes, limits: WorkerLimits) -> None:
    """Make this process a worker.

    Args:
        parent: the process id of the parent, with which this process ends.
        settings: `PrepareSettings`, pickled: their module needs numpy, and that the environment.
    """
    global _settings, _limits
    os.environ.update(ENVIRONMENT)
    os.dup2(2, 1)  # what a library prints is no output of ours
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # end at once, even within a decoder
    _end_with(parent)
    sys.meta_path.insert(0, _WithoutPandas())
    import pyarrow as pa

    from diffaudio.corpus.prepare import cut, source_guard  # noqa: F401  (before memory is limited)
    from diffaudio.media.memory_limit import limit_memory

    pa.set_cpu_count(1)
    _settings, _limits = pickle.loads(settings), limits
    limit_memory(limits.max_memory_mb)
    _reuse_memory()
    gc.freeze()  # what is imported stays


def cut_file(media: "Media", fragment: Path) -> str | OSError | None:
    """Cut one media file and write its fragment.

    Returns:
        None where the fragment is there; why the file cannot be read now, for a reason that lies outside of it; or why
        the fragment, or the copy of a remote file, cannot be written. (What a pool's task raises is about the pool.)
    """
    from diffaudio.corpus.prepare.fragments import remove_fragment

    try:
        process_file(fragment).write_text(str(os.getpid()))
        unavailable = _cut_file(media, fragment)
        process_file(fragment).unlink(missing_ok=True)
        return unavailable
    except OSError as error:
        with contextlib.suppress(OSError):
            remove_fragment(fragment)
        return OSError(error.errno, os.strerror(error.errno) if error.errno else str(error), str(fragment.parent))


def process_file(fragment: Path) -> Path:
    """Where the process id of the worker stands that works on a fragment."""
    return fragment.with_suffix(".pid")


def _cut_file(media: "Media", fragment: Path) -> str | None:
    from diffaudio.corpus.prepare.fragments import remove_fragment, write_empty_fragment
    from diffaudio.corpus.prepare.remote import TooLargeError
    from diffaudio.corpus.prepare.source_guard import SourceUnavailableError

    try:
        with _time_limits() as limit, _local_copy(media, fragment, limit.alive) as file:
            limit.start(os.path.getsize(file.path) if os.path.isfile(file.path) else 0)
            _cut_local(file, fragment, limit.alive)
        return None
    except SourceUnavailableError as error:
        remove_fragment(fragment)
        return str(error)
    except MemoryError:
        reason = "out_of_memory", f"needs more memory than the {_limits.max_memory_mb} MB that a worker may have"
    except TooLargeError as error:
        reason = "too_large", str(error)
    except UserError as error:  # an address that does not lead to a file
        reason = "unreadable", str(error).removeprefix(f"{media.path}: ")
    except OSError:
        raise
    except Exception as error:  # a bug of ours, which must not end a run of days
        traceback.print_exc()
        reason = "crashed", f"{type(error).__name__}: {error}"
    write_empty_fragment(fragment, media, reason)
    return None


def _cut_local(media: "Media", fragment: Path, alive: Callable[[], None]) -> None:
    from diffaudio.corpus.prepare.cut import cut_clips
    from diffaudio.corpus.prepare.fragments import CutReport, write_fragment
    from diffaudio.corpus.prepare.source_guard import SourceGuard

    guard = SourceGuard(media.path, existed=media.existed)
    try:
        report = CutReport(media)
        write_fragment(fragment, cut_clips(media, _settings, report, alive), report)
        guard.check(report.read_to, alive)
    finally:
        guard.close()


@contextlib.contextmanager
def _local_copy(media: "Media", fragment: Path, alive: Callable[[], None]) -> Iterator["Media"]:
    """Have a remote file here for as long as it is needed."""
    from diffaudio.corpus.prepare import remote

    if not remote.is_remote(media.path):
        yield media
        return
    copy = fragment.with_suffix(Path(media.path.partition("::")[0]).suffix or ".media")
    try:
        with copy.open("wb") as target:
            for chunk in remote.read_chunks(media.path, _limits.max_remote_mb << 20, existed=media.existed):
                target.write(chunk)
                alive()
        yield replace(media, path=str(copy))
    finally:
        copy.unlink(missing_ok=True)


class _TimeLimits:
    """The two timers; both stand still between files."""

    def __init__(self) -> None:
        self._until_s = float("inf")

    def start(self, num_bytes: int) -> None:
        """Begin with a file of this size."""
        self._until_s = time.process_time() + _limits.timeout_s + SECONDS_PER_MB * num_bytes / 1e6
        self.alive()

    def alive(self) -> None:
        """There was progress."""
        left_s = self._until_s - time.process_time()
        self._set(max(1e-3, min(_limits.timeout_s, left_s)), _limits.idle_timeout_s)

    def stop(self) -> None:
        self._set(0.0, 0.0)

    @staticmethod
    def _set(busy_s: float, idle_s: float) -> None:
        if hasattr(signal, "setitimer"):  # not on Windows
            signal.setitimer(signal.ITIMER_PROF, busy_s)
            signal.setitimer(signal.ITIMER_REAL, idle_s)


@contextlib.contextmanager
def _time_limits() -> Iterator[_TimeLimits]:
    limits = _TimeLimits()
    limits.alive()
    try:
        yield limits
    finally:
        limits.stop()


class _WithoutPandas(MetaPathFinder):
    """Where pandas is installed, pyarrow loads it when it first sees a list: longer than all else here takes."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname, name=fullname)


def _end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, even in the middle of a decoder's endless loop."""
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _reuse_memory() -> None:
    """Have freed memory used again instead of given back and fetched anew: it saves a quarter of the time."""
    trim_threshold, mmap_threshold = -1, -3  # of mallopt(3)
    libc: Any = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(trim_threshold, REUSED_BYTES)
        libc.mallopt(mmap_threshold, LARGEST_BYTES)
