"""The combinations of a sweep: every sampler with every number of steps, every guidance scale, and so on.

A combination is a `rendering.Settings`. Each is tried out before anything is made, by sampling with a network that
costs nothing: what the sampler, the model or the guidance refuses is known then, and how many passes it takes.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from diffaudio.pipeline import DiffAudioPipeline
from diffaudio.rendering import Settings, pipeline_arguments

__all__ = ["AXES", "Combination", "combinations", "count_passes", "suitable"]

# Fields of Settings that a sweep varies, and what stands before the value in a combination's name.
AXES = {"sampler": "", "steps": "steps", "guidance_scale": "scale"}
ALWAYS_NAMED = ("sampler", "steps", "guidance_scale")


@dataclass(frozen=True)
class Combination:
    """One point of the grid.

    Attributes:
        name: such as `ddim-steps25-scale3`; also that of its folder.
        settings: of its sounds.
        passes: U-Net evaluations of each sound.
    """

    name: str
    settings: Settings
    passes: int

    def values(self, axes: Iterable[str]) -> dict[str, Any]:
        return {axis: getattr(self.settings, axis) for axis in axes}


def combinations(base: Settings, axes: Mapping[str, Sequence[Any]]) -> list[Settings]:
    """`base` with every combination of the values of `axes`, the last axis varying fastest.

    Raises:
        ValueError: an axis has the same value twice.
    """
    for axis, values in axes.items():
        if len(set(values)) != len(values):
            raise ValueError(f"{axis} has a value twice: {', '.join(map(str, values))}")
    return [replace(base, **dict(zip(axes, values, strict=True))) for values in product(*axes.values())]


def suitable(
    pipe: DiffAudioPipeline, grid: Sequence[Settings], axes: Mapping[str, Sequence[Any]]
) -> tuple[list[Combination], dict[str, str]]:
    """Try all combinations out.

    Returns:
        Those that the model can be sampled with, and for the others, by name, the reason why not.

    Raises:
        ValueError: a value of an axis suits in no combination at all.
    """
    suiting, refused = list[Combination](), dict[str, str]()
    for settings in grid:
        try:
            suiting.append(Combination(_name(settings), settings, count_passes(pipe, settings)))
        except ValueError as error:
            refused[_name(settings)] = str(error)
    for axis, values in axes.items():
        for value in values:
            if not any(getattr(each.settings, axis) == value for each in suiting):
                named = next(_name(each) for each in grid if getattr(each, axis) == value)
                raise ValueError(f"{axis} {value} suits in no combination; in {named}: {refused[named]}")
    return suiting, refused


def count_passes(pipe: DiffAudioPipeline, settings: Settings) -> int:
    """U-Net evaluations that a sound takes, conditional and unconditional ones counted apart.

    Raises:
        ValueError: the model cannot be sampled with these settings.
    """
    trial = copy.copy(pipe)
    trial.unet = unet = _NoNetwork()  # pyright: ignore[reportAttributeAccessIssue]
    embedding = torch.ones(1, pipe.clip.embedding_dim)
    arguments = pipeline_arguments(settings) | {"negative_prompt": None, "audio_length_in_s": 1.0}
    if settings.negative_prompt is not None:
        arguments["negative_prompt_embeds"] = embedding
    trial(prompt_embeds=embedding, generator=torch.Generator().manual_seed(0), output_type="latent", **arguments)
    return unet.passes


class _NoNetwork(nn.Module):
    """Predicts something, at once, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.anything = nn.Parameter(torch.ones(()))
        self.passes = 0

    def forward(self, latents: Tensor, *conditions: Any) -> Tensor:
        self.passes += len(latents)
        return torch.linspace(0.5, 1, latents.numel()).view_as(latents) - latents / 2


def _name(settings: Settings) -> str:
    defaults = {field.name: field.default for field in fields(Settings)}
    parts = []
    for axis, short in AXES.items():
        value = getattr(settings, axis)
        if axis in ALWAYS_NAMED or value != defaults[axis]:
            parts.append(f"{short}{value:g}" if isinstance(value, float) else f"{short}{value}")
    return "-".join(parts)
