"""Latent edits: sampling that starts from a sound, keeps parts of one, or is divided into regions.

    x_0   clean latents of a recording                               [batch, channels, frames]
    m     True at the frames to generate, False at those to keep     [frames]
    s     noise level, from 1 (noise) to 0 (clean)
    y     (1 - s) x + s e, what solvers integrate                    [batch, channels, frames]

start    Sampling begins at s = strength with y = (1 - s) x_0 + s e: SDEdit, Meng et al. 2021 (arXiv:2108.01073),
         alg. 1. Strength 0 returns x_0, strength 1 generates from noise.
keep     At the frames to keep, every prediction is replaced by the one whose clean latents are x_0. A solver then moves
         them along the exact path from their noise to x_0, whatever its order and whatever noise it adds, so the frames
         to generate always see them at the current noise level, and they end as x_0. RePaint (Lugmayr et al. 2022,
         arXiv:2201.09865, eq. 8) replaces them after each step by x_0 with new noise, which a multistep solver
         takes for a jump of the model.
resample RePaint, alg. 1 and sec. 4.2: after every `JUMP` steps, noise is added again up to the level before them, and
         the steps are repeated, so that what is generated and what is kept get to agree.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffaudio.diffusion.loss import prediction_of
from diffaudio.diffusion.regions import Region
from diffaudio.errors import UserError

__all__ = ["GENERATE", "KeepGuide", "LatentEdit", "level_segments", "raise_level"]

JUMP = 5  # steps
PURE_NOISE = 0.999


@dataclass(frozen=True)
class LatentEdit:
    """How latents are sampled, beyond generating all of them from noise.

    Attributes:
        recording: x_0; needed below strength 1, and where `generate` is set.
        strength: the noise level at which sampling starts, 0 to 1.
        generate: m; None generates all frames.
        resamples: how often each part of the noise levels is gone through, 1 or more.
        regions: see `regions.py`; none predicts all frames at once.
    """

    recording: Tensor | None = None
    strength: float = 1.0
    generate: Tensor | None = None
    resamples: int = 1
    regions: Sequence[Region] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise UserError(f"strength is {self.strength}; choose 0 (leave the sound as it is) to 1 (replace it)")
        if self.resamples < 1:
            raise UserError(f"resamples is {self.resamples}; choose 1 (no repetition) or more")
        needs_recording = "strength" if self.strength < 1 else "a mask" if self.generate is not None else ""
        if self.recording is None and needs_recording:
            raise UserError(f"{needs_recording} has no effect without a sound to start from")

    def needed_regions(self) -> list[Region]:
        """The regions that determine any frame to generate."""
        if self.generate is None:
            return list(self.regions)
        return [each for each in self.regions if (self.generate[each.frames] & (each.weights > 0)).any()]

    def to(self, device: torch.device) -> "LatentEdit":
        """With its tensors on a device."""
        recording, generate = (None if each is None else each.to(device) for each in (self.recording, self.generate))
        return replace(self, recording=recording, generate=generate)


GENERATE = LatentEdit()


class KeepGuide:
    """A guided prediction like `Guide`, in which the frames to keep are predicted to be the recording.

    Args:
        guide: a `Guide` or a `RegionGuide`.
        recording: x_0.
        generate: m.
    """

    def __init__(self, guide: Any, recording: Tensor, generate: Tensor) -> None:
        self.guide, self.recording, self.generate = guide, recording, generate
        self.options, self.predicts = guide.options, guide.predicts

    def __call__(self, z: Tensor, timestep: Tensor | float, alpha: float, sigma: float) -> Tensor:
        """[batch, channels, frames] -> the same; see `Guide.__call__`."""
        x_0 = self.recording
        kept = prediction_of(x_0, (z - alpha * x_0) / sigma, alpha, sigma, self.predicts)
        return torch.where(self.generate, self.guide(z, timestep, alpha, sigma), kept)


def level_segments(levels: Sequence[float], edit: LatentEdit) -> list[list[float]]:
    """The noise levels of a run as segments for the solver; between two, the level is raised if the next starts higher.

    Args:
        levels: decreasing, ending with 0; levels above the strength are left out.
    """
    start = min(edit.strength, levels[0])
    path = [start, *(level for level in levels if level < start)]
    if edit.resamples == 1:
        return [path] if len(path) > 1 else []
    segments = [path[i : i + JUMP + 1] for i in range(0, len(path) - 1, JUMP)]
    # raised to pure noise, latents would lose all that the segment had achieved
    return [segment for segment in segments for _ in range(edit.resamples if segment[0] < PURE_NOISE else 1)]


def raise_level(y: Tensor, s: float, s_higher: float, noise: Tensor) -> Tensor:
    """Add noise to y at level s so that it is at a higher level (RePaint, alg. 1, line 10, in our parametrisation)."""
    scale = (1 - s_higher) / (1 - s)
    return scale * y + math.sqrt(max(0.0, s_higher**2 - (scale * s) ** 2)) * noise
