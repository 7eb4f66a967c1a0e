"""Samples of a model in training: the same prompts, generated again every so many steps."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffaudio.atomic_io import atomic_folder
from diffaudio.config import Count, NonNegative, Positive
from diffaudio.diffusion.sampling import make_sampler
from diffaudio.diffusion.settings import GenerationSettings
from diffaudio.errors import UserError
from diffaudio.file_names import slug
from diffaudio.media.audio import write_audio
from diffaudio.media.spectrogram_plot import spectrogram_figure
from diffaudio.pipeline import DiffAudioPipeline
from diffaudio.seeding import seeded_generator
from diffaudio.training.metrics_log import MetricsLog
from diffaudio.training.sample_evaluation import evaluate_samples

__all__ = ["SampleSettings", "check_samples", "log_samples"]


@dataclass
class SampleSettings:
    """What is generated while training.

    Attributes:
        prompts: texts; with none nothing is generated.
        every: steps between.
        num_inference_steps: of the sampler.
        guidance_scales: each prompt is generated with each of them; only the sounds of the first are evaluated.
        evaluate: measure the samples with `diffaudio evaluate`, and log the numbers: whether each prompt's kind is
            recognised, and with `reference` the distances.
        reference: folder of real recordings to measure the samples against.
        labels: CSV with the columns file and label, for the reference.
    """

    prompts: list[str] = field(default_factory=list)
    every: Count = 500
    sampler: str = GenerationSettings.sampler
    num_inference_steps: Count = GenerationSettings.steps
    guidance_scales: tuple[NonNegative, ...] = (2.0,)
    duration_s: Positive = GenerationSettings.duration_s
    seed: int = 0
    evaluate: bool = True
    reference: Path | None = None
    labels: Path | None = None


def check_samples(settings: SampleSettings, pipe: DiffAudioPipeline) -> None:
    """Refuse, before the first step, what could not be generated after the last.

    Raises:
        ValueError: an unknown or unsuitable sampler, a value out of range, an empty prompt, or a missing reference.
    """
    for name in ("reference", "labels"):
        path = getattr(settings, name)
        if path is not None and not (settings.evaluate and settings.prompts):
            raise UserError(f"samples.{name} has no effect without samples.prompts and samples.evaluate")
        if path is not None and not path.exists():
            raise UserError(f"samples.{name}: there is no {path}")
    if not settings.prompts:
        return
    scales = settings.guidance_scales
    if not scales or len(set(scales)) < len(scales):
        raise UserError(f"samples.guidance_scales is {list(scales)}; give one or several, each once")
    if any(not prompt.strip() for prompt in settings.prompts):
        raise UserError("samples.prompts holds an empty text; leave it out, or describe a sound")
    try:
        make_sampler(settings.sampler, pipe.scheduler.config)
        for guidance_scale in settings.guidance_scales:
            GenerationSettings(
                steps=settings.num_inference_steps,
                guidance_scale=guidance_scale,
                sampler=settings.sampler,
                duration_s=settings.duration_s,
            )
    except UserError as error:
        raise UserError(f"samples: {error}") from None


def log_samples(settings: SampleSettings, pipe: DiffAudioPipeline, run: Path, log: MetricsLog, step: int) -> None:
    """Generate the prompts; sounds, spectrograms and metrics go into the run folder and to TensorBoard.

    The sounds of the first guidance scale lie in samples/step_…, those of the others in samples/step_…_guidance_…
    """
    first = run / "samples" / f"step_{step:08d}"
    for index, scale in enumerate(settings.guidance_scales):
        folder = first if index == 0 else first.with_name(f"{first.name}_guidance_{scale:g}")
        board_name = "sample" if len(settings.guidance_scales) == 1 else f"sample_guidance_{scale:g}"
        _write_samples(settings, pipe, scale, folder, log, step, board_name)
    if settings.evaluate:
        values = evaluate_samples(first, reference=settings.reference, labels=settings.labels)
        if values:
            log.scalars(step, {f"samples/{name}": value for name, value in values.items()})


def _write_samples(
    settings: SampleSettings,
    pipe: DiffAudioPipeline,
    guidance_scale: float,
    target: Path,
    log: MetricsLog,
    step: int,
    board_name: str,
) -> None:
    sample_rate = pipe.autoencoder.sample_rate
    output: Any = pipe(
        [*settings.prompts],
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=guidance_scale,
        audio_length_in_s=settings.duration_s,
        sampler=settings.sampler,
        generator=[seeded_generator(settings.seed, index) for index in range(len(settings.prompts))],
    )
    with atomic_folder(target) as folder:
        names = _names(settings.prompts)
        for name, prompt, waveform in zip(names, settings.prompts, output.audios, strict=True):
            figure = spectrogram_figure(waveform, sample_rate, title=prompt)
            write_audio(folder / f"{name}.wav", waveform, sample_rate)
            sidecar = {"prompt": prompt, "guidance_scale": guidance_scale}
            (folder / f"{name}.json").write_text(json.dumps(sidecar) + "\n", encoding="utf-8")
            figure.savefig(folder / f"{name}.png")
            log.audio(step, f"{board_name}/{name}", waveform, sample_rate, figure)


def _names(prompts: list[str]) -> list[str]:
    """A file name for each prompt; those that several prompts share are numbered from the second on."""
    names: list[str] = []
    for prompt in prompts:
        name, number = slug(prompt), 1
        while name in names:
            number += 1
            name = f"{slug(prompt)}-{number}"
        names.append(name)
    return names
