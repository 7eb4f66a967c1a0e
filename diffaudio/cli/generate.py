"""`diffaudio generate`: text -> sound files."""

import os
import secrets
from collections import Counter
from pathlib import Path

from diffaudio.cli.options import Parser, add_settings, between, read_settings
from diffaudio.errors import UserError
from diffaudio.file_names import slug

__all__ = ["run"]


def run(arguments: list[str]) -> None:
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
    settings = read_settings(given)

    from tqdm import tqdm

    from diffaudio.generation.batch import (
        Item,
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
    pipe = load_pipeline(given.model, device, dtype)
    with progress_callback(-(-len(items) // given.batch_size)) as on_step:
        for item in render(pipe, items, settings, batch_size=given.batch_size, plot=given.plot, on_step=on_step):
            tqdm.write(f"{item.path} ({given.duration:g} s, seed {item.seed})")


def _paths(prompts: list[str], output: Path) -> list[Path]:
    """Where each sound goes. Names that come up more than once are numbered, after a sign that no slug holds.

    Raises:
        ValueError: the folder is not there or cannot be written to, or the file is neither .wav nor .flac.
    """
    from diffaudio.media.audio import check_audio_path

    if not output.suffix and not output.is_dir():
        raise UserError(f"{output}: there is no such folder; make it first, or name a .wav or .flac file")
    if output.is_dir():
        folder, suffix, names = output, ".wav", [slug(prompt) for prompt in prompts]
    else:
        check_audio_path(output)
        folder, suffix, names = output.parent, output.suffix, [output.stem] * len(prompts)
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: this folder cannot be written to")
    total, seen, paths = Counter(names), Counter[str](), []
    for name in names:
        seen[name] += 1
        paths.append(folder / (f"{name}_{seen[name]}{suffix}" if total[name] > 1 else f"{name}{suffix}"))
    return paths
