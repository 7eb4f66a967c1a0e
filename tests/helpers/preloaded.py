"""Commands started in milliseconds: forked from a process that has imported already what they need."""

import importlib
import multiprocessing
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COMMANDS = ("encode", "generate", "prepare", "sweep")
LIBRARIES = (
    "accelerate", "diffusers", "open_clip", "pebble", "torch.utils.tensorboard", "transformers",
    "diffaudio.checkpoint", "diffaudio.training.sample_logging",
)  # fmt: skip

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([*(f"diffaudio.cli.{command}" for command in COMMANDS), *LIBRARIES])


def start_preloaded(command: Sequence[str | Path], log: Path) -> Any:
    """Begin a command whose output is added to `log`.

    Args:
        command: "diffaudio" or the path of a script, and its arguments.

    Returns:
        A `multiprocessing.Process`; its `exitcode` is the exit status.
    """
    process = _context.Process(target=_run, args=([str(argument) for argument in command], str(log)))
    process.start()
    return process


def _run(command: list[str], log: str) -> None:
    sys.path[:0] = [str(Path(__file__).resolve().parents[2])]
    sys.argv = command
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(file, stream)
    if command[0] != "diffaudio":
        runpy.run_path(command[0], run_name="__main__")
        return
    main = importlib.import_module("diffaudio.__main__")
    sys.modules["__main__"] = main  # what a worker of `prepare` imports first
    sys.exit(main.main())
