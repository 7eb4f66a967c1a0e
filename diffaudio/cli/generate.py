"""`diffaudio generate`: text -> sound files."""

import os
import secrets
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from diffaudio.cli.options import GENERATION_FLAGS, GENERATION_GROUPS, GenerationOptions, check_model
from diffaudio.config import Count, Seed, parse_command
from diffaudio.errors import UserError
from diffaudio.file_names import slug

__all__ = ["run"]


FLAGS = GENERATION_FLAGS | {"prompts": ("prompt",), "output": ("-o", "--output")}


@dataclass(kw_only=True)
class Options(GenerationOptions):
    """The options of the command.

    Attributes:
        prompts: what to hear; several make several sounds.
        output: .wav or .flac file (numbered where there are several sounds), or a folder for files named after the
            prompts; folders are made where they are missing, files that are there are replaced.
        seed: of the first sound; each further one has the next number (default: drawn, and printed).
        takes: sounds for each prompt.
    """

    prompts: list[str]
    output: Path = Path(".")
    seed: Seed | None = None
    takes: Count = 1


def run(arguments: list[str]) -> None:
    given = parse_command(
        Options,
        arguments,
        program="diffaudio generate",
        description="Make sounds from text.",
        flags=FLAGS,
        groups=GENERATION_GROUPS,
    )
    prompts = [prompt for prompt in given.prompts for _ in range(given.takes)]
    if not all(prompt.strip() for prompt in prompts):
        raise UserError("a prompt is empty; say in a few words what to hear")
    settings = given.settings
    check_model(given.model)
    check_model(settings.weak_model)
    paths = _paths(prompts, given.output)

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
            tqdm.write(f"{item.path} ({settings.duration_s:g} s, seed {item.seed})")


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
