"""Noise schedules: the noise levels a model was trained on, and the spacing of a sampler's steps over them.

    alpha, sigma  coefficients of the U-Net's input, z = alpha x + sigma e
    s             sigma / (alpha + sigma), from 1 (noise) to 0 (clean); for flow matching sigma itself
    t             the timestep that conditions the U-Net; 1000 s for flow matching

    trailing     uniform in t, from the first to one step before clean: Lin et al. 2023 (arXiv:2305.08891), table 2
    linear       uniform in t, from the first to the last timestep ('linspace' in that paper)
    karras       uniform in (sigma / alpha)^(1/7): Karras et al. 2022 (arXiv:2206.00364), eq. 5
    exponential  uniform in log(sigma / alpha): Lu et al. 2022 (arXiv:2206.00927), sec. 3.3

At pure noise sigma / alpha is infinite, so the last two use 80 instead (Karras et al., table 1) to compute the
spacing, but start from the noisiest level that the model was trained on, like the others.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from diffusers import DDIMScheduler

from diffaudio.diffusion.loss import prediction_type
from diffaudio.diffusion.sampler_table import SPACINGS
from diffaudio.errors import UserError

__all__ = ["NoiseSchedule"]

_MAX_RATIO = 80.0  # sigma / alpha


class NoiseSchedule:
    """The noise levels that a model was trained on.

    Attributes:
        predicts: the prediction type, as `prediction_type` returns it.
        num_timesteps: number of training timesteps; also the maximum number of steps for `levels`.
    """

    def __init__(self, scheduler_config: Mapping[str, Any]) -> None:
        self.predicts = prediction_type(scheduler_config)
        self.num_timesteps = int(scheduler_config["num_train_timesteps"])
        self.is_flow = self.predicts == "flow_prediction"
        if self.is_flow:
            self._shift = scheduler_config.get("shift", scheduler_config.get("flow_shift", 1.0))
            self._known = np.array([self._shifted(1 / self.num_timesteps), 1.0])
        else:
            known = inspect.signature(DDIMScheduler.__init__).parameters
            settings = {key: value for key, value in scheduler_config.items() if key in known}
            alpha_squared = DDIMScheduler(**settings).alphas_cumprod.double().numpy()
            alpha, sigma = np.sqrt(alpha_squared), np.sqrt(1 - alpha_squared)
            self._known = sigma / (alpha + sigma)

    def alpha_sigma(self, s: float) -> tuple[float, float]:
        """alpha and sigma at s: they sum to 1 for flow matching; their squares sum to 1 for all others."""
        size = 1.0 if self.is_flow else float(np.hypot(1 - s, s))
        return (1 - s) / size, s / size

    def timestep(self, s: float) -> float:
        """t at noise level s, linearly interpolated between training timesteps."""
        if self.is_flow:
            return s * self.num_timesteps
        return float(np.interp(s, self._known, np.arange(self.num_timesteps)))

    def level(self, timestep: float) -> float:
        """s at a timestep, linearly interpolated between training timesteps."""
        if self.is_flow:
            return timestep / self.num_timesteps
        return float(np.interp(timestep, np.arange(self.num_timesteps), self._known))

    def levels(self, spacing: str, num_steps: int) -> list[float]:
        """s at the start of each step, in decreasing order, then a final 0: [num_steps + 1].

        Raises:
            ValueError: `spacing` is unknown, or `num_steps` is out of range.
        """
        if spacing not in SPACINGS:
            raise UserError(f"spacing '{spacing}' is unknown; choose from {', '.join(SPACINGS)}")
        if not 1 <= num_steps <= self.num_timesteps:
            raise UserError(f"num_inference_steps is {num_steps}; it must be 1 to {self.num_timesteps}")
        if spacing in ("karras", "exponential"):
            levels = self._from_ratios(spacing, num_steps)
        else:
            last = self.num_timesteps / num_steps if spacing == "trailing" else 1
            places = np.linspace(self.num_timesteps, last, num_steps)  # t + 1
            levels = self._shifted(places / self.num_timesteps) if self.is_flow else self._at(places)
        return [*levels.tolist(), 0.0]

    def _shifted(self, s: Any) -> Any:
        """Timestep shifting: Esser et al. 2024 (arXiv:2403.03206), eq. 23."""
        return self._shift * s / (1 + (self._shift - 1) * s)

    def _at(self, places: np.ndarray) -> np.ndarray:
        return self._known[np.round(places).astype(int) - 1]

    def _from_ratios(self, spacing: str, num_steps: int) -> np.ndarray:
        lowest, highest = self._known[0], min(self._known[-1], _MAX_RATIO / (1 + _MAX_RATIO))
        first, last = highest / (1 - highest), lowest / (1 - lowest)
        if spacing == "karras":
            ratios = np.linspace(first ** (1 / 7), last ** (1 / 7), num_steps) ** 7
        else:
            ratios = np.geomspace(first, last, num_steps)
        levels = ratios / (1 + ratios)
        levels[0] = self._known[-1]
        return levels
