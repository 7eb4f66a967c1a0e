"""Commands that are killed at random moments and begun again, for tests of what survives that."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

DIFFAUDIO = [sys.executable, "-m", "diffaudio"]
LAUNCHED = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *DIFFAUDIO[1:]]


def start(command: Sequence[str | Path], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Begin a command whose output is added to `log`."""
    known = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with log.open("ab") as file:
        return subprocess.Popen(list(map(str, command)), stdout=file, stderr=file, env=known | environment)


def start_two(command: Sequence[str | Path], log: Path) -> list[subprocess.Popen[bytes]]:
    """Begin a command as two processes that know of each other, without the seconds that a launcher takes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    known = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [start(command, log, **known, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]


def kill(process: subprocess.Popen[bytes], choose: Callable[[list[psutil.Process]], list[psutil.Process]]) -> int:
    """SIGKILL for those that `choose` names among the process and all below it; how many of them were there."""
    root, killed = psutil.Process(process.pid), 0
    for victim in choose([root, *root.children(recursive=True)]):
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
            killed += 1
    process.wait()
    return killed


def everything(family: list[psutil.Process]) -> list[psutil.Process]:
    return family


def wait_for(process: subprocess.Popen[bytes], happened: Callable[[], bool], timeout_s: float = 900.0) -> bool:
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
