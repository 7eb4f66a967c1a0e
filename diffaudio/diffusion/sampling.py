"""Samplers: guided generation of latents from noise, by a solver or by a checkpoint's own scheduler.

    x, e          clean latents and noise, from the prediction at z           [batch, channels, frames]
    alpha, sigma  z = alpha x + sigma e is the U-Net's input                  [batch, channels, frames]
    s             noise level sigma / (alpha + sigma), from 1 (noise) to 0 (clean)
    y             z / (alpha + sigma) = (1 - s) x + s e, whose slope dy/ds is e - x
    t             timestep that conditions the U-Net; 1000 s for flow matching

A sampler depends only on the ratio of alpha to sigma: scaling z by alpha + sigma changes neither the path
from noise to sound nor the noise on it (Karras et al. 2022, arXiv:2206.00364, eq. 4). So a model of any objective is
solved as one of flow matching, in y. For flow matching itself alpha + sigma is 1, and y is z. Latents stay in float32
from step to step, whatever the U-Net's dtype.
"""

import copy
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffaudio.diffusion import diffusers_scheduler
from diffaudio.diffusion.guidance import Guide
from diffaudio.diffusion.latent_edit import GENERATE, KeepGuide, LatentEdit, level_segments, raise_level
from diffaudio.diffusion.loss import clean_and_noise, prediction_type
from diffaudio.diffusion.noise_schedule import NoiseSchedule
from diffaudio.diffusion.regions import RegionGuide
from diffaudio.diffusion.sampler_table import SAMPLERS, check_sampler
from diffaudio.diffusion.settings import PLAIN_CFG, Guidance
from diffaudio.diffusion.varied_noise import VariedNoise
from diffaudio.errors import UserError

if TYPE_CHECKING:
    from diffaudio.diffusion.solvers import Generators, Solver

__all__ = ["SolverSampler", "draw_noise", "make_sampler", "num_steps", "sample", "why_unsuitable"]

OnStep = Callable[[int, float, Tensor], None]


@dataclass(frozen=True)
class SolverSampler:
    """A solver for the noise levels of a model.

    Attributes:
        config: of the checkpoint's own scheduler.
        solver: a function of `solvers`.
        spacing: of `SPACINGS`.
        is_stochastic: whether it needs generators.
    """

    config: Mapping[str, Any]
    solver: "Solver"
    spacing: str
    is_stochastic: bool

    @functools.cached_property
    def schedule(self) -> NoiseSchedule:
        return NoiseSchedule(self.config)

    def passes(
        self, num_inference_steps: int, guidance: Guidance = PLAIN_CFG, edit: LatentEdit = GENERATE
    ) -> list[float]:
        """s of each U-Net evaluation, found by a dry run of the solver.

        Raises:
            UserError: see `NoiseSchedule.levels` and `Guidance.num_held`.
        """
        asked: list[float] = []

        def denoiser(y: Tensor, s: float) -> Tensor:
            asked.append(s)
            return torch.zeros_like(y)

        levels = self.schedule.levels(self.spacing, num_inference_steps)
        for segment in level_segments(levels[guidance.num_held(levels[:-1]) :], edit):
            self.solver(denoiser, torch.zeros(1, 1, 1), segment, [torch.Generator()])
        return asked

    def run(
        self,
        guide: Any,
        noise: Tensor,
        num_inference_steps: int,
        generators: "Generators",
        on_step: OnStep,
        edit: LatentEdit = GENERATE,
    ) -> Tensor:
        """From noise to clean latents, [batch, channels, frames]; `on_step` as for `sample`."""
        schedule, levels = self.schedule, self.schedule.levels(self.spacing, num_inference_steps)
        y = noise * (1 / sum(schedule.alpha_sigma(levels[0])))
        if edit.strength < levels[0]:
            assert edit.recording is not None
            y = (1 - edit.strength) * edit.recording + edit.strength * noise
        timesteps: list[float] = []  # of the skipped steps, then of the U-Net evaluations

        # The solver starts after the skipped steps: it neither draws noise in them nor stores their slope.
        num_held = guide.options.num_held(levels[:-1]) if edit.strength >= levels[0] else 0
        for s in levels[:num_held]:
            timesteps.append(schedule.timestep(s))
            on_step(len(timesteps) - 1, timesteps[-1], y)

        def denoiser(y: Tensor, s: float) -> Tensor:
            if len(timesteps) > num_held:
                on_step(len(timesteps) - 1, timesteps[-1], y)
            timestep, (alpha, sigma) = schedule.timestep(s), schedule.alpha_sigma(s)
            z = y * (alpha + sigma)
            x, e = clean_and_noise(guide(z, timestep, alpha, sigma), z, alpha, sigma, schedule.predicts)
            timesteps.append(timestep)
            return e - x

        s = math.nan
        for segment in level_segments(levels[num_held:], edit):
            if segment[0] > s:  # it is gone through again
                assert generators is not None
                y = raise_level(y, s, segment[0], draw_noise(tuple(y.shape[1:]), generators).to(y))
            y, s = self.solver(denoiser, y, segment, generators), segment[-1]
        if timesteps:  # at strength 0 nothing is left to do
            on_step(len(timesteps) - 1, timesteps[-1], y)
        return y


def why_unsuitable(name: str, scheduler_config: Mapping[str, Any]) -> str | None:
    """Why a sampler does not suit the models trained with this scheduler; None if it does.

    Args:
        name: a key of `SAMPLERS`.
        scheduler_config: of the checkpoint's own scheduler.
    """
    own = diffusers_scheduler.kinds(scheduler_config)
    needed = diffusers_scheduler.DISTILLED.get(name)
    if needed is not None and not set(own) & set(needed):
        there = " or ".join(own) or "of ordinary steps"
        return f"it is for models distilled for it, whose own scheduler is {' or '.join(needed)}; this one's is {there}"
    for distilled, kinds in diffusers_scheduler.DISTILLED.items():
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
    """The sampler called `name`, for a model trained with the scheduler of `scheduler_config`.

    Args:
        name: a key of `SAMPLERS`.
        scheduler_config: of the checkpoint's own scheduler, not of another sampler. It defines what the U-Net predicts
            and its noise levels; the spacing of steps is set by `spacing` alone.
        spacing: of `SPACINGS`; None is the first that suits the sampler.
        eta: 0 to 1, amount of fresh noise added at each step; None is the sampler's default.

    Returns:
        A `SolverSampler`, or the scheduler of a distilled model; both are for `sample`.

    Raises:
        ValueError: `name` is unknown, it does not suit the model, or `spacing` or `eta` does not suit it.
    """
    check_sampler(name)
    reason = why_unsuitable(name, scheduler_config)
    if reason is not None:
        raise UserError(f"sampler '{name}' does not suit this model: {reason}")
    sampler = SAMPLERS[name]
    check_sampler(name, spacing, eta)
    eta = sampler.eta if eta is None else eta
    if sampler.solver is None:
        return diffusers_scheduler.distilled_scheduler(name, scheduler_config, eta)
    return SolverSampler(
        scheduler_config,
        sampler.solver if eta is None else functools.partial(sampler.solver, eta=eta),
        spacing=spacing or sampler.spacings[0],
        is_stochastic=sampler.is_stochastic and eta != 0,
    )


def num_steps(
    sampler: Any, num_inference_steps: int, guidance: Guidance = PLAIN_CFG, edit: LatentEdit = GENERATE
) -> int:
    """How often `sample` calls `on_step`: once per U-Net evaluation, and once per skipped step.

    Args:
        sampler: as for `sample`.

    Raises:
        UserError: it cannot take so many steps, or all of them would be skipped.
    """
    _check_steps(sampler, num_inference_steps)
    if isinstance(sampler, SolverSampler):
        levels = sampler.schedule.levels(sampler.spacing, num_inference_steps)
        num_held = guidance.num_held(levels[:-1]) if edit.strength >= levels[0] else 0
        return num_held + len(sampler.passes(num_inference_steps, guidance, edit))
    scheduler = copy.deepcopy(sampler)
    diffusers_scheduler.set_timesteps(scheduler, num_inference_steps)
    return len(scheduler.timesteps) - diffusers_scheduler.first_step(scheduler, edit.strength)


@torch.no_grad()
def sample(
    unet: Callable[..., Tensor],
    sampler: Any,
    noise: Tensor,
    embedding: Tensor,
    *,
    num_inference_steps: int,
    guidance_scale: float,
    guidance: Guidance = PLAIN_CFG,
    negative_embedding: Tensor | None = None,
    weak_unet: Callable[..., Tensor] | None = None,
    generators: list[Any] | None = None,
    on_step: OnStep | None = None,
    edit: LatentEdit = GENERATE,
) -> Tensor:
    """Generate latents from noise, or edit those of a recording.

    Args:
        unet: called as `unet(latents, timestep, embedding, condition_mask)`.
        sampler: of `make_sampler`, or any scheduler of diffusers that fits the model.
        noise: [batch, channels, frames], standard normal.
        embedding: [batch, embedding_dim].
        guidance: how the scale is applied.
        negative_embedding, weak_unet: see `Guide`.
        generators: one per item, on the CPU, or `VariedNoise`; for samplers that draw noise in each step.
        on_step: called `num_steps` times, after each U-Net evaluation and each skipped step, as
            `on_step(index, timestep, latents)`.
        edit: what sampling starts from, keeps, and is divided into.

    Returns:
        [batch, channels, frames], float32.

    Raises:
        ValueError: the number of steps is out of range, the sampler draws noise and lacks one generator per item,
            or `Guide` rejects an argument.
    """
    make_guide = functools.partial(
        Guide,
        unet,
        scale=guidance_scale,
        options=guidance,
        predicts=prediction_type(sampler.config),
        negative_embedding=negative_embedding,
        weak_unet=weak_unet,
    )
    edit = edit.to(noise.device)
    guide: Any = RegionGuide(make_guide, edit.needed_regions(), embedding) if edit.regions else make_guide(embedding)
    if edit.generate is not None:
        assert edit.recording is not None
        guide = KeepGuide(guide, edit.recording, edit.generate)
    _check_steps(sampler, num_inference_steps)
    _check_generators(sampler, len(noise), generators, edit)
    run = sampler.run if isinstance(sampler, SolverSampler) else functools.partial(diffusers_scheduler.run, sampler)
    return run(guide, noise.float(), num_inference_steps, generators, on_step or (lambda *_: None), edit)


def draw_noise(shape: tuple[int, ...], generators: list[Any]) -> Tensor:
    """Standard normal noise, each item from its own CPU generator, so that it does not depend on the batch.

    Args:
        shape: of one item, [channels, frames].
        generators: CPU generators, or `VariedNoise`.

    Returns:
        [batch, channels, frames], on the CPU.
    """
    return torch.stack(
        [
            each.draw(shape) if isinstance(each, VariedNoise) else torch.randn(shape, generator=each)
            for each in generators
        ]
    )


def _check_steps(sampler: Any, num_inference_steps: int) -> None:
    most = sampler.config["num_train_timesteps"]
    if not 1 <= num_inference_steps <= most:
        raise UserError(f"num_inference_steps is {num_inference_steps}; it must be 1 to {most}")


def _check_generators(sampler: Any, batch: int, generators: "Generators", edit: LatentEdit) -> None:
    ours = isinstance(sampler, SolverSampler)
    if not ours and edit.resamples > 1:
        raise UserError(
            "resamples has no effect with the model's own scheduler, whose noise levels are fixed; "
            "name a sampler, or leave it out"
        )
    if not ours and any(isinstance(each, VariedNoise) for each in generators or ()):
        raise UserError("variations need a sampler whose noise is drawn here; name another than the model's own")
    draws_noise = (sampler.is_stochastic if ours else diffusers_scheduler.draws_noise(sampler)) or edit.resamples > 1
    if draws_noise and (generators is None or len(generators) != batch):
        count = "none" if generators is None else len(generators)
        raise UserError(f"this sampler draws noise in each step: give one generator an item ({batch}), not {count}")
