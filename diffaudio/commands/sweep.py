"""`diffaudio sweep`: every sampler with every number of steps and every guidance scale, measured and to be heard.

All processes that were launched make sounds, then measure them, by index; the first one writes the tables and the page.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffaudio.commandline import Parser, between

__all__ = ["run"]


def run(arguments: list[str]) -> None:
    given = _parser().parse_args(arguments)

    from tqdm import tqdm

    from diffaudio import __version__
    from diffaudio.grid import combinations, suitable
    from diffaudio.launch import join_processes
    from diffaudio.metrics.evaluation import RESAMPLES
    from diffaudio.metrics.heard import Listener
    from diffaudio.metrics.results import Report
    from diffaudio.prompts import read_prompts
    from diffaudio.rendering import Settings, choose_dtype, load_pipeline, process_device
    from diffaudio.sweeping import Sweep, batches, make, measure, write_results

    prompts = read_prompts(given.prompts)
    axes = {"sampler": given.samplers, "steps": given.steps, "guidance_scale": given.guidance}
    base = Settings(given.steps[0], given.guidance[0], given.samplers[0], given.duration, given.negative_prompt)
    grid = combinations(base, axes)

    state = join_processes()
    share = slice(state.process_index, None, state.num_processes)
    device = process_device(given.device, state)
    pipe = load_pipeline(given.model, device, choose_dtype(given.dtype, device))
    suiting, left_out = suitable(pipe, grid, axes)
    if state.is_main_process:
        for name, reason in left_out.items():
            print(f"left out {name}: {reason}")
    sweep = Sweep.of(given.out, prompts, axes, suiting, left_out, seed=given.seed, takes=given.takes)

    mine = batches(sweep, given.batch_size)[share]
    quiet = not (sys.stderr.isatty() and state.is_local_main_process)
    for _ in tqdm(make(pipe, mine), total=sum(len(batch) for _, batch in mine), unit="sound", disable=quiet):
        pass
    state.wait_for_everyone()
    listener, reference, report = Listener([]), None, Report([], [], given.seed, RESAMPLES)
    for combination in tqdm(suiting[share], unit="combination", disable=quiet):
        measure(sweep, combination, listener, reference, report)
    state.wait_for_everyone()
    if state.is_main_process:
        facts = {
            "model": pipe.name_or_path,
            "prompts": len(prompts),
            "takes": given.takes,
            "duration": f"{given.duration:g} s",
            "seed": given.seed,
            "device": str(device),
            "processes": state.num_processes,
            "batch size": given.batch_size,
            "diffaudio": __version__,
        }
        write_results(sweep, report, facts)
        print(f"{given.out / 'index.html'}: {len(suiting)} combinations of {len(prompts) * given.takes} sounds")
    state.destroy_process_group()


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
