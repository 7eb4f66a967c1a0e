"""The folder of a sweep: its sounds, what was measured of them, the tables and the page.

    sounds/COMBINATION/       the sounds, each with its sidecar and a small spectrogram
    measured/                 what was measured of each combination
    report.json               all of that, as `diffaudio evaluate` writes it
    results.csv, .parquet     a row a combination
    pictures/, index.html

Every file is there whole or not at all, and what is there is kept: a sweep that was killed goes on where it was.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from diffaudio.atomic_io import atomic_file
from diffaudio.checkpoint import load_weak_unet
from diffaudio.evaluation.embed import AudioEmbeddings, Embedder, Sound
from diffaudio.evaluation.measure import Reference
from diffaudio.evaluation.report import Metric, Report, Row, write_report
from diffaudio.evaluation.rows import evaluated_row, real_row, shuffled_row
from diffaudio.generation.batch import Item, is_made, render
from diffaudio.generation.prompt_list import Prompt, items_of
from diffaudio.media.audio import read_audio
from diffaudio.media.spectrogram_plot import spectrogram_image
from diffaudio.pipeline import DiffAudioPipeline
from diffaudio.sweep.grid import Combination
from diffaudio.sweep.page import PageSound, sound_path, write_page
from diffaudio.sweep.plots import picture_names, write_pictures
from diffaudio.sweep.table import direction, timing_columns, with_mean_of_shuffled, write_tables

__all__ = [
    "Sweep",
    "batches",
    "draw",
    "drawn_metrics",
    "make",
    "measure",
    "table",
    "unmade",
    "unmeasured",
    "write_results",
]


@dataclass(frozen=True)
class Sweep:
    """What is to be made.

    Attributes:
        folder: of all files.
        prompts: of the list.
        axes: the values of each setting that the sweep varies.
        sounds: of each combination, take by take in the order of the prompts.
        left_out: combinations that were refused, with the reason.
    """

    folder: Path
    prompts: list[Prompt]
    axes: Mapping[str, Sequence[Any]]
    sounds: dict[Combination, list[Item]]
    left_out: dict[str, str]

    @classmethod
    def of(
        cls,
        folder: Path,
        prompts: list[Prompt],
        axes: Mapping[str, Sequence[Any]],
        combinations: Sequence[Combination],
        left_out: dict[str, str],
        *,
        seed: int,
        takes: int,
    ) -> "Sweep":
        """Every combination gets the same seeds."""
        sounds = {
            each: items_of(prompts, folder / "sounds" / each.name, seed, takes=takes, suffix=".flac")
            for each in combinations
        }
        return cls(folder, prompts, axes, sounds, left_out)

    def measured_file(self, combination: Combination) -> Path:
        return self.folder / "measured" / f"{combination.name}.json"


def batches(sweep: Sweep, batch_size: int) -> list[tuple[Combination, list[Item]]]:
    """All sounds in batches, as even as can be, so that the timing of one compares with that of another."""
    parts = []
    for combination, items in sweep.sounds.items():
        count = -(-len(items) // batch_size)
        edges = [len(items) * index // count for index in range(count + 1)]
        parts += [(combination, items[start:end]) for start, end in pairwise(edges)]
    return parts


def unmade(
    pipe: DiffAudioPipeline, parts: Sequence[tuple[Combination, list[Item]]]
) -> list[tuple[Combination, list[Item]]]:
    """What is missing of some batches.

    Raises:
        ValueError: a sound is there that was made with other settings.
    """
    model = pipe.name_or_path
    missing = [(each, [item for item in batch if not is_made(item, each.settings, model)]) for each, batch in parts]
    return [(combination, batch) for combination, batch in missing if batch]


def make(pipe: DiffAudioPipeline, parts: Sequence[tuple[Combination, list[Item]]]) -> Iterator[Item]:
    """Make the sounds of some batches; each prompt is embedded once."""
    prompts = list(dict.fromkeys(item.prompt for _, batch in parts for item in batch))
    embeds = dict(zip(prompts, pipe.encode_prompt(prompts, warn_if_far=True), strict=True)) if prompts else {}
    weaker = {combination.settings.weak_model for combination, _ in parts}
    weak = {name: load_weak_unet(name, pipe.components) for name in weaker if name is not None}
    for combination, batch in parts:
        settings, weak_unet = combination.settings, weak.get(combination.settings.weak_model or "")
        batch[0].path.parent.mkdir(parents=True, exist_ok=True)
        yield from render(pipe, batch, settings, batch_size=len(batch), prompt_embeds=embeds, weak_unet=weak_unet)


@dataclass(frozen=True)
class Measured:
    """What is known of a combination's sounds.

    Attributes:
        by: what it was measured with; where that changes, it is measured again.
        rows: evaluated and shuffled, and for the first combination of a sweep the real recordings.
        recognised_as: of each sound, what the first classifier takes it for; empty where there is none.
    """

    by: dict[str, Any]
    rows: list[Row]
    recognised_as: list[str]


def unmeasured(sweep: Sweep, combinations: Sequence[Combination], report: Report) -> list[Combination]:
    """Those of some combinations that were not measured, or of other sounds or with something else.

    Args:
        report: without rows; what its rows are to be measured with.
    """

    def is_measured(combination: Combination) -> bool:
        measured = _read_measured(sweep.measured_file(combination))
        return measured is not None and measured.by == _by(sweep, combination, report)

    return [combination for combination in combinations if not is_measured(combination)]


def _by(sweep: Sweep, combination: Combination, report: Report) -> dict[str, Any]:
    sounds = [[item.path.name, item.prompt, item.label] for item in sweep.sounds[combination]]
    return json.loads(json.dumps({**asdict(report), "sounds": sounds, "first": _is_first(sweep, combination)}))


def _is_first(sweep: Sweep, combination: Combination) -> bool:
    return combination is next(iter(sweep.sounds))


def measure(
    sweep: Sweep, combination: Combination, embedder: Embedder, reference: Reference | None, report: Report
) -> None:
    """Hear a combination's sounds, draw their spectrograms, and write what is measured."""
    file, items = sweep.measured_file(combination), sweep.sounds[combination]
    embedded = embedder.embed(_opened(items))
    drawn = {"seed": report.seed, "resamples": report.resamples}
    rows = [
        evaluated_row(embedded, reference, name=combination.name, **drawn),
        shuffled_row(embedded, reference, name=f"{combination.name}, shuffled", **drawn),
    ]
    if reference is not None and _is_first(sweep, combination):
        rows.append(real_row(reference, like=embedded, name="real recordings", **drawn))
    file.parent.mkdir(exist_ok=True)
    measured = Measured(_by(sweep, combination, report), rows, _recognised_as(embedded))
    told = json.dumps(asdict(measured), ensure_ascii=False, allow_nan=False)
    with atomic_file(file) as temporary:
        temporary.write_text(told, encoding="utf-8")


def _read_measured(file: Path) -> Measured | None:
    if not file.is_file():
        return None
    told = json.loads(file.read_text(encoding="utf-8"))
    rows = [Row(**row | {"metrics": [Metric(**metric) for metric in row["metrics"]]}) for row in told["rows"]]
    return Measured(told["by"], rows, told["recognised_as"])


def _opened(items: Sequence[Item]) -> Iterator[Sound]:
    """The sounds one by one; their spectrograms are drawn in passing."""
    for item in items:
        waveform, sample_rate = read_audio(item.path)
        picture = item.path.with_suffix(".png")
        if not picture.exists():
            with atomic_file(picture) as temporary:
                spectrogram_image(waveform, sample_rate).save(temporary)
        yield Sound(waveform, sample_rate, item.path.stem, item.prompt, item.label)


def _recognised_as(embedded: AudioEmbeddings) -> list[str]:
    for name, logits in embedded.logits.items():
        if embedded.classes[name]:
            best = logits.softmax(dim=1).max(dim=1)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            return [f"{embedded.classes[name][index]} ({value:.2f})" for index, value in pairs]
    return [""] * len(embedded)


def table(sweep: Sweep) -> list[dict[str, Any]]:
    """The rows of a sweep whose sounds are all measured: generated, real, and shuffled ones."""
    rows: dict[str, list[dict[str, Any]]] = {"evaluated": [], "real": [], "shuffled": []}
    for combination, items in sweep.sounds.items():
        costs = {"passes": combination.passes, **timing_columns([_sidecar(item) for item in items])}
        for row in _measured(sweep, combination).rows:
            head = {"kind": row.kind, "combination": row.name}
            head |= {} if row.kind == "real" else combination.values
            head |= {"sounds": row.sounds, **(costs if row.kind == "evaluated" else {})}
            rows[row.kind].append(head | row.columns())
    return [*rows["evaluated"], *rows["real"], *rows["shuffled"]]


def drawn_metrics(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those that get pictures: of which more or less is better, and that differ from row to row."""
    columns = dict.fromkeys(name for row in rows for name in row)
    metrics = [name for name in columns if f"{name}_n" in columns and direction(name)]
    return [name for name in metrics if len({row.get(name) for row in rows if row["kind"] == "evaluated"}) > 1]


def draw(sweep: Sweep, rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> None:
    """Draw the pictures of some metrics."""
    folder = sweep.folder / "pictures"
    folder.mkdir(exist_ok=True)
    for metric in metrics:
        write_pictures(folder, with_mean_of_shuffled(rows), sweep.axes, metric)


def write_results(sweep: Sweep, rows: Sequence[Mapping[str, Any]], report: Report, facts: Mapping[str, Any]) -> None:
    """Write report, tables and page.

    Args:
        facts: what all sounds have in common, by name.
    """
    folder, sounds, reported = sweep.folder, list[PageSound](), list[Row]()
    for place, (combination, items) in enumerate(sweep.sounds.items()):
        measured = _measured(sweep, combination)
        reported += measured.rows
        for index, (item, embedded) in enumerate(zip(items, measured.recognised_as, strict=True)):
            take, prompt = divmod(index, len(sweep.prompts))
            sounds.append(PageSound(place, prompt, take + 1, sound_path(item.path, folder), item.path.suffix, embedded))
    write_report(folder / "report.json", replace(report, rows=reported))
    write_tables(folder, rows, facts)
    write_page(
        folder,
        facts=facts,
        axes=sweep.axes,
        rows=with_mean_of_shuffled(rows),
        pictures={metric: picture_names(sweep.axes, metric) for metric in drawn_metrics(rows)},
        prompts=[prompt.text for prompt in sweep.prompts],
        sounds=sounds,
        left_out=sweep.left_out,
    )


def _measured(sweep: Sweep, combination: Combination) -> Measured:
    measured = _read_measured(sweep.measured_file(combination))
    assert measured is not None
    return measured


def _sidecar(item: Item) -> dict[str, Any]:
    return json.loads(item.path.with_suffix(".json").read_text(encoding="utf-8"))
