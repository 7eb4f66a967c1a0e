"""`diffaudio sweep`: every combination of sampler, number of steps and guidance scale, evaluated on one page.

All launched processes generate sounds, then evaluate them, split by index; the first writes the tables and the page.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import MISSING, dataclass, field, make_dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaudio.cli.options import check_exists, check_model, check_resamples
from diffaudio.config import Count, Seed, parse_command
from diffaudio.diffusion.sampler_table import check_sampler
from diffaudio.diffusion.settings import GenerationSettings
from diffaudio.errors import UserError
from diffaudio.queries.query import check_settings
from diffaudio.sweep.axes import AXES

if TYPE_CHECKING:
    from diffaudio.evaluation.embed import AudioEmbeddings, Embedder
    from diffaudio.evaluation.sound_files import SoundFile

__all__ = ["run"]

# An axis takes several comma-separated values; its option has the same name as in `diffaudio generate`.
AXIS_FLAGS = {
    "sampler": ("--sampler", "--samplers"),
    "rescale": ("--guidance-rescale",),
    "interval": ("--guidance-interval",),
    "schedule": ("--guidance-schedule",),
}

_AXIS_FIELDS = [
    (name, str, field(default=MISSING if axis.default is None else str(axis.default))) for name, axis in AXES.items()
]
_AXIS_HELP = "".join(f"    {name}: {axis.help}.\n" for name, axis in AXES.items())
Axes: Any = make_dataclass("Axes", _AXIS_FIELDS, namespace={"__doc__": f"What varies.\n\nAttributes:\n{_AXIS_HELP}"})


@dataclass(kw_only=True)
class Options:
    """The options of `diffaudio sweep`.

    Attributes:
        prompts: prompt list: a text file with one prompt per line, or a .csv or .jsonl file.
        out: folder for the sweep, created if it does not exist.
        model: model folder or hub id (default: the bundled model).
        negative_prompt: description of what to guide away from.
        negative_image: image to guide away from, instead of a text.
        templates: sentences with {} in place of the text, over which a text's embedding is averaged (default: the
            model's own).
        image_bridge: name of a retrieval bridge through whose training images the embeddings of images and videos pass.
        duration: duration of each sound, in seconds.
        takes: number of sounds per prompt.
        seed: random seed of the sweep.
        batch_size: sounds per batch.
        device: auto, cpu, cuda, cuda:N (such as cuda:1) or mps.
        dtype: auto, float32, float16 or bfloat16.
        reference: folder of real recordings to compare with.
        labels: CSV with the columns file and label, for the recordings.
        backbone: one or more embedding models, see `diffaudio evaluate`.
        clip: CLIP whose text embeddings the CLIP-space score uses, see `diffaudio evaluate`.
        resamples: number of resamples for each confidence interval, at least 20.
    """

    prompts: Path
    out: Path
    axes: Axes  # pyright: ignore[reportInvalidTypeForm]
    model: str | None = None
    negative_prompt: str | None = None
    negative_image: str | None = None
    templates: list[str] = field(default_factory=list)
    image_bridge: str | None = None
    duration: float = GenerationSettings.duration_s
    takes: Count = 1
    seed: Seed = 0
    batch_size: Count = 8
    device: str = "auto"
    dtype: str = "auto"
    reference: Path | None = None
    labels: Path | None = None
    backbone: list[str] = field(default_factory=lambda: ["yamnet"])
    clip: str | None = None
    resamples: Count = 200


def run(arguments: list[str]) -> None:
    given = parse_command(
        Options,
        arguments,
        program="diffaudio sweep",
        description="Make the sounds of a prompt list with every combination of settings, from the same seeds; measure "
        "them and write tables, pictures and a page with players. Run again, it makes and measures what is missing.",
        epilog="Several values stand with commas between them: --steps 10,25,50. Combinations without effect are left "
        "out, with the reason.",
        flags={"out": ("-o", "--out")} | {f"axes.{name}": flags for name, flags in AXIS_FLAGS.items()},
        groups={"axes.": "what varies"},
    )
    if given.labels is not None and given.reference is None:
        raise UserError("--labels names recordings of the reference; give --reference too, or leave it out")
    check_exists(given.prompts, given.reference, given.labels)
    check_model(given.model)
    check_resamples(given.resamples)
    axes = {name: _values(name, getattr(given.axes, name)) for name in AXES}
    base = GenerationSettings(
        duration_s=given.duration,
        negative_prompt=given.negative_prompt,
        negative_image=given.negative_image,
        templates=given.templates,
        image_bridge=given.image_bridge,
    )
    for sampler in axes["sampler"]:
        check_sampler(sampler, None, None)

    from tqdm import tqdm

    from diffaudio.checkpoint import bundled_model
    from diffaudio.distributed import join_processes
    from diffaudio.evaluation.reference import split_reference
    from diffaudio.evaluation.rows import load_embedder, make_report
    from diffaudio.folder_lock import locked_folder
    from diffaudio.generation.batch import choose_dtype, load_pipeline, process_device
    from diffaudio.generation.prompt_list import read_prompts
    from diffaudio.generation.query_media import check_readable
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
    queries = [prompt.query for prompt in prompts]
    check_settings(queries, base)
    check_readable(queries, base)

    state = join_processes(patience=timedelta(days=7))  # one may finish hours before the others
    share = slice(state.process_index, None, state.num_processes)
    quiet = not (sys.stderr.isatty() and state.is_local_main_process)
    device = process_device(given.device, state)
    pipe = load_pipeline(given.model, device, choose_dtype(given.dtype, device))
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

        # all processes check before any starts, so that they agree on the list
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


def _facts(given: Options, axes: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Settings shared by all sounds."""
    facts = {"seconds": given.duration, "takes": given.takes, "seed": given.seed, "batch size": given.batch_size}
    conditioning = {
        "negative prompt": given.negative_prompt,
        "negative image": given.negative_image,
        "templates": given.templates or None,
        "image bridge": given.image_bridge,
    }
    facts |= {name: value for name, value in conditioning.items() if value is not None}
    single = {name: values[0] for name, values in axes.items() if len(values) == 1}
    return facts | {name: value for name, value in single.items() if value != AXES[name].default}


def _recordings(given: Options) -> "list[SoundFile]":
    """The files of the reference, located before anything is generated.

    Raises:
        ValueError: there are none.
    """
    from diffaudio.evaluation.sound_files import find_sounds, read_texts

    if given.reference is None:
        return []
    return find_sounds(given.reference, read_texts(given.labels) if given.labels else {})


def _embed(embedder: "Embedder", recordings: "list[SoundFile]", quiet: bool) -> "AudioEmbeddings":
    from tqdm import tqdm

    from diffaudio.evaluation.sound_files import read_sounds

    sounds = tqdm(read_sounds(recordings), total=len(recordings), unit="recording", disable=quiet)
    return embedder.embed(sounds)


def _values(name: str, text: str) -> list[Any]:
    """The comma-separated values of an axis."""
    kind = AXES[name].kind
    try:
        return [kind(part.strip()) for part in text.split(",")]
    except ValueError:
        expected = {int: "whole numbers", float: "numbers"}.get(kind, "values")
        flag = AXIS_FLAGS.get(name, (f"--{name.replace('_', '-')}",))[0]
        raise UserError(f"{flag} is {text!r}; give {expected} with commas between them") from None
