"""`diffaudio generate`: text -> sound files."""

import secrets
from dataclasses import dataclass
from pathlib import Path

from diffaudio.cli.options import GENERATION_FLAGS, GENERATION_GROUPS, GenerationOptions, check_model
from diffaudio.config import Count, Seed, parse_command
from diffaudio.diffusion.settings import check_prompt
from diffaudio.generation.output_paths import output_paths

__all__ = ["run"]


FLAGS = GENERATION_FLAGS | {"prompts": ("prompt",), "output": ("-o", "--output")}


@dataclass(kw_only=True)
class Options(GenerationOptions):
    """The options of `diffaudio generate`.

    Attributes:
        prompts: description of the sound; several prompts generate several sounds.
        output: .wav or .flac file, or a folder for files named after the prompts; folders are created as needed.
        overwrite: replace existing files; otherwise, sounds in a folder get an unused name, and an existing file name
            is an error.
        seed: random seed of the first sound; each further sound uses the next integer (default: random, printed).
        takes: number of sounds per prompt.
    """

    prompts: list[str]
    output: Path = Path(".")
    overwrite: bool = False
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
    for prompt in prompts:
        check_prompt(prompt)
    settings = given.settings
    check_model(given.model)
    check_model(settings.weak_model)
    paths = output_paths(prompts, given.output, plot=given.plot, overwrite=given.overwrite)

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
