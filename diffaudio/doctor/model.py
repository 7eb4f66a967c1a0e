"""The bundled model: whether it is whole, and whether it makes sound."""

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from diffaudio.checkpoint import bundled_model
from diffaudio.doctor.findings import Finding
from diffaudio.errors import UserError
from diffaudio.pipeline import DiffAudioPipeline

__all__ = ["check_model"]

PROMPT, DURATION_S, STEPS = "rain", 1.0, 4


def check_model(folder: Path | None = None) -> Iterator[Finding]:
    """Load a model, whose weights are checked on the way, and generate a second of sound on the CPU.

    Args:
        folder: None is the bundled model.
    """
    try:
        place = folder or bundled_model()
        begin = time.perf_counter()
        pipe = DiffAudioPipeline.from_pretrained(place)
        loaded = time.perf_counter()
        generator = torch.Generator().manual_seed(0)
        output = pipe(PROMPT, audio_length_in_s=DURATION_S, num_inference_steps=STEPS, generator=generator)
    except UserError as error:
        yield Finding("model", "missing", str(error), "install diffaudio again, or name a model with --model")
        return
    rms = float(output.audios.square().mean().sqrt())
    took = f"loaded in {loaded - begin:.1f} s, {DURATION_S:g} s of sound in {time.perf_counter() - loaded:.1f} s"
    if not rms > 1e-4:
        yield Finding("model", "missing", f"{place}: makes silence ({took})", "install diffaudio again")
    else:
        yield Finding("model", "ok", f"{place}: {took}")
