"""Commands that are killed at random moments and begun again, for tests of what survives that."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

PREPARE = [sys.executable, "-m", "diffaudio", "prepare"]
LAUNCHED = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *PREPARE[1:]]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def start(command: Sequence[str | Path], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(list(map(str, command)), stdout=file, stderr=file, env=environment())


def kill(process: subprocess.Popen[bytes], choose: Callable[[list[psutil.Process]], list[psutil.Process]]) -> None:
    """SIGKILL for those that `choose` names among the process and all below it."""
    root = psutil.Process(process.pid)
    for victim in choose([root, *root.children(recursive=True)]):
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    process.wait()


def everything(family: list[psutil.Process]) -> list[psutil.Process]:
    return family


def wait_for(process: subprocess.Popen[bytes], happened: Callable[[], bool], timeout_s: float = 240.0) -> bool:
    """Whether it happened before the process ended."""
    deadline = time.monotonic() + timeout_s
    while process.poll() is None:
        if happened():
            return True
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return happened()


def contents(corpus: Path) -> dict[str, bytes]:
    """Of all files; fails where a folder was left behind."""
    return {path.name: path.read_bytes() for path in corpus.iterdir()}
