"""How a script under `accelerate launch` or `torchrun` begins and ends.

This is the one module that reads the environment, sets threads and exits; the library never calls it, the scripts
in train/ and sample/ and the commands do. It imports torch only where processes join.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from diffaudio.errors import report_errors

if TYPE_CHECKING:
    from accelerate import PartialState

__all__ = ["end_with_launcher", "is_launched_as_several", "join_processes", "run_script", "share_of_cores"]

T = TypeVar("T")

PR_SET_PDEATHSIG = 1  # of Linux' prctl


def run_script(main: Callable[[T], None], settings: type[T]) -> None:
    """Call `main` with the settings of the command line, and exit as `report_errors` says."""
    from diffaudio.config import parse

    sys.exit(report_errors(lambda: main(parse(settings)), program=Path(sys.argv[0]).name))


def is_launched_as_several() -> bool:
    """Whether this process is one of several that `accelerate launch` or `torchrun` started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def share_of_cores() -> int:
    """How many of the cores that this process may use are its own, where several were launched on the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def end_with_launcher() -> None:
    """See that this process ends when its launcher is killed, instead of waiting for the others for days (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def join_processes(
    num_threads: int | None = None, *, patience: timedelta | None = None, on_cpu: bool | None = None
) -> "PartialState":
    """This process among those that were launched.

    Accelerate joins several processes on CPUs only when it is told that they compute there, and leaves them one
    thread each; here they share out all cores.

    Args:
        num_threads: of each process on a CPU, instead of its share.
        patience: how long one waits for the others; None is torch's own, which is made for processes in step.
        on_cpu: whether they compute there; None is where there is nothing faster, or accelerate was told so.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    if on_cpu is None:
        on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu, **({} if patience is None else {"timeout": patience}))
    if on_cpu:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(num_threads or max(1, (os.cpu_count() or 1) // processes))
    return state
