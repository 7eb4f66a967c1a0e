"""`diffaudio evaluate bridge`: what each bridge of a model is worth, beside queries by pictures."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaudio.cli.options import check_exists, check_model, check_resamples
from diffaudio.config import Count, NonNegative, NonNegativeCount, Positive, Seed, Share, parse_command
from diffaudio.diffusion.settings import GenerationSettings
from diffaudio.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from diffaudio.evaluation.embed import AudioEmbeddings, Embedder
    from diffaudio.evaluation.reference import Reference
    from diffaudio.evaluation.report import Metric, Row
    from diffaudio.evaluation.sound_files import SoundFile, Texts
    from diffaudio.models.bridge.bridges import Bridge
    from diffaudio.pipeline import DiffAudioPipeline

__all__ = ["run"]


@dataclass(kw_only=True)
class Options:
    """The options of `diffaudio evaluate bridge`.

    Attributes:
        data: encoded corpus, made by `diffaudio encode` with the model's CLIP; its pictures are the image queries.
        labels: CSV with the columns file and label, for the clips of the corpus and for the recordings.
        model: model folder or hub id (default: the bundled model).
        bridge: one or more bridges, by the names, folders or hub ids that `diffaudio generate --bridge` takes
            (default: all of the model's; `none` is always among them).
        image_bridge: name of a retrieval bridge that pictures pass too, in a row of their own, as
            `diffaudio generate --image-bridge` has it.
        held_out: share of the sources that training held out; only these are used (0: all, which the model may have
            been trained on).
        sounds: number of queries for which every bridge generates a sound; 0 only measures CLIP's space.
        reference: folder of real recordings to compare with; without it, no distances are computed.
        recordings: most recordings to read from it, of all labels as evenly as can be.
        backbone: one or more embedding models, see `diffaudio evaluate`.
        output: folder of the results, created if it does not exist; sounds that are there are not made again.
        seed: random seed of all draws.
        resamples: number of resamples for each confidence interval, at least 20.
        batch_size: sounds per batch.
        device: auto, cpu, cuda, cuda:N (such as cuda:1) or mps.
        dtype: auto, float32, float16 or bfloat16.
        sampler: sampler of the sounds; `diffaudio samplers` lists them.
        steps: number of sampling steps.
        guidance_scale: 0 ignores the query, 1 uses the conditional prediction, above 1 extrapolates.
        duration: duration of each sound, in seconds.
    """

    data: Path
    labels: Path
    model: str | None = None
    bridge: list[str] = field(default_factory=list)
    image_bridge: str | None = None
    held_out: Share = 0.0
    sounds: NonNegativeCount = 50
    reference: Path | None = None
    recordings: Count = 400
    backbone: list[str] = field(default_factory=lambda: ["yamnet"])
    output: Path = Path("bridges")
    seed: Seed = 0
    resamples: Count = 200
    batch_size: Count = 8
    device: str = "auto"
    dtype: str = "auto"
    sampler: str = GenerationSettings.sampler
    steps: Count = GenerationSettings.steps
    guidance_scale: NonNegative = GenerationSettings.guidance_scale
    duration: Positive = GenerationSettings.duration_s


def run(arguments: list[str]) -> None:
    given = parse_command(
        Options,
        arguments,
        program="diffaudio evaluate bridge",
        description="Compare the ways from texts to the pictures' embeddings that a model was trained on: in CLIP's "
        "space, and by the sounds that they lead to.",
        epilog="Each labelled clip is a query, by the words of its label through every bridge, and by its pictures. "
        "`gap_closed` is how far a bridge gets from no bridge (0) to pictures (1). Labels are for this measurement "
        "only; no bridge sees them.",
        flags={"output": ("-o", "--output")},
    )
    check_exists(given.data, given.labels, given.reference)
    check_model(given.model)
    check_resamples(given.resamples)
    if given.reference is not None and not given.sounds:
        raise UserError("--reference has no effect with --sounds 0; leave one of the two out")
    settings = GenerationSettings(
        sampler=given.sampler, steps=given.steps, guidance_scale=given.guidance_scale, duration_s=given.duration
    )
    if given.output.exists() and not given.output.is_dir():
        raise UserError(f"{given.output}: is no folder; name one for the results")

    from diffaudio.corpus.datasets.latents import LatentDataset
    from diffaudio.evaluation.bridges.compare import Draws, compare_bridges
    from diffaudio.evaluation.bridges.queries import labelled_queries
    from diffaudio.evaluation.bridges.results import write_results
    from diffaudio.evaluation.bridges.sounds import PICTURES, generate, map_texts, read_generated
    from diffaudio.evaluation.rows import load_embedder, make_report
    from diffaudio.evaluation.sound_files import read_texts
    from diffaudio.generation.batch import choose_device, choose_dtype, load_pipeline

    texts = read_texts(given.labels)
    device = choose_device(given.device)
    pipe = load_pipeline(given.model, device, choose_dtype(given.dtype, device))
    split: Any = {"held_out": given.held_out, "split": "held_out"} if given.held_out else {}
    dataset = LatentDataset(given.data, **split)
    _check_clip(pipe, dataset, given.data)
    queries = labelled_queries(dataset, texts)
    bridges = choose_bridges(pipe, given.bridge)
    mapped = map_texts(pipe, bridges, queries.labels)
    further = _further_pictures(pipe, given.image_bridge, queries.pictures)
    given.output.mkdir(parents=True, exist_ok=True)

    embedder = load_embedder(given.backbone, device=device)
    sounds, embedded, reference = {}, {}, None
    if given.sounds:
        chosen = queries.choose(given.sounds, given.seed)
        pictures = {PICTURES: chosen.pictures} | _further_pictures(pipe, given.image_bridge, chosen.pictures)
        with _bar((len(bridges) + len(pictures)) * len(chosen), "sounds") as bar:
            sounds = generate(
                pipe, bridges, mapped, pictures, chosen, settings, out=given.output, seed=given.seed,
                batch_size=given.batch_size, on_sound=bar.update,
            )  # fmt: skip
        embedded = {name: embedder.embed(read_generated(items)) for name, items in sounds.items()}
    if given.reference is not None:
        reference = _read_reference(given, texts, embedder, next(iter(embedded.values())))
    rows = compare_bridges(mapped, queries, embedded, reference, Draws(given.seed, given.resamples), further)
    report = make_report(
        embedder, rows, seed=given.seed, resamples=given.resamples, labels=str(given.labels),
        reference=str(given.reference) if given.reference else None,
    )  # fmt: skip
    facts = {
        "model": pipe.name_or_path,
        "CLIP": pipe.clip.name,
        "corpus": f"{given.data}, {len(queries)} labelled clips, {'held out' if given.held_out else 'all sources'}",
        "backbone": ", ".join(each.name for each in report.backbones),
    }
    write_results(given.output, report, sounds, embedded, facts)
    for line in _table(rows):
        print(line)
    if not given.held_out:
        print("note: without --held-out, pictures and recordings may be those that the model was trained on")
    print(f"{given.output}: {len(bridges)} bridges, {len(queries)} queries, {sum(map(len, sounds.values()))} sounds")


def choose_bridges(pipe: "DiffAudioPipeline", names: Sequence[str]) -> "dict[str, Bridge]":
    """Bridges by name, `none` first.

    Args:
        names: as the user gave them; empty stands for all of the model's.

    Raises:
        ValueError: the model has no such bridge, or two are given the same name.
    """
    from torch import nn  # diffusers' own `to` warns about layers it does not have

    from diffaudio.models.bridge.folder import choose_bridge, kind_of_bridge

    own = pipe.bridge
    wanted = list(names) or [kind_of_bridge(own), *own.alternatives]
    bridges = {}
    for name in ["none", *(name for name in wanted if name != "none")]:
        short = Path(name).name
        if short in bridges or short == "pictures":
            raise UserError(f"--bridge: {name} would be called '{short}', as another row is; rename its folder")
        bridges[short] = nn.Module.to(choose_bridge(name, own, pipe.clip.name), device=pipe.device)
    return bridges


def _further_pictures(pipe: "DiffAudioPipeline", name: str | None, pictures: "Tensor") -> "dict[str, Tensor]":
    """The pictures' embeddings after a retrieval bridge, by the name of their row.

    Raises:
        ValueError: the model has no such bridge, or it maps texts only.
    """
    from torch import nn

    from diffaudio.models.bridge.bridges import RetrievalBridge
    from diffaudio.models.bridge.folder import choose_bridge

    if name is None:
        return {}
    bridge = choose_bridge(name, pipe.bridge, pipe.clip.name)
    if not isinstance(bridge, RetrievalBridge):
        raise UserError(f"--image-bridge: '{name}' maps texts only; choose retrieval where the model has it")
    mapped = nn.Module.to(bridge, device=pipe.device)(pictures.to(pipe.device)).cpu()
    return {f"pictures_{Path(name).name}": mapped}


def _check_clip(pipe: "DiffAudioPipeline", dataset: Any, data: Path) -> None:
    if dataset.clip["name"] != pipe.clip.name:
        raise UserError(
            f"{data}: was encoded by CLIP '{dataset.clip['name']}', the model's is '{pipe.clip.name}'; "
            "encode the corpus again with the model's CLIP"
        )


def _read_reference(
    given: Any, texts: "dict[str, Texts]", embedder: "Embedder", sounds: "AudioEmbeddings"
) -> "Reference":
    """Recordings of the sources that the queries are from, embedded, and some of them held out for the real row."""
    from diffaudio.corpus.datasets.splits import is_held_out
    from diffaudio.evaluation.reference import choose_evenly, split_reference
    from diffaudio.evaluation.sound_files import find_sounds, read_sounds

    files = find_sounds(given.reference, texts)
    files = [file for file in files if file.texts.label or file.texts.prompt]
    if given.held_out:
        files = [file for file in files if is_held_out(_source(file, given.reference), given.held_out)]
    if not files:
        raise UserError(f"{given.reference}: holds no labelled recording" + " that is held out" * bool(given.held_out))
    chosen = choose_evenly([file.texts.label or file.texts.prompt for file in files], given.recordings, given.seed)
    with _bar(len(chosen), "recordings") as bar:

        def read() -> Iterator[Any]:
            for sound in read_sounds([files[index] for index in chosen]):
                bar.update()
                yield sound

        recordings = embedder.embed(read())
    return split_reference(recordings, sounds.wanted(), seed=given.seed)


def _source(file: "SoundFile", folder: Path) -> str:
    """As the corpus names it: the path below the folder that was prepared."""
    return file.path.relative_to(folder).as_posix()


def _bar(total: int, what: str) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit="sound", leave=False, delay=1e-3, disable=not sys.stderr.isatty())


def _table(rows: "Sequence[Row]") -> Iterator[str]:
    """A line for each bridge, a column for each measure; then what was left out, and why."""
    names = list(dict.fromkeys(metric.name for row in rows for metric in row.metrics))
    lines = [["", "n", *names]]
    for row in rows:
        found = {metric.name: metric for metric in row.metrics}
        lines.append([row.name, str(row.sounds), *(_cell(found.get(name)) for name in names)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
    for row in rows:
        yield from (f"left out of {row.name}: {name}: {reason}" for name, reason in row.left_out.items())


def _cell(metric: "Metric | None") -> str:
    if metric is None:
        return "-"
    return f"{metric.value:.3g}" + ("" if metric.low is None else f" [{metric.low:.2g}, {metric.high:.2g}]")
