"""Every model seen as one of flow matching, so that one set of solvers serves all objectives.

    x, e          clean latents and noise, from the prediction at z           [batch, channels, frames]
    alpha, sigma  z = alpha x + sigma e is what the U-Net sees                [batch, channels, frames]
    s             sigma / (alpha + sigma), from 1 (noise) to 0 (clean)
    y             z / (alpha + sigma) = (1 - s) x + s e, whose slope dy/ds is e - x

What a sampler does depends on the ratio of alpha and sigma alone: scaling z by alpha + sigma changes neither the path
from noise to sound nor the noise on it (Karras et al. 2022, arXiv:2206.00364, eq. 4). For models of flow matching
alpha + sigma is 1, and y is z.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffaudio.diffusion.noise_schedule import NoiseSchedule
from diffaudio.diffusion.objectives import clean_and_noise
from diffaudio.diffusion.solvers import Generators, Solution, Solver

__all__ = ["FlowFormScheduler"]


class FlowFormScheduler:
    """A solver for a model of any objective, with the calls of diffusers' schedulers. Latents between passes are y.

    Args:
        scheduler_config: of the checkpoint's own scheduler.
        spacing: of `SPACINGS`.
        is_stochastic: whether `step` needs generators.

    Attributes:
        timesteps: what the U-Net is told at each pass, [passes]; there from `set_timesteps` on.
        alphas, sigmas: of what the U-Net sees at each pass, lists of the same length.
    """

    def __init__(
        self, scheduler_config: Mapping[str, Any], solver: Solver, *, spacing: str, is_stochastic: bool
    ) -> None:
        self.config = scheduler_config
        self.spacing, self.is_stochastic = spacing, is_stochastic
        self._solver, self._schedule = solver, NoiseSchedule(scheduler_config)
        self._running: Solution | None = None

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Place the noise levels, and start anew.

        Raises:
            ValueError: see `NoiseSchedule.levels`.
        """
        self._levels = self._schedule.levels(self.spacing, num_inference_steps)
        asked = _levels_asked_for(self._solver, self._levels)
        self.timesteps = torch.tensor([self._schedule.timestep(s) for s in asked])
        pairs = [self._schedule.alpha_sigma(s) for s in asked]
        self.alphas, self.sigmas = [alpha for alpha, _ in pairs], [sigma for _, sigma in pairs]
        self._running, self._pass = None, 0

    @property
    def init_noise_sigma(self) -> float:
        """What to scale noise by, so that it is the first z."""
        return 1 / (self.alphas[0] + self.sigmas[0])

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """From y to z."""
        return sample * (self.alphas[self._pass] + self.sigmas[self._pass])

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """Go from y at one pass to y at the next, [batch, channels, frames]."""
        alpha, sigma = self.alphas[self._pass], self.sigmas[self._pass]
        x, e = clean_and_noise(model_output, sample * (alpha + sigma), alpha, sigma, self._schedule.predicts)
        if self._running is None:
            self._running = self._solver(sample, self._levels, generator)
            next(self._running)
        self._pass += 1
        try:
            y, _ = self._running.send(e - x)
        except StopIteration as finished:
            y = finished.value
        return (y,)


def _levels_asked_for(solver: Solver, levels: list[float]) -> list[float]:
    """s at each pass, found by letting the solver run over nothing."""
    running, asked = solver(torch.zeros(1, 1, 1), levels, [torch.Generator()]), []
    try:
        y, s = next(running)
        while True:
            asked.append(s)
            y, s = running.send(torch.zeros_like(y))
    except StopIteration:
        return asked
