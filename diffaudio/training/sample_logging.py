"""What a model sounds like while it is trained: prompts, generated again every so many steps."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffaudio.atomic_io import atomic_folder
from diffaudio.config import Count, NonNegative, Positive
from diffaudio.media.audio import write_audio
from diffaudio.media.spectrogram_plot import spectrogram_figure
from diffaudio.pipeline import DiffAudioPipeline
from diffaudio.seeding import seeded_generator
from diffaudio.training.run_folder import RunLog

__all__ = ["SampleSettings", "listen"]


@dataclass
class SampleSettings:
    """What is generated while training.

    Attributes:
        prompts: texts; with none nothing is generated.
        every: steps between.
        num_inference_steps: of the sampler.
    """

    prompts: list[str] = field(default_factory=list)
    every: Count = 500
    sampler: str = "dpm++2m_sde"
    num_inference_steps: Count = 25
    guidance_scale: NonNegative = 2.0
    duration_s: Positive = 5.0
    seed: int = 0


def listen(settings: SampleSettings, pipe: DiffAudioPipeline, run: Path, log: RunLog, step: int) -> None:
    """Generate the prompts; sounds and spectrograms go into samples/ of the run folder and to TensorBoard."""
    rate = pipe.autoencoder.sample_rate
    output: Any = pipe(
        settings.prompts,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        audio_length_in_s=settings.duration_s,
        sampler=settings.sampler,
        generator=[seeded_generator(settings.seed, index) for index in range(len(settings.prompts))],
    )
    with atomic_folder(run / "samples" / f"step_{step:08d}") as folder:
        for index, (prompt, waveform) in enumerate(zip(settings.prompts, output.audios, strict=True)):
            picture = spectrogram_figure(waveform, rate, title=prompt)
            write_audio(folder / f"{index:02d}.wav", waveform, rate)
            picture.savefig(folder / f"{index:02d}.png")
            log.sound(step, f"sample/{index:02d} {prompt}", waveform, rate, picture)
