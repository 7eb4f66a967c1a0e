"""Samplers: short names for the ways from noise to latents, and the loop that goes them.

    z    noisy latents, what the U-Net sees           [batch, channels, frames]
    s    noise level, from 1 (noise) to 0 (clean)
    t    timestep, what the U-Net is told; 1000 s for flow matching

Schedulers of diffusers do the work where they know flow matching (DPM-Solver++, DEIS, UniPC, SA), with noise levels of
ours (`schedules`). The others are written out in `solvers`: diffusers' have no form for flow matching; its LMS needs
scipy; its DDIM and PNDM miscount where the number of steps does not divide 1000; its Heun, DPM2 and LMS measure in
sigma / alpha, which is infinite where a schedule begins with pure noise; and its DPM-Solver++ of third order is of
second. Latents stay in float32 from step to step, whatever the U-Net computes in.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from diffaudio.diffusion import own_scheduler
from diffaudio.diffusion.flow_form import FlowFormScheduler
from diffaudio.diffusion.guidance import Guide
from diffaudio.diffusion.noise_schedule import SPACINGS
from diffaudio.diffusion.objectives import prediction_type
from diffaudio.diffusion.sampler_table import EVEN, NO_LEAP, SAMPLERS, TRAILING, Sampler
from diffaudio.diffusion.settings import PLAIN_CFG, Guidance
from diffaudio.errors import UserError

__all__ = ["SAMPLERS", "Sampler", "draw_noise", "make_sampler", "num_passes", "sample", "why_unsuitable"]


def why_unsuitable(name: str, scheduler_config: Mapping[str, Any]) -> str | None:
    """Why a sampler does not suit the models trained with this scheduler; None if it does.

    Args:
        name: a key of `SAMPLERS`.
        scheduler_config: of the checkpoint's own scheduler.
    """
    own = own_scheduler.kinds(scheduler_config)
    needed = own_scheduler.DISTILLED.get(name)
    if needed is not None and not set(own) & set(needed):
        there = " or ".join(own) or "of ordinary steps"
        return f"it is for models distilled for it, whose own scheduler is {' or '.join(needed)}; this one's is {there}"
    for distilled, kinds in own_scheduler.DISTILLED.items():
        if needed is None and set(own) & set(kinds):
            return (
                f"this model is distilled for consistency (its own scheduler is {' or '.join(own)}): its predictions "
                f"jump to clean latents and are no slope to follow; take {distilled}"
            )
    if prediction_type(scheduler_config) == "epsilon" and scheduler_config.get("rescale_betas_zero_snr"):
        return (
            "this model predicts noise and its schedule begins with pure noise (rescale_betas_zero_snr), where that "
            "says nothing of the sound (arXiv:2305.08891, sec. 3.2)"
        )
    return None


def make_sampler(
    name: str, scheduler_config: Mapping[str, Any], *, spacing: str | None = None, eta: float | None = None
) -> Any:
    """What `name` stands for, for a model trained with the scheduler of `scheduler_config`.

    Args:
        name: a key of `SAMPLERS`.
        scheduler_config: of the checkpoint's own scheduler, not of one made here. It says what the U-Net predicts and
            which noise levels it knows; how steps are spaced is said by `spacing` alone.
        spacing: of `SPACINGS`; None is the first that suits the sampler.
        eta: 0 to 1, how much noise a step draws anew; None is what is usual for the sampler.

    Returns:
        An object with the calls of diffusers' schedulers, for `sample`.

    Raises:
        ValueError: `name` is unknown, it does not suit the model, or `spacing` or `eta` does not suit it.
    """
    if name not in SAMPLERS:
        raise UserError(f"sampler '{name}' is unknown; choose from {', '.join(SAMPLERS)}")
    reason = why_unsuitable(name, scheduler_config)
    if reason is not None:
        raise UserError(f"sampler '{name}' does not suit this model: {reason}")
    sampler = SAMPLERS[name]
    _check_settings(name, sampler, spacing, eta)
    eta = sampler.eta if eta is None else eta
    if sampler.solver is None:
        return own_scheduler.distilled_scheduler(name, scheduler_config, eta)
    return FlowFormScheduler(
        scheduler_config,
        sampler.solver if eta is None else functools.partial(sampler.solver, eta=eta),
        spacing=spacing or sampler.spacings[0],
        is_stochastic=sampler.is_stochastic and eta != 0,
    )


def num_passes(scheduler: Any, num_inference_steps: int) -> int:
    """How often a scheduler of `make_sampler` will have the U-Net run; with guidance mostly over two items a sound.

    Raises:
        ValueError: it cannot take so many steps.
    """
    scheduler = copy.deepcopy(scheduler)
    _set_timesteps(scheduler, num_inference_steps)
    return len(scheduler.timesteps)


@torch.no_grad()
def sample(
    unet: Callable[..., Tensor],
    scheduler: Any,
    noise: Tensor,
    embedding: Tensor,
    *,
    num_inference_steps: int,
    guidance_scale: float,
    guidance: Guidance = PLAIN_CFG,
    negative_embedding: Tensor | None = None,
    weak_unet: Callable[..., Tensor] | None = None,
    generators: list[torch.Generator] | None = None,
    on_step: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Turn noise into latents.

    Args:
        unet: called as `unet(latents, timestep, embedding, keep)`.
        scheduler: of `make_sampler`, or any other diffusers scheduler that fits the model.
        noise: [batch, channels, frames], standard normal.
        embedding: [batch, embedding_dim].
        guidance: how the scale is applied.
        negative_embedding, weak_unet: see `Guide`.
        generators: one an item, on the CPU; for samplers that draw noise in each step.
        on_step: called after each pass as `on_step(pass_index, timestep, latents)`; there are
            `len(scheduler.timesteps)` passes.

    Returns:
        [batch, channels, frames], float32.

    Raises:
        ValueError: the number of steps is out of range, the sampler draws noise and has no generator for each item,
            or `Guide` refuses something.
    """
    guide = Guide(
        unet,
        embedding,
        scale=guidance_scale,
        options=guidance,
        predicts=prediction_type(scheduler.config),
        negative_embedding=negative_embedding,
        weak_unet=weak_unet,
    )
    _set_timesteps(scheduler, num_inference_steps)
    draws = _draws(scheduler, len(noise), generators)
    # Schedulers of flow matching have neither: their latents are what the U-Net sees.
    scale_input = getattr(scheduler, "scale_model_input", lambda latents, timestep: latents)
    latents = noise.float() * getattr(scheduler, "init_noise_sigma", 1.0)
    for index, (timestep, told) in enumerate(zip(scheduler.timesteps, _passes(scheduler), strict=True)):
        prediction = guide(scale_input(latents, timestep), *told)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False, **draws)[0]
        if on_step is not None:
            on_step(index, timestep, latents)
    return latents


def draw_noise(shape: tuple[int, ...], generators: list[torch.Generator]) -> Tensor:
    """Standard normal noise, each item from its own CPU generator, so that it does not depend on the batch.

    Args:
        shape: of one item, [channels, frames].

    Returns:
        [batch, channels, frames], on the CPU.
    """
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def _check_settings(name: str, sampler: Sampler, spacing: str | None, eta: float | None) -> None:
    if spacing is not None and spacing not in SPACINGS:
        raise UserError(f"spacing '{spacing}' is unknown; choose from {', '.join(SPACINGS)}")
    if spacing is not None and spacing not in sampler.spacings:
        why = {
            (): "its noise levels are those of the distillation; leave it out",
            EVEN: f"its weights hold for steps that are even in time; choose from {', '.join(EVEN)}",
            NO_LEAP: f"its last step would be a leap in log(sigma / alpha); choose from {', '.join(NO_LEAP)}",
            TRAILING: "in fewer than 40 steps it would overshoot several times over; leave it out",
        }[sampler.spacings]
        raise UserError(f"sampler '{name}' does not take spacing '{spacing}': {why}")
    if eta is not None and sampler.eta is None:
        having = ", ".join(other for other, each in SAMPLERS.items() if each.eta is not None)
        raise UserError(f"eta has no effect on sampler '{name}'; leave it out, or choose from {having}")
    if eta is not None and not 0 <= eta <= 1:
        raise UserError(f"eta is {eta}; 0 (no fresh noise) to 1 is allowed")


def _set_timesteps(scheduler: Any, num_inference_steps: int) -> None:
    most = scheduler.config["num_train_timesteps"]
    if not 1 <= num_inference_steps <= most:
        raise UserError(f"num_inference_steps is {num_inference_steps}; it must be 1 to {most}")
    if isinstance(scheduler, FlowFormScheduler):
        scheduler.set_timesteps(num_inference_steps)
    else:
        own_scheduler.set_timesteps(scheduler, num_inference_steps)


def _passes(scheduler: Any) -> list[tuple[Any, float, float]]:
    """Timestep, alpha and sigma for the U-Net at each pass."""
    if isinstance(scheduler, FlowFormScheduler):
        return list(zip(scheduler.timesteps, scheduler.alphas, scheduler.sigmas, strict=True))
    return own_scheduler.passes(scheduler)


def _draws(scheduler: Any, batch: int, generators: list[torch.Generator] | None) -> dict[str, Any]:
    """What `scheduler.step` needs beyond the prediction: generators, where it draws noise."""
    is_ours = isinstance(scheduler, FlowFormScheduler)
    if not (scheduler.is_stochastic if is_ours else own_scheduler.draws_noise(scheduler)):
        return {}
    if generators is None or len(generators) != batch:
        given = "none" if generators is None else len(generators)
        raise UserError(f"this sampler draws noise in each step: give one generator an item ({batch}), not {given}")
    return {"generator": generators}
