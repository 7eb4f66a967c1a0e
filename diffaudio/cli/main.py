"""The `diffaudio` command: dispatches to the subcommands, each a module of `diffaudio.cli`.

User errors are reported in one line on stderr, with exit status 2. A subcommand is imported when it is called, and
heavy libraries only when it needs them.
"""

import difflib
import importlib
import sys

from diffaudio import __version__
from diffaudio.distributed import let_waiting_threads_sleep
from diffaudio.errors import UserError, report_errors

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "synthesise-corpus": "videos from formulas, to try everything on",
    "generate": "text -> sound files",
    "prepare": "videos -> a corpus of clips",
    "encode": "that corpus -> latents and embeddings to train on",
    "inspect": "what is in a corpus, as tables and a page to look and listen",
    "validate": "is every row of a corpus what it should be?",
    "evaluate": "a folder of sound -> numbers that say how good it is",
    "tag": "sound files -> what a classifier finds in them",
    "reconstruct": "a sound encoded and decoded again: hear what the latents keep",
    "latents": "mean, scale and faults of latents, channel by channel",
    "average": "averages of a training run -> a model, of a length chosen afterwards",
    "samplers": "the samplers for --sampler of generate",
    "merge": "a model and LoRA adapters -> a model of its own",
    "doctor": "what is missing or slow on this machine?",
    "sweep": "samplers, steps and guidance scales compared on a prompt list",
}


def main(arguments: list[str] | None = None) -> int:
    """The entry point of `diffaudio`; returns the exit status."""
    let_waiting_threads_sleep()
    return report_errors(lambda: _dispatch(sys.argv[1:] if arguments is None else arguments))


def _dispatch(arguments: list[str]) -> None:
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help"):
        print(_help())
    elif command == "--version":
        print(f"diffaudio {__version__}")
    elif command in COMMANDS:
        importlib.import_module(f"diffaudio.cli.{command.replace('-', '_')}").run(rest)
    else:
        what = "option" if command.startswith("-") else "command"
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(COMMANDS)}"
        raise UserError(f"unknown {what} {command!r}; {hint}")


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
    return (
        "usage: diffaudio [--help] [--version] COMMAND ...\n\n"
        "Text to sound, and the way there from a folder of videos.\n\n"
        f"commands, each with a --help of its own:\n{commands}"
    )
