"""How a script under `accelerate launch` or `torchrun` begins and ends.

This is the one module that reads the environment, sets threads and exits; the library never calls it, the scripts
in train/ and sample/ do.
"""

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from diffaudio.config import parse

__all__ = ["join_processes", "run_script"]

T = TypeVar("T")


def run_script(main: Callable[[T], None], settings: type[T]) -> None:
    """Call `main` with the settings of the command line; a user's error is one line on stderr and exit code 2."""
    try:
        main(parse(settings))
    except ValueError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)


def join_processes(num_threads: int | None = None, *, patience: timedelta | None = None) -> PartialState:
    """This process among those that were launched.

    Accelerate joins several processes on CPUs only when it is told that they compute there, and leaves them one
    thread each; here they share out all cores.

    Args:
        num_threads: of each process on a CPU, instead of its share.
        patience: how long one waits for the others; None is torch's own, which is made for processes in step.
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu, **({} if patience is None else {"timeout": patience}))
    if on_cpu:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(num_threads or max(1, (os.cpu_count() or 1) // processes))
    return state
