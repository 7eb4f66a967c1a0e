"""The combinations of a sweep: every sampler with every number of steps, every guidance scale, and so on.

Each is tried before any sound is generated, by sampling with a dummy network. That shows which ones the sampler, the
model or the guidance refuses, and how many U-Net passes a sound takes.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from diffaudio.diffusion.settings import GenerationSettings
from diffaudio.errors import UserError
from diffaudio.generation.sounds import pipeline_arguments
from diffaudio.pipeline import DiffAudioPipeline
from diffaudio.sweep.axes import AXES

__all__ = ["Combination", "apply_axes", "count_passes", "suitable"]


ALWAYS_NAMED = ("sampler", "steps", "guidance_scale")


@dataclass(frozen=True, eq=False)
class Combination:
    """One point of the grid.

    Attributes:
        name: such as `ddim-steps25-scale3`; also the name of its folder.
        values: the values by axis.
        settings: of its sounds.
        passes: U-Net evaluations of each sound.
    """

    name: str
    values: dict[str, Any]
    settings: GenerationSettings
    passes: int


def suitable(
    pipe: DiffAudioPipeline, base: GenerationSettings, axes: Mapping[str, Sequence[Any]]
) -> tuple[list[Combination], dict[str, str]]:
    """Try out all combinations of values; the last axis varies fastest.

    Args:
        base: the settings that do not vary.
        axes: keys of `AXES`, with at least one value each.

    Returns:
        Those that the model can be sampled with, and for the others, by name, the reason why not.

    Raises:
        ValueError: an axis has a value twice, or one that suits in no combination at all.
    """
    for axis, values in axes.items():
        if len(set(values)) != len(values):
            raise UserError(f"{axis} has a value twice: {', '.join(map(str, values))}")
    suiting, refused = list[Combination](), dict[str, str]()
    unused = {(axis, value): "" for axis, values in axes.items() for value in values}
    for point in product(*axes.values()):
        values = dict(zip(axes, point, strict=True))
        try:
            settings = apply_axes(base, values)
            suiting.append(Combination(_name(values), values, settings, count_passes(pipe, settings)))
        except ValueError as error:
            refused[_name(values)] = str(error)
            unused |= {pair: unused[pair] or str(error) for pair in values.items() if pair in unused}
        else:
            for pair in values.items():
                unused.pop(pair, None)
    if not suiting:
        name, reason = next(iter(refused.items()))
        raise UserError(f"no combination suits; {name}: {reason}")
    for (axis, value), reason in unused.items():
        raise UserError(f"{axis} {value} suits in no combination: {reason}")
    return suiting, refused


def apply_axes(base: GenerationSettings, values: Mapping[str, Any]) -> GenerationSettings:
    """The settings with the given value of each axis."""
    settings = base
    for axis, value in values.items():
        settings = AXES[axis].apply(settings, value)
    return settings


def count_passes(pipe: DiffAudioPipeline, settings: GenerationSettings) -> int:
    """The number of U-Net evaluations for one sound, including those for guidance and of a weaker model.

    Raises:
        ValueError: the model cannot be sampled with these settings.
    """
    trial = copy.copy(pipe)
    trial.unet = nothing = _NoNetwork(pipe.unet.config)  # pyright: ignore[reportAttributeAccessIssue]
    embedding = torch.ones(1, pipe.clip.embedding_dim)
    has_negative = settings.negative_prompt is not None or settings.negative_image is not None
    arguments: dict[str, Any] = pipeline_arguments(settings) | {"audio_length_in_s": 1.0}
    return trial(
        prompt_embeds=embedding,
        negative_prompt_embeds=embedding if has_negative else None,
        bridge=settings.bridge,
        weak_unet=None if settings.weak_model is None else nothing,  # pyright: ignore[reportArgumentType]
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **arguments,
    ).num_passes


class _NoNetwork(nn.Module):
    """A dummy network, which predicts anything without computation."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.anything = nn.Parameter(torch.ones(()))

    def forward(self, latents: Tensor, *conditions: Any) -> Tensor:
        return torch.linspace(0.5, 1, latents.numel()).view_as(latents) - latents / 2


def _name(values: Mapping[str, Any]) -> str:
    parts = [
        f"{AXES[axis].short}{f'{value:g}' if isinstance(value, float) else value}"
        for axis, value in values.items()
        if axis in ALWAYS_NAMED or value != AXES[axis].default
    ]
    return re.sub(r"[^\w.+-]+", "_", "-".join(parts))
