"""What all commands and scripts share: the parser, the options that say how to generate, how errors are told."""

import argparse
import logging
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

__all__ = ["Parser", "add_settings", "between", "report_errors", "slug"]


class Parser(argparse.ArgumentParser):
    """argparse, with errors as ValueError, so that they are told like all others."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def between(kind: type, low: float, high: float | None = None) -> Callable[[str], Any]:
    """An argument type: a number from `low` to `high`."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not (low <= value and (high is None or value <= high)):
            allowed = f"{low:g} or more" if high is None else f"{low:g} to {high:g}"
            raise argparse.ArgumentTypeError(f"{text} is out of range; choose {allowed}")
        return value

    parse.__name__ = {int: "whole number", float: "number"}[kind]
    return parse


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The options that say how to generate; sample/generate.py has the same."""
    parser.add_argument(
        "--model", metavar="FOLDER|ID", help="model folder or hub id (default: the one that comes along)"
    )
    parser.add_argument("--steps", type=between(int, 1, 1000), default=25, help="sampling steps (default: %(default)s)")
    parser.add_argument(
        "--guidance-scale",
        type=between(float, 0, 100),
        default=3.0,
        help="0 ignores the prompt, 1 follows it, more exaggerates it (default: %(default)s)",
    )
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what to steer away from")
    parser.add_argument("--sampler", default="ddim", help="ddim, dpm++2m, euler, heun, unipc, … (default: %(default)s)")
    parser.add_argument(
        "--duration",
        type=between(float, 1, 30),
        default=5.0,
        metavar="SECONDS",
        help="1 to 30 (default: %(default)s)",
    )
    parser.add_argument("--batch-size", type=between(int, 1), default=8, help="sounds at a time (default: %(default)s)")
    parser.add_argument("--plot", action="store_true", help="draw each sound's spectrogram beside it (.png)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        default="auto",
        help="auto, float32, float16, bfloat16 (default: float16 on CUDA, float32 elsewhere)",
    )


def report_errors(run: Callable[[], None]) -> int:
    """Run, with warnings and errors told in a line each.

    Returns:
        The exit code: 0, or 2 where the user can mend what went wrong.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("diffaudio: warning: %(message)s"))
    logger = logging.getLogger("diffaudio")
    logger.handlers, logger.propagate = [handler], False  # open_clip gives the root logger a handler of its own
    try:
        run()
    except (ValueError, OSError) as error:
        print(f"diffaudio: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        print("diffaudio: error: the GPU's memory is too small; lower --batch-size or --duration", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("diffaudio: stopped", file=sys.stderr)
        return 130
    finally:
        logger.propagate = True
    return 0


def slug(prompt: str) -> str:
    """A file name without suffix out of a prompt: its letters and digits, of any script, joined by hyphens."""
    return re.sub(r"[\W_]+", "-", prompt.lower()).strip("-")[:50].strip("-") or "sound"
