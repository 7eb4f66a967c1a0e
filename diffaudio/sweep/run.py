"""Generating and measuring the sounds of a sweep."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from diffaudio.atomic_io import atomic_file
from diffaudio.checkpoint import load_weak_unet
from diffaudio.diffusion.settings import GenerationSettings
from diffaudio.evaluation.embed import Embedder, Sound
from diffaudio.evaluation.page import recognised_as
from diffaudio.evaluation.reference import Reference
from diffaudio.evaluation.report import Report
from diffaudio.evaluation.rows import evaluated_row, real_row, shuffled_row
from diffaudio.generation.batch import Item, is_generated, query_encoder_for, render
from diffaudio.media.audio import read_audio
from diffaudio.media.spectrogram_plot import spectrogram_image
from diffaudio.pipeline import DiffAudioPipeline
from diffaudio.sweep.folder import Measured, Sweep, read_measured, write_measured
from diffaudio.sweep.grid import Combination

__all__ = [
    "batches",
    "make",
    "measure",
    "measure_recordings",
    "needs_recordings",
    "unmade",
    "unmeasured",
    "wanted",
]


def batches(sweep: Sweep, batch_size: int) -> list[tuple[Combination, list[Item]]]:
    """The sounds of this run in batches of sizes as equal as possible, so that their timings can be compared."""
    parts = []
    for combination in sweep.new:
        items = sweep.sounds[combination]
        count = -(-len(items) // batch_size)
        edges = [len(items) * index // count for index in range(count + 1)]
        parts += [(combination, items[start:end]) for start, end in pairwise(edges)]
    return parts


def unmade(
    pipe: DiffAudioPipeline, parts: Sequence[tuple[Combination, list[Item]]]
) -> list[tuple[Combination, list[Item]]]:
    """The parts of these batches that are still to be generated.

    Raises:
        ValueError: a sound exists that was generated with other settings.
    """
    model = pipe.name_or_path
    missing = [
        (each, [item for item in batch if not is_generated(item, each.settings, model)]) for each, batch in parts
    ]
    return [(combination, batch) for combination, batch in missing if batch]


def make(pipe: DiffAudioPipeline, parts: Sequence[tuple[Combination, list[Item]]]) -> Iterator[Item]:
    """Generate the sounds of these batches; each query is embedded once."""
    queries = list(dict.fromkeys(item.query for _, batch in parts for item in batch))
    encoders = {_conditioning(each.settings): query_encoder_for(pipe, each.settings) for each, _ in parts}
    embeds = {
        key: dict(zip(queries, encoder.encode_queries(queries, warn_if_far=True), strict=True))
        for key, encoder in encoders.items()
    }
    weaker = {combination.settings.weak_model for combination, _ in parts}
    weak = {name: load_weak_unet(name, pipe.components) for name in weaker if name is not None}
    for combination, batch in parts:
        settings, weak_unet = combination.settings, weak.get(combination.settings.weak_model or "")
        batch[0].path.parent.mkdir(parents=True, exist_ok=True)
        query_embeds = embeds[_conditioning(settings)]
        yield from render(pipe, batch, settings, batch_size=len(batch), query_embeds=query_embeds, weak_unet=weak_unet)


def _conditioning(settings: GenerationSettings) -> tuple[Any, ...]:
    """The settings on which the embedding of a query depends."""
    return settings.bridge, tuple(settings.templates), settings.image_bridge


def wanted(sweep: Sweep) -> list[str | None]:
    """What the sounds of each combination should be: labels or prompts."""
    return [item.label or item.query.prompt for item in next(iter(sweep.sounds.values()))]


def unmeasured(sweep: Sweep, report: Report) -> list[Combination]:
    """Combinations that have not been measured, or whose sounds or way of measuring have changed.

    Args:
        report: a report without rows, which describes how they are measured.
    """

    def is_measured(combination: Combination) -> bool:
        measured = read_measured(sweep.measured_file(combination))
        return measured is not None and measured.by == _by(sweep, combination, report)

    return [combination for combination in sweep.sounds if not is_measured(combination)]


def needs_recordings(sweep: Sweep, report: Report) -> bool:
    """Whether the real recordings have to be measured, or measured again."""
    measured = read_measured(sweep.recordings_file())
    return report.reference is not None and (measured is None or measured.by != _by_recordings(sweep, report))


def measure(
    sweep: Sweep, combination: Combination, embedder: Embedder, reference: Reference | None, report: Report
) -> None:
    """Measure a combination's sounds and draw their spectrograms."""
    embedded = embedder.embed(_read(sweep.sounds[combination]))
    seed, resamples, name = report.seed, report.resamples, combination.name
    rows = [
        evaluated_row(embedded, reference, name=name, seed=seed, resamples=resamples),
        shuffled_row(embedded, reference, name=f"{name}, shuffled", seed=seed, resamples=resamples),
    ]
    recognised, by = recognised_as(embedded), _by(sweep, combination, report)
    measured = Measured(by, rows, recognised, combination.values, combination.passes)
    write_measured(sweep.measured_file(combination), measured)


def measure_recordings(sweep: Sweep, reference: Reference, report: Report) -> None:
    """Measure the recordings that were held out of the reference."""
    row = real_row(reference, name="real recordings", seed=report.seed, resamples=report.resamples)
    write_measured(sweep.recordings_file(), Measured(_by_recordings(sweep, report), [row], [], {}, 0))


def _by(sweep: Sweep, combination: Combination, report: Report) -> dict[str, Any]:
    sounds = [[item.path.name, item.query.name, item.label] for item in sweep.sounds[combination]]
    return json.loads(json.dumps({**asdict(report), "sounds": sounds}))


def _by_recordings(sweep: Sweep, report: Report) -> dict[str, Any]:
    return json.loads(json.dumps({**asdict(report), "wanted": wanted(sweep)}))


def _read(items: Sequence[Item]) -> Iterator[Sound]:
    """The sounds one by one; missing spectrograms are drawn as they are read."""
    for item in items:
        waveform, sample_rate = read_audio(item.path)
        picture = item.path.with_suffix(".png")
        if not picture.exists():
            with atomic_file(picture) as temporary:
                spectrogram_image(waveform, sample_rate).save(temporary)
        yield Sound(waveform, sample_rate, item.path.stem, item.query.prompt, item.label)
