"""A child process that cuts media files: the other side of `workers`."""

import contextlib
import ctypes
import gc
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pyarrow as pa

from diffaudio.corpus.prepare import remote
from diffaudio.corpus.prepare.cut import cut_clips
from diffaudio.corpus.prepare.fragments import dropped_row, new_note, write_fragment
from diffaudio.corpus.prepare.settings import PrepareSettings
from diffaudio.corpus.prepare.sources import Media

__all__ = ["serve"]

KEPT_BYTES = 256 << 20  # memory that is free is kept for the next file up to here
LARGEST_BYTES = 32 << 20  # in one piece; the C library takes no larger bound
CHUNK_BYTES = 1 << 20  # of a remote file


def serve() -> None:
    """Cut what is asked for on the standard input until it ends.

    First comes the parent's process id, the settings and the bound of memory in MB; then media files, each with the
    path of its fragment. The replies are "ready", "alive" every now and then, and "done" for each file.
    """
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply

    def reply(word: str) -> None:
        pickle.dump(word, replies)
        replies.flush()

    parent, settings, max_memory_mb = pickle.load(sys.stdin.buffer)
    _die_with(parent)
    _limit_memory(max_memory_mb)
    _keep_memory()
    sys.meta_path.insert(0, _WithoutPandas())
    pa.set_cpu_count(1)
    gc.freeze()  # what is imported stays
    reply("ready")
    while True:
        try:
            media, fragment = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        _cut(media, Path(fragment), settings, lambda: reply("alive"))
        reply("done")


def _cut(media: Media, fragment: Path, settings: PrepareSettings, alive: Callable[[], None]) -> None:
    note = new_note(media)
    try:
        with _local(media, fragment, alive) as file:
            write_fragment(fragment, cut_clips(file, settings, note, alive), note)
        return
    except MemoryError:
        verdict = "out_of_memory", "more memory than a worker may have"
    except ValueError as error:  # an address that cannot be read
        verdict = "unreadable", str(error).removeprefix(f"{media.path}: ")
    note = new_note(media)
    note["dropped"].append(dropped_row(media, media.segments[0].start_s, None, verdict))
    write_fragment(fragment, [], note)


@contextlib.contextmanager
def _local(media: Media, fragment: Path, alive: Callable[[], None]) -> Iterator[Media]:
    """Have a remote file here for as long as it is needed."""
    if not remote.is_remote(media.path):
        yield media
        return
    copy = fragment.with_suffix(Path(media.path.partition("::")[0]).suffix or ".media")
    try:
        with remote.open_anywhere(media.path) as source, copy.open("wb") as target:
            while chunk := source.read(CHUNK_BYTES):
                target.write(chunk)
                alive()
        yield replace(media, path=str(copy))
    finally:
        copy.unlink(missing_ok=True)


class _WithoutPandas(MetaPathFinder):
    """Where pandas is installed, pyarrow loads it when it first sees a list: longer than all else here takes."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname, name=fullname)


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


def _keep_memory() -> None:
    """Have freed memory used again instead of given back and fetched anew: it saves a quarter of the time."""
    trim_threshold, mmap_threshold = -1, -3  # of mallopt(3)
    libc: Any = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(trim_threshold, KEPT_BYTES)
        libc.mallopt(mmap_threshold, LARGEST_BYTES)
