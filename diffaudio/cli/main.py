"""The `diffaudio` command: looks up the subcommand, each a module of `diffaudio.cli`.

Whatever the user got wrong ends in one line on stderr and exit code 2. A subcommand is imported when it is called,
heavy libraries when it needs them.
"""

import argparse
import importlib
import sys

from diffaudio import __version__
from diffaudio.cli.options import Parser
from diffaudio.distributed import let_waiting_threads_sleep
from diffaudio.errors import report_errors

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "synthesise-corpus": "videos from formulas, to try everything on",
    "generate": "text -> sound files",
    "prepare": "videos -> a corpus of clips",
    "encode": "that corpus -> latents and embeddings to train on",
    "inspect": "what is in a corpus, as tables and a page to look and listen",
    "validate": "is every row of a corpus what it should be?",
    "evaluate": "a folder of sound -> numbers that say how good it is",
    "reconstruct": "a sound there and back through an autoencoder: hear what the latents keep",
    "latents": "mean, scale and faults of latents, channel by channel",
    "samplers": "what there is for generate's --sampler",
    "sweep": "samplers, steps and guidance scales compared on a prompt list",
}


def main(arguments: list[str] | None = None) -> int:
    """The entry point of `diffaudio`."""
    let_waiting_threads_sleep()
    return report_errors(lambda: _dispatch(sys.argv[1:] if arguments is None else arguments))


def _dispatch(arguments: list[str]) -> None:
    told = "  ".join(f"{name}: {what}." for name, what in COMMANDS.items())
    parser = Parser(
        prog="diffaudio",
        description="Text to sound, and the way there from a folder of videos.",
        epilog=f"{told}  Each has its own --help.",
    )
    parser.add_argument("--version", action="version", version=f"diffaudio {__version__}")
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    importlib.import_module(f"diffaudio.cli.{given.command.replace('-', '_')}").run(given.arguments)
