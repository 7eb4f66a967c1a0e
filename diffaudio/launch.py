"""What a script under `accelerate launch` or `torchrun` does first: find its place among the processes.

This is the one module that reads the environment and sets threads; the library never calls it, the scripts in
train/ and sample/ do.
"""

import os

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

__all__ = ["join_processes"]


def join_processes(num_threads: int | None = None) -> PartialState:
    """This process among those that were launched.

    Accelerate joins several processes on CPUs only when it is told that they compute there, and leaves them one
    thread each; here they share out all cores.

    Args:
        num_threads: of each process on a CPU, instead of its share.
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu)
    if on_cpu:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(num_threads or max(1, (os.cpu_count() or 1) // processes))
    return state
