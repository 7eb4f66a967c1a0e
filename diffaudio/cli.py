"""The `diffaudio` command: generate, prepare, encode.

Whatever the user got wrong ends in one line on stderr and exit code 2. Heavy libraries are imported by the
subcommand that needs them.
"""

import argparse
import logging
import os
import re
import secrets
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from diffaudio import __version__

__all__ = ["Parser", "add_settings", "between", "main", "report_errors", "slug"]


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


def main(arguments: list[str] | None = None) -> int:
    """The entry point of `diffaudio`."""
    return report_errors(lambda: _dispatch(sys.argv[1:] if arguments is None else arguments))


def _dispatch(arguments: list[str]) -> None:
    commands = {"generate": _generate, "prepare": _prepare, "encode": _encode}
    parser = Parser(
        prog="diffaudio",
        description="Text to sound, and the way there from a folder of videos.",
        epilog="generate: text -> sound files.  prepare: videos -> a corpus of clips.  "
        "encode: that corpus -> latents and embeddings to train on.  Each has its own --help.",
    )
    parser.add_argument("--version", action="version", version=f"diffaudio {__version__}")
    parser.add_argument("command", choices=commands)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    commands[given.command](given.arguments)


def _generate(arguments: list[str]) -> None:
    parser = Parser(prog="diffaudio generate", description="Make sounds from text.")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what to hear; several make several sounds")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("."),
        help=".wav or .flac file (numbered where there are several sounds), or a folder that is there, "
        "for files named after the prompts; files that are there are replaced (default: the current folder)",
    )
    parser.add_argument(
        "--seed",
        type=between(int, 0, 2**63 - 1),
        help="of the first sound; each further one has the next number (default: drawn, and printed)",
    )
    parser.add_argument(
        "--takes", type=between(int, 1), default=1, help="sounds for each prompt (default: %(default)s)"
    )
    add_settings(parser)
    given = parser.parse_args(arguments)
    prompts = [prompt for prompt in given.prompts for _ in range(given.takes)]
    paths = _paths(prompts, given.output)

    from tqdm import tqdm

    from diffaudio.rendering import (
        Item,
        Settings,
        choose_device,
        choose_dtype,
        load_pipeline,
        progress_callback,
        render,
    )

    device = choose_device(given.device)
    dtype = choose_dtype(given.dtype, device)
    seed = secrets.randbelow(2**31) if given.seed is None else given.seed
    numbered = enumerate(zip(prompts, paths, strict=True))
    items = [Item(prompt, (seed + index) % 2**63, path) for index, (prompt, path) in numbered]
    settings = Settings(given.steps, given.guidance_scale, given.sampler, given.duration, given.negative_prompt)
    pipe = load_pipeline(given.model, device, dtype)
    with progress_callback(-(-len(items) // given.batch_size)) as on_step:
        for item in render(pipe, items, settings, batch_size=given.batch_size, plot=given.plot, on_step=on_step):
            tqdm.write(f"{item.path} ({given.duration:g} s, seed {item.seed})")


def _paths(prompts: list[str], output: Path) -> list[Path]:
    """Where each sound goes. Names that come up more than once are numbered, after a sign that no slug holds.

    Raises:
        ValueError: the folder is not there or cannot be written to, or the file is neither .wav nor .flac.
    """
    from diffaudio.audio import check_audio_path

    if not output.suffix and not output.is_dir():
        raise ValueError(f"{output}: there is no such folder; make it first, or name a .wav or .flac file")
    if output.is_dir():
        folder, suffix, names = output, ".wav", [slug(prompt) for prompt in prompts]
    else:
        check_audio_path(output)
        folder, suffix, names = output.parent, output.suffix, [output.stem] * len(prompts)
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{folder}: this folder cannot be written to")
    total, seen, paths = Counter(names), Counter[str](), []
    for name in names:
        seen[name] += 1
        paths.append(folder / (f"{name}_{seen[name]}{suffix}" if total[name] > 1 else f"{name}{suffix}"))
    return paths


def slug(prompt: str) -> str:
    """A file name without suffix out of a prompt: its letters and digits, of any script, joined by hyphens."""
    return re.sub(r"[\W_]+", "-", prompt.lower()).strip("-")[:50].strip("-") or "sound"


def _prepare(arguments: list[str]) -> None:
    from diffaudio.corpus.prepare import PrepareSettings, prepare

    parser = Parser(
        prog="diffaudio prepare",
        description="Cut videos into clips of sound with a few pictures. Running it again continues.",
    )
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="media files, and folders of them")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the corpus")
    described = dict(re.findall(r"^ +(\w+): (.+)$", PrepareSettings.__doc__ or "", re.MULTILINE))
    for field in fields(PrepareSettings):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=float if "float" in str(field.type) else int,
            default=field.default,
            help=f"{described[field.name].replace('%', '%%')} (default: %(default)s)",
        )
    given = vars(parser.parse_args(arguments))
    sources, output = given.pop("sources"), given.pop("output")
    report = prepare(sources, output, PrepareSettings(**given), progress=sys.stderr.isatty())
    print(f"{output}: {report.clips} clips, {report.seconds / 60:.1f} minutes, from {report.sources} files")
    if report.dropped:
        reasons = ", ".join(f"{reason} {count}" for reason, count in report.reasons.items())
        print(f"left out {report.dropped} ({reasons}); see {output / 'dropped.csv'}")


def _encode(arguments: list[str]) -> None:
    parser = Parser(
        prog="diffaudio encode",
        description="Turn a corpus of clips into latents and CLIP embeddings to train on. Running it again continues.",
    )
    parser.add_argument("corpus", type=Path, help="folder that `diffaudio prepare` made")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the encoded corpus")
    parser.add_argument(
        "--model", metavar="FOLDER|ID", help="whose autoencoder and CLIP to use (default: the one that comes along)"
    )
    parser.add_argument("--autoencoder", type=Path, metavar="FOLDER", help="instead of the model's")
    parser.add_argument(
        "--clip",
        metavar="FOLDER|NAME",
        help="instead of the model's: a folder, an hf-hub: id, or open_clip's name and tag, such as ViT-B-32/openai",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    parser.add_argument("--batch-size", type=between(int, 1), default=16, help="clips at a time (default: %(default)s)")
    given = parser.parse_args(arguments)

    from diffaudio.corpus.encode import encode
    from diffaudio.model_folder import load_encoders
    from diffaudio.rendering import choose_device

    device = choose_device(given.device)
    autoencoder, clip = load_encoders(given.model, autoencoder=given.autoencoder, clip=given.clip)
    manifest = encode(
        given.corpus,
        given.output,
        autoencoder=autoencoder,
        clip=clip,
        device=device,
        batch_size=given.batch_size,
        progress=sys.stderr.isatty(),
    )
    print(f"{given.output}: {manifest['clips']} clips, {manifest['seconds'] / 60:.1f} minutes")
