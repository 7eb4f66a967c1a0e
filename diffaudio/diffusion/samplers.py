"""Samplers: diffusers schedulers under short names, and the loop from noise to latents.

    z    noisy latents                            [batch, channels, frames]
    s    noise level of flow matching, 1 to 0     z = (1 - s) x + s e
    t    timestep, what the U-Net is told; 1000 s for flow matching

    euler, ddim    first order. With eta 0 the DDIM step (Song et al. 2020, arXiv:2010.02502, eq. 12) is Euler's,
                   in sigma / alpha for velocity models and in s for flow matching
    heun           second order, two passes a step (Karras et al. 2022, arXiv:2206.00364, alg. 1)
    dpm++2m        multistep of second order (Lu et al. 2022, arXiv:2211.01095, alg. 2)
    dpm++2m_sde    the same with fresh noise in each step
    unipc          predictor and corrector, one pass a step (Zhao et al. 2023, arXiv:2302.04867)

Latents stay in float32 from step to step, whatever the U-Net computes in.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from diffaudio.diffusion.guidance import Guidance, Guide
from diffaudio.diffusion.heun import HeunScheduler
from diffaudio.diffusion.objectives import prediction_type

__all__ = ["SAMPLERS", "Sampler", "draw_noise", "make_sampler", "sample"]


class Sampler(NamedTuple):
    """Which scheduler a name stands for, with its settings: for models of flow matching, and for all others."""

    flow: type
    diffusion: type
    settings: dict[str, Any]


def _dpm(algorithm: str, *, order: int) -> Sampler:
    settings = {"algorithm_type": algorithm, "solver_order": order, "solver_type": "midpoint"}
    return Sampler(DPMSolverMultistepScheduler, DPMSolverMultistepScheduler, settings)


SAMPLERS: dict[str, Sampler] = {
    # Not diffusers' DDIMScheduler: its steps fall short wherever the number of steps does not divide 1000.
    "ddim": _dpm("dpmsolver++", order=1)._replace(flow=FlowMatchEulerDiscreteScheduler),
    "dpm++2m": _dpm("dpmsolver++", order=2),
    "dpm++2m_sde": _dpm("sde-dpmsolver++", order=2),
    "euler": Sampler(FlowMatchEulerDiscreteScheduler, EulerDiscreteScheduler, {}),
    "heun": Sampler(FlowMatchHeunDiscreteScheduler, HeunScheduler, {}),
    "unipc": Sampler(UniPCMultistepScheduler, UniPCMultistepScheduler, {"solver_order": 2, "solver_type": "bh2"}),
}


def make_sampler(name: str, scheduler_config: Mapping[str, Any]) -> Any:
    """The scheduler `name` stands for, for a model trained with the scheduler of `scheduler_config`.

    Args:
        name: a key of `SAMPLERS`.
        scheduler_config: of the checkpoint's own scheduler, not of one made here.

    Returns:
        A diffusers scheduler, for `sample`.

    Raises:
        ValueError: `name` is unknown.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler '{name}' is unknown; choose from {', '.join(SAMPLERS)}")
    sampler, predicts = SAMPLERS[name], prediction_type(scheduler_config)
    kind = sampler.flow if predicts == "flow_prediction" else sampler.diffusion
    settings = {**scheduler_config, **sampler.settings, "prediction_type": predicts}
    if predicts == "flow_prediction":
        shift = scheduler_config.get("shift", scheduler_config.get("flow_shift", 1.0))
        settings |= {"use_flow_sigmas": True, "shift": shift, "flow_shift": shift}
    known = inspect.signature(kind.__init__).parameters
    return kind(**{key: value for key, value in settings.items() if key in known})


@torch.no_grad()
def sample(
    unet: Callable[..., Tensor],
    scheduler: Any,
    noise: Tensor,
    embedding: Tensor,
    *,
    num_inference_steps: int,
    guidance_scale: float,
    guidance: Guidance | None = None,
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
        guidance: how the scale is applied; None is plain classifier-free guidance.
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
    most = scheduler.config.num_train_timesteps
    if not 1 <= num_inference_steps <= most:
        raise ValueError(f"num_inference_steps is {num_inference_steps}; it must be 1 to {most}")
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
    for index, timestep in enumerate(scheduler.timesteps):
        prediction = guide(scale_input(latents, timestep), _told(scheduler, index), *_alpha_sigma(scheduler, index))
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


def _draws(scheduler: Any, batch: int, generators: list[torch.Generator] | None) -> dict[str, Any]:
    """What `scheduler.step` needs beyond the prediction: generators, where it draws noise."""
    if not str(scheduler.config.get("algorithm_type", "")).startswith("sde"):
        return {}
    if generators is None or len(generators) != batch:
        given = "none" if generators is None else len(generators)
        raise ValueError(f"this sampler draws noise in each step: give one generator an item ({batch}), not {given}")
    return {"generator": generators}


def _set_timesteps(scheduler: Any, num_inference_steps: int) -> None:
    """Choose the noise levels, where diffusers' own choice wastes a step or miscounts."""
    num_timesteps = scheduler.config.num_train_timesteps
    trailing = scheduler.config.get("timestep_spacing", "trailing") == "trailing" and not _is_flow(scheduler)
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        # The default ends with a step from 1/1000 to 0, which does next to nothing.
        scheduler.set_timesteps(sigmas=[1 - i / num_inference_steps for i in range(num_inference_steps)])
    elif trailing and "timesteps" in inspect.signature(scheduler.set_timesteps).parameters:
        ratio = num_timesteps / num_inference_steps
        scheduler.set_timesteps(timesteps=[round(num_timesteps - i * ratio) - 1 for i in range(num_inference_steps)])
    else:
        scheduler.set_timesteps(num_inference_steps)
        if scheduler.timesteps[-1] < 0:
            # For some numbers, 61 the first, diffusers' trailing spacing ends with a step too many.
            kind = type(scheduler).__name__
            raise ValueError(f"{kind} cannot take {num_inference_steps} steps; take one more or less")
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)


def _told(scheduler: Any, index: int) -> Tensor:
    """The timestep for the U-Net; for flow matching from the noise level, since some schedulers round timesteps."""
    if _is_flow(scheduler):
        return scheduler.sigmas[index] * scheduler.config.num_train_timesteps
    return scheduler.timesteps[index]


def _alpha_sigma(scheduler: Any, index: int) -> tuple[float, float]:
    """Of the latents that the U-Net sees at a pass."""
    if _is_flow(scheduler):
        level = float(scheduler.sigmas[index])
        return 1 - level, level
    alpha_squared = float(scheduler.alphas_cumprod[int(scheduler.timesteps[index])])
    return alpha_squared**0.5, (1 - alpha_squared) ** 0.5


def _is_flow(scheduler: Any) -> bool:
    return prediction_type(scheduler.config) == "flow_prediction"
