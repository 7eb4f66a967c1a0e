"""`diffaudio sweep`: every sampler with every number of steps and every guidance scale, measured and on one page.

All processes that were launched make sounds, then measure them, by index; the first one writes the tables and the page.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaudio.cli.options import Parser, between
from diffaudio.errors import UserError
from diffaudio.sweep.axes import AXES

if TYPE_CHECKING:
    from diffaudio.evaluation.embed import AudioEmbeddings, Embedder
    from diffaudio.evaluation.sound_files import SoundFile

__all__ = ["run"]

OPTIONS = {"sampler": "--samplers", "guidance_scale": "--guidance"}  # of axes whose option has another name


def run(arguments: list[str]) -> None:
    given = _parser().parse_args(arguments)

    from tqdm import tqdm

    from diffaudio.checkpoint import bundled_model
    from diffaudio.diffusion.settings import GenerationSettings
    from diffaudio.distributed import join_processes
    from diffaudio.evaluation.reference import split_reference
    from diffaudio.evaluation.rows import load_embedder, make_report
    from diffaudio.folder_lock import locked_folder
    from diffaudio.generation.batch import choose_dtype, load_pipeline, process_device
    from diffaudio.generation.prompt_list import read_prompts
    from diffaudio.sweep.folder import Sweep
    from diffaudio.sweep.grid import suitable
    from diffaudio.sweep.results import draw, drawn_metrics, table, write_results
    from diffaudio.sweep.run import (
        batches,
        make,
        measure,
        measure_recordings,
        needs_recordings,
        unmade,
        unmeasured,
        wanted,
    )

    prompts, recordings = read_prompts(given.prompts), _recordings(given)
    axes = {axis: getattr(given, axis) for axis in AXES}

    state = join_processes(patience=timedelta(days=7))  # one may be done hours before the others
    share = slice(state.process_index, None, state.num_processes)
    quiet = not (sys.stderr.isatty() and state.is_local_main_process)
    device = process_device(given.device, state)
    pipe = load_pipeline(given.model, device, choose_dtype(given.dtype, device))
    base = GenerationSettings(duration_s=given.duration, negative_prompt=given.negative_prompt)
    suiting, left_out = suitable(pipe, base, axes)
    if state.is_main_process:
        for name, reason in left_out.items():
            print(f"left out {name}: {reason}")
    labels = given.labels and str(given.labels)
    embedder = load_embedder(given.backbone, given.clip or bundled_model() / "clip", device=device)
    report = make_report(
        embedder,
        [],
        seed=given.seed,
        resamples=given.resamples,
        reference=given.reference and str(given.reference),
        labels=labels,
    )
    lock = locked_folder(given.out, "diffaudio sweep") if state.is_main_process else nullcontext()
    with lock:
        drawn = {"base": base, "seed": given.seed, "takes": given.takes}
        sweep = Sweep.plan(given.out, prompts, axes, suiting, left_out, **drawn)

        # all processes look before any begins, so that they agree on the list
        missing = unmade(pipe, batches(sweep, given.batch_size))
        state.wait_for_everyone()
        mine = missing[share]
        total = sum(len(batch) for _, batch in mine)
        for _ in tqdm(make(pipe, mine), total=total, unit="sound", disable=quiet):
            pass
        state.wait_for_everyone()
        pending = unmeasured(sweep, report)
        lacks_recordings = state.is_main_process and needs_recordings(sweep, report)
        state.wait_for_everyone()
        reference = None
        if recordings and (pending[share] or lacks_recordings):
            embedded = _embed(embedder, recordings, quiet)
            reference = split_reference(embedded, wanted(sweep), seed=given.seed)
        for combination in tqdm(pending[share], unit="combination", disable=quiet):
            measure(sweep, combination, embedder, reference, report)
        if lacks_recordings and reference is not None:
            measure_recordings(sweep, reference, report)
        state.wait_for_everyone()
        rows = table(sweep, report)
        draw(sweep, rows, drawn_metrics(rows)[share])
        state.wait_for_everyone()
        if state.is_main_process:
            facts = {"model": pipe.name_or_path, "device": device.type, "processes": state.num_processes}
            facts |= _facts(given, sweep.axes) | {"diffaudio": report.diffaudio_version}
            write_results(sweep, rows, report, facts)
            sounds = len(prompts) * given.takes
            print(f"{given.out / 'index.html'}: {len(sweep.sounds)} combinations of {sounds} sounds")
    state.destroy_process_group()


def _facts(given: argparse.Namespace, axes: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """What all sounds have in common."""
    facts = {"seconds": given.duration, "takes": given.takes, "seed": given.seed, "batch size": given.batch_size}
    facts |= {} if given.negative_prompt is None else {"negative prompt": given.negative_prompt}
    single = {name: values[0] for name, values in axes.items() if len(values) == 1}
    return facts | {name: value for name, value in single.items() if value != AXES[name].plain}


def _recordings(given: argparse.Namespace) -> "list[SoundFile]":
    """The files of the reference, which are looked for before anything is made.

    Raises:
        ValueError: there are none, or labels without them.
    """
    from diffaudio.evaluation.sound_files import find_sounds, read_texts

    if given.reference is None:
        if given.labels is not None:
            raise UserError("--labels names recordings of the reference; give --reference too, or leave it out")
        return []
    return find_sounds(given.reference, read_texts(given.labels) if given.labels else {})


def _embed(embedder: "Embedder", recordings: "list[SoundFile]", quiet: bool) -> "AudioEmbeddings":
    from tqdm import tqdm

    from diffaudio.evaluation.sound_files import read_sounds

    sounds = tqdm(read_sounds(recordings), total=len(recordings), unit="recording", disable=quiet)
    return embedder.embed(sounds)


def _parser() -> Parser:
    parser = Parser(
        prog="diffaudio sweep",
        description="Make the sounds of a prompt list with every combination of settings, from the same seeds; measure "
        "them and write tables, pictures and a page with players. Run again, it makes and measures what is missing.",
        epilog="Several values stand with commas between them: --steps 10,25,50.",
    )
    parser.add_argument("--prompts", type=Path, required=True, help="a text file, a line a prompt, or .csv or .jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder of the sweep, made where it is missing")
    varied = parser.add_argument_group("what varies", "combinations without effect are left out, with the reason")
    for name, axis in AXES.items():
        varied.add_argument(
            OPTIONS.get(name, f"--{name.replace('_', '-')}"),
            dest=name,
            type=_several(axis.kind),
            required=axis.plain is None,
            default=[axis.plain],
            metavar="A,B,…",
            help=axis.help if axis.plain is None else f"{axis.help} (default: {axis.plain})",
        )
    same = parser.add_argument_group("what all sounds have in common")
    same.add_argument("--model", metavar="FOLDER|ID", help="model folder or hub id (default: the bundled one)")
    same.add_argument("--negative-prompt", metavar="TEXT", help="what to steer away from")
    same.add_argument("--duration", type=between(float, 1, 30), default=5.0, metavar="SECONDS", help="1 to 30")
    same.add_argument("--takes", type=between(int, 1), default=1, help="sounds for each prompt (default: %(default)s)")
    same.add_argument("--seed", type=between(int, 0, 2**63 - 1), default=0, help="of the sweep (default: %(default)s)")
    same.add_argument("--batch-size", type=between(int, 1), default=8, help="sounds at a time (default: %(default)s)")
    same.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    same.add_argument("--dtype", default="auto", help="auto, float32, float16, bfloat16 (default: %(default)s)")
    measured = parser.add_argument_group("how they are measured", "see `diffaudio evaluate`")
    measured.add_argument("--reference", type=Path, metavar="FOLDER", help="real recordings")
    measured.add_argument("--labels", type=Path, metavar="CSV", help="columns file and label, for the recordings")
    measured.add_argument(
        "--backbone",
        nargs="+",
        default=["yamnet"],
        metavar="NAME|FOLDER",
        help="what to measure with (default: yamnet)",
    )
    measured.add_argument("--clip", metavar="FOLDER|NAME", help="whose texts the CLIP-space score takes")
    measured.add_argument("--resamples", type=between(int, 20), default=200, help="draws for each interval")
    return parser


def _several(kind: type) -> Callable[[str], list[Any]]:
    """An argument type: values with commas between them."""

    def parse(text: str) -> list[Any]:
        return [kind(part.strip()) for part in text.split(",")]

    parse.__name__ = f"list of {kind.__name__}"
    return parse
