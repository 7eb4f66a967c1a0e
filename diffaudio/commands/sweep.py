"""`diffaudio sweep`: every sampler with every number of steps and every guidance scale, measured and to be heard.

    OUT/sounds/COMBINATION/   the sounds, each with its sidecar and a small spectrogram
    OUT/measured/             what was measured of each combination
    OUT/results.csv, .parquet, pictures/, index.html

All processes make sounds, then measure, by index; the first one writes the tables and the page. What is there is
kept: run again, a sweep goes on where it was stopped.
"""

import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaudio.commandline import Parser, between

if TYPE_CHECKING:
    from diffaudio.grid import Combination
    from diffaudio.pipeline import DiffAudioPipeline
    from diffaudio.rendering import Item

__all__ = ["run"]


def run(arguments: list[str]) -> None:
    given = _parser().parse_args(arguments)

    from diffaudio.grid import combinations, suitable
    from diffaudio.launch import join_processes
    from diffaudio.metrics.sweep import write_tables
    from diffaudio.prompts import items_of, read_prompts
    from diffaudio.rendering import Settings, choose_dtype, load_pipeline, process_device

    prompts = read_prompts(given.prompts)
    axes = {"sampler": given.samplers, "steps": given.steps, "guidance_scale": given.guidance}
    base = Settings(given.steps[0], given.guidance[0], given.samplers[0], given.duration, given.negative_prompt)
    grid = combinations(base, axes)

    state = join_processes()
    device = process_device(given.device, state)
    pipe = load_pipeline(given.model, device, choose_dtype(given.dtype, device))
    suiting, refused = suitable(pipe, grid, axes)
    if state.is_main_process:
        for name, reason in refused.items():
            print(f"left out {name}: {reason}")
    sounds = {
        each: items_of(prompts, given.out / "sounds" / each.name, given.seed, takes=given.takes, suffix=".flac")
        for each in suiting
    }
    units = _units(sounds, given.batch_size)[state.process_index :: state.num_processes]
    quiet = not (sys.stderr.isatty() and state.is_local_main_process)
    _make(pipe, units, quiet)
    state.wait_for_everyone()
    if state.is_main_process:
        write_tables(given.out, [_measure(each, items) for each, items in sounds.items()], {"model": pipe.name_or_path})
        print(f"{given.out}: {len(suiting)} combinations, {sum(map(len, sounds.values()))} sounds")
    state.destroy_process_group()


def _units(sounds: "dict[Combination, list[Item]]", batch_size: int) -> "list[tuple[Combination, list[Item]]]":
    """All sounds in batches, as even as can be, so that the timing of one compares with that of another."""
    units = []
    for combination, items in sounds.items():
        count = -(-len(items) // batch_size)
        edges = [len(items) * index // count for index in range(count + 1)]
        units += [(combination, items[start:end]) for start, end in pairwise(edges)]
    return units


def _make(pipe: "DiffAudioPipeline", units: "list[tuple[Combination, list[Item]]]", quiet: bool) -> None:
    """Make what is missing of some batches; each prompt is embedded once."""
    from tqdm import tqdm

    from diffaudio.rendering import is_made, render

    model = pipe.name_or_path
    missing = [(each, [item for item in batch if not is_made(item, each.settings, model)]) for each, batch in units]
    prompts = list(dict.fromkeys(item.prompt for _, batch in missing for item in batch))
    embeds = dict(zip(prompts, pipe.encode_prompt(prompts, warn_if_far=True), strict=True)) if prompts else {}
    with tqdm(total=sum(len(batch) for _, batch in missing), unit="sound", disable=quiet) as bar:
        for combination, batch in missing:
            for item in batch:
                item.path.parent.mkdir(parents=True, exist_ok=True)
            for _ in render(pipe, batch, combination.settings, batch_size=max(1, len(batch)), prompt_embeds=embeds):
                bar.update()


def _measure(combination: "Combination", items: "list[Item]") -> dict[str, Any]:
    """A row of the table."""
    from diffaudio.audio import read_audio
    from diffaudio.grid import AXES
    from diffaudio.metrics.sweep import timing_columns

    sidecars = [json.loads(item.path.with_suffix(".json").read_text(encoding="utf-8")) for item in items]
    peaks = [float(read_audio(item.path)[0].abs().max()) for item in items]
    quality = {
        "silent": sum(peak < 1e-3 for peak in peaks) / len(peaks),
        "clipped": sum(peak >= 1 for peak in peaks) / len(peaks),
    }
    return {
        "combination": combination.name,
        **{axis: getattr(combination.settings, axis) for axis in AXES},
        "passes": combination.passes,
        "sounds": len(items),
        **timing_columns(sidecars),
        **quality,
    }


def _parser() -> Parser:
    parser = Parser(
        prog="diffaudio sweep",
        description="Make the sounds of a prompt list with every combination of settings, from the same seeds; measure "
        "and compare them. Run again, it makes only what is missing.",
    )
    parser.add_argument("--prompts", type=Path, required=True, help="a text file, a line a prompt, or .csv or .jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder of the sweep, made where it is missing")
    parser.add_argument("--model", metavar="FOLDER|ID", help="model folder or hub id (default: the bundled one)")
    parser.add_argument("--samplers", type=_several(str), required=True, metavar="NAME,…", help="such as ddim,heun")
    parser.add_argument("--steps", type=_several(between(int, 1, 1000)), default=[25], metavar="N,…")
    parser.add_argument("--guidance", type=_several(between(float, 0, 100)), default=[3.0], metavar="SCALE,…")
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what to steer away from, in all combinations")
    parser.add_argument(
        "--takes", type=between(int, 1), default=1, help="sounds for each prompt (default: %(default)s)"
    )
    parser.add_argument("--seed", type=between(int, 0, 2**63 - 1), default=0, help="of the run (default: %(default)s)")
    parser.add_argument(
        "--duration", type=between(float, 1, 30), default=5.0, metavar="SECONDS", help="1 to 30 (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=between(int, 1), default=8, help="sounds at a time (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, float16, bfloat16")
    return parser


def _several(parse: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """An argument type: values of another one, with commas between them."""

    def parse_all(text: str) -> list[Any]:
        return [parse(part.strip()) for part in text.split(",")]

    parse_all.__name__ = f"list of {parse.__name__}s"
    return parse_all
