"""Paths that do something to the worker process which opens them, in the place of files that do it to a decoder."""

import os
import resource
import signal
import time
from pathlib import Path
from types import SimpleNamespace


class _Path(str):
    """`str(path)`, which `pathlib` calls, is the moment at which it happens."""

    def __reduce__(self):
        return type(self), (self[:],)


class Crash(_Path):
    def __str__(self) -> str:
        os.abort()


class Killed(_Path):
    """Killed as by the system, whose memory is short: each time."""

    def __str__(self) -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class KilledOnce(_Path):
    """As `Killed`, but not when tried again; the path is that of a file beside which a mark is made."""

    def __str__(self) -> str:
        mark = f"{self[:]}.tried"
        if not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return self[:]


class Endless(_Path):
    def __str__(self) -> str:
        while True:
            pass


class Waiting(_Path):
    """As a file on a share that no longer answers."""

    def __str__(self) -> str:
        time.sleep(3600)
        raise AssertionError


class Full(_Path):
    """Opens as usual, and the disk that the fragment is written to is full."""

    def __str__(self) -> str:
        from diffaudio.corpus.prepare import fragments

        class Batch:
            @staticmethod
            def from_pylist(*_: object, **__: object) -> None:
                raise OSError(28, "Error writing bytes to file. Detail: [errno 28] No space left on device")

        fragments.pa = SimpleNamespace(RecordBatch=Batch)
        return self[:]


class Starved(_Path):
    """The machine refuses its worker more than some 60 MB, although the worker may have more."""

    def __str__(self) -> str:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        limit = (int(lines["VmSize"].split()[0]) << 10) + (60 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        return self[:]
