"""Decoding in child processes, so that a file that crashes or hangs its decoder only causes an error that names it.

A child decodes one file after another within limits of time and memory, and is replaced when it dies. It is not started
by `multiprocessing`, which would run the caller's main script again in each child. Replies are JSON and raw samples
rather than pickles, so that a compromised decoder cannot run code in this process.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diffaudio.media.container import MediaError

__all__ = ["decode"]

TIMEOUT_S = 120.0  # maximum time between replies
MAX_MEMORY_MB = 1400  # of a child as a whole
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def decode(operation: str, path: Path, **arguments: Any) -> Iterator[tuple[Any, list[np.ndarray]]]:
    """Run one of `subprocess_decoding_child.OPERATIONS` on a file, in a child process.

    Yields:
        The items of the operation: a JSON value, and arrays.

    Raises:
        MediaError: the file cannot be read, crashes its decoder, or takes too much memory or time.
        OSError: the file cannot be opened for a reason that is not the file's.
    """
    child = _children.take()
    absolute = os.path.abspath(path)  # the child may have another working directory
    is_idle = False
    try:
        child.send({"operation": operation, "path": absolute, **arguments})
        while (reply := child.receive(path))["kind"] == "item":
            yield reply["value"], reply["arrays"]
        is_idle = True
        if reply["kind"] == "media_error":
            raise MediaError(reply["message"].replace(absolute, str(path)))
        if reply["kind"] == "memory_error":
            raise MediaError(f"{path}: decoding it takes more than {MAX_MEMORY_MB} MB of memory")
        if reply["kind"] == "os_error":
            raise OSError(reply["errno"], reply["message"], str(path))
        if reply["kind"] != "done":
            raise RuntimeError(f"{path}: decoding failed in a child process:\n{reply['message']}")
    finally:
        if is_idle:
            _children.give_back(child)
        else:  # it died, or the caller stopped early
            child.end()


class _Child:
    def __init__(self) -> None:
        serving = "from diffaudio.media.subprocess_decoding_child import serve; serve()"
        program = f"import sys; sys.path[:] = {sys.path!r}; {serving}"
        self._is_late = False
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # decoders print messages about damage
            env=os.environ | ENVIRONMENT,
            start_new_session=True,  # Ctrl-C is for the parent alone; the child ends with it
        )
        self.send({"max_memory_mb": MAX_MEMORY_MB, "parent": os.getpid()})

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # `receive` reports how it died
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self, path: Path) -> dict[str, Any]:
        """The next reply, with its arrays."""
        timer = threading.Timer(TIMEOUT_S, self._expire)
        timer.daemon = True
        timer.start()
        try:
            line = self._read_line()
            reply = json.loads(line) if line.endswith(b"\n") else None
            arrays = [self._read_array(**array) for array in reply.get("arrays", ())] if reply else []
        except EOFError:
            reply, arrays = None, []
        finally:
            timer.cancel()
        if reply is None:
            raise MediaError(f"{path}: {self._cause_of_death()}")
        return reply | {"arrays": arrays}

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _expire(self) -> None:
        self._is_late = True
        self._process.kill()

    def _read_line(self) -> bytes:
        assert self._process.stdout
        return self._process.stdout.readline()

    def _read_array(self, shape: list[int], dtype: str) -> np.ndarray:
        assert self._process.stdout
        array = np.empty(shape, np.dtype(dtype))
        view, num_read = array.reshape(-1).view(np.uint8).data, 0
        while num_read < len(view):
            count = self._process.stdout.readinto(view[num_read:])  # type: ignore[attr-defined]
            if not count:
                raise EOFError
            num_read += count
        return array

    def _cause_of_death(self) -> str:
        code = self._process.wait()
        if self._is_late:
            return f"its decoder did not respond for {TIMEOUT_S:.0f} s"
        if code == -signal.SIGKILL:
            return "the system killed its decoder, as it does where memory runs out"
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"its decoder crashed ({cause}); the file is damaged or malicious"


class _Children:
    """The pool of idle children; there are as many children as files that are decoded at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._process_id = os.getpid()

    def take(self) -> _Child:
        with self._lock:
            self._forget_if_forked()
            while self._idle:
                child = self._idle.pop()
                if child.is_alive:
                    return child
                child.end()
        return _Child()

    def give_back(self, child: _Child) -> None:
        with self._lock:
            self._forget_if_forked()
            self._idle.append(child)

    def end(self) -> None:
        with self._lock:
            self._forget_if_forked()
            while self._idle:
                self._idle.pop().end()

    def _forget_if_forked(self) -> None:
        """A process forked from this one must not use its children."""
        if self._process_id != os.getpid():
            self._idle, self._process_id = [], os.getpid()


_children = _Children()
atexit.register(_children.end)
