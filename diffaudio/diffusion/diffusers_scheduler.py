"""A checkpoint's own diffusers scheduler, used unchanged: if no sampler is named, and for distilled models.

Models distilled for consistency jump from any noise level to clean latents. Their own scheduler identifies them:

    LCM  LCMScheduler, FlowMatchLCMScheduler: noise is added to the clean latents again (Song et al. 2023,
         arXiv:2303.01469, alg. 1; Luo et al. 2023, arXiv:2310.04378), at the noise levels of the distillation
    TCD  TCDScheduler: jumps only part of the way (Zheng et al. 2024, arXiv:2402.19159)
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler
from torch import Tensor

from diffaudio.diffusion.latent_edit import GENERATE, LatentEdit
from diffaudio.diffusion.loss import prediction_type
from diffaudio.diffusion.noise_schedule import NoiseSchedule
from diffaudio.errors import UserError

__all__ = ["DISTILLED", "distilled_scheduler", "draws_noise", "first_step", "kinds", "passes", "run", "set_timesteps"]

DISTILLED = {"lcm": ("LCMScheduler", "FlowMatchLCMScheduler"), "tcd": ("TCDScheduler",)}

_STOCHASTIC = (
    *("DDPMScheduler", "EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "SASolverScheduler"),
    *(name for names in DISTILLED.values() for name in names),
)


def kinds(scheduler_config: Mapping[str, Any]) -> tuple[str, ...]:
    """The class of a checkpoint's own scheduler; where its config does not say, those of `DISTILLED` that it may be.

    A config has no class name before it is written to disk.
    """
    if "_class_name" in scheduler_config:
        return (scheduler_config["_class_name"],)
    if "original_inference_steps" in scheduler_config:
        return ("LCMScheduler", "TCDScheduler")
    return ("FlowMatchLCMScheduler",) if "upscale_mode" in scheduler_config else ()


def distilled_scheduler(name: str, scheduler_config: Mapping[str, Any], eta: float | None) -> Any:
    """A new instance of the scheduler of a distilled model.

    Args:
        name: a key of `DISTILLED`.
        eta: for TCD, the share of fresh noise in each jump (gamma there); otherwise None.
    """
    (kind,) = (kind for kind in kinds(scheduler_config) if kind in DISTILLED[name])
    scheduler = getattr(diffusers, kind).from_config(scheduler_config)
    if eta is not None:
        scheduler.step = functools.partial(scheduler.step, eta=eta)
    return scheduler


def set_timesteps(scheduler: Any, num_inference_steps: int) -> None:
    """Choose the noise levels, where diffusers' own choice wastes a step or miscounts.

    Raises:
        ValueError: the scheduler cannot take so many steps.
    """
    config = scheduler.config
    num_timesteps, most = config.num_train_timesteps, config.get("original_inference_steps")
    trailing = config.get("timestep_spacing", "trailing") == "trailing" and not _is_flow(scheduler)
    if most is not None and num_inference_steps > most:
        raise UserError(f"this model was distilled over {most} noise levels; take 1 to {most} steps")
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler | FlowMatchLCMScheduler):
        # The default ends with a step from 1/1000 to 0, which has almost no effect.
        scheduler.set_timesteps(sigmas=[1 - i / num_inference_steps for i in range(num_inference_steps)])
    elif trailing and most is None and "timesteps" in inspect.signature(scheduler.set_timesteps).parameters:
        ratio = num_timesteps / num_inference_steps
        scheduler.set_timesteps(timesteps=[round(num_timesteps - i * ratio) - 1 for i in range(num_inference_steps)])
    else:
        scheduler.set_timesteps(num_inference_steps)
        if scheduler.timesteps[-1] < 0:
            # For some numbers, 61 the first, diffusers' trailing spacing ends with a step too many.
            kind = type(scheduler).__name__
            raise UserError(f"{kind} cannot take {num_inference_steps} steps; take one more or less")
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)


def run(
    scheduler: Any,
    guide: Any,
    noise: Tensor,
    num_inference_steps: int,
    generators: list[torch.Generator] | None,
    on_step: Callable[[int, float, Tensor], None],
    edit: LatentEdit = GENERATE,
) -> Tensor:
    """From noise to clean latents, [batch, channels, frames]; `on_step` as for `sampling.sample`.

    Raises:
        ValueError: see `set_timesteps` and `first_step`.
    """
    set_timesteps(scheduler, num_inference_steps)
    draws = {"generator": generators} if draws_noise(scheduler) else {}
    # Schedulers of flow matching have neither: their latents are what the U-Net sees.
    scale_input = getattr(scheduler, "scale_model_input", lambda latents, timestep: latents)
    latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    conditions = passes(scheduler)
    first = first_step(scheduler, edit.strength)
    if first == len(conditions):
        return edit.recording if edit.recording is not None else latents
    if first:
        timestep = scheduler.timesteps[first : first + 1]
        latents = (
            scheduler.scale_noise(edit.recording, timestep, noise)
            if hasattr(scheduler, "scale_noise")
            else scheduler.add_noise(edit.recording, noise, timestep)
        )
    num_held = first or _num_held(guide, [sigma / (alpha + sigma) for _, alpha, sigma in conditions])
    if num_held and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(num_held)
    for index, (timestep, (t, alpha, sigma)) in enumerate(zip(scheduler.timesteps, conditions, strict=True)):
        if index >= num_held:
            prediction = guide(scale_input(latents, timestep), t, alpha, sigma)
            latents = scheduler.step(prediction, timestep, latents, return_dict=False, **draws)[0]
        if index >= first:
            on_step(index - first, timestep, latents)
    return latents


def first_step(scheduler: Any, strength: float) -> int:
    """The step at which sampling begins: the first whose noise level is at most the strength.

    Returns:
        0 at strength 1, the number of steps at strength 0.

    Raises:
        UserError: the strength lies between the lowest noise level and 0.
    """
    if strength in (0, 1):
        return 0 if strength else len(scheduler.timesteps)
    levels = [round(sigma / (alpha + sigma), 6) for _, alpha, sigma in passes(scheduler)]
    if strength < min(levels):
        raise UserError(
            f"strength {strength:g} is below the lowest noise level of these steps ({min(levels):.3g}); "
            "raise it, or take more steps"
        )
    return next(index for index, level in enumerate(levels) if level <= strength)


def _num_held(guide: Any, levels: list[float]) -> int:
    """Number of U-Net evaluations to skip for `zero_init`, rounded up to the start of a step."""
    num_held = guide.options.num_held(levels)
    # Schedulers with two passes a step list the level between two steps twice, for the end of one and the next's start.
    while 0 < num_held < len(levels) - 1 and levels[num_held] == levels[num_held + 1]:
        num_held += 1
    return num_held


def passes(scheduler: Any) -> list[tuple[Tensor, float, float]]:
    """The U-Net's timestep, and alpha and sigma of its input, at each evaluation."""
    if _is_flow(scheduler):  # from the noise level, since some schedulers round timesteps
        levels = scheduler.sigmas[: len(scheduler.timesteps)]
        return [(level * scheduler.config.num_train_timesteps, 1 - float(level), float(level)) for level in levels]
    schedule = NoiseSchedule(scheduler.config)
    return [(t, *schedule.alpha_sigma(schedule.level(float(t)))) for t in scheduler.timesteps]


def draws_noise(scheduler: Any) -> bool:
    """Whether each step draws noise."""
    if getattr(scheduler.step, "keywords", {}).get("eta") == 0:
        return False
    algorithm = str(scheduler.config.get("algorithm_type", ""))
    return type(scheduler).__name__ in _STOCHASTIC or algorithm.startswith("sde")


def _is_flow(scheduler: Any) -> bool:
    return prediction_type(scheduler.config) == "flow_prediction"
