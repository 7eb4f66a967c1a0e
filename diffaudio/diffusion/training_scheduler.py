"""The scheduler that a model is trained with and that is saved in its checkpoint.

    cosine   alpha^2 falls as a squared cosine of the timestep (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17)
    linear   beta rises from 0.0001 to 0.02 over 1,000 timesteps (Ho et al. 2020, arXiv:2006.11239, sec. 4)
    shift    sigma / alpha is multiplied by it: for flow matching Esser et al. 2024 (arXiv:2403.03206, eq. 23), for the
             others Hoogeboom et al. 2023 (arXiv:2301.11093, sec. 3.1), whose resolution ratio it is

With zero terminal SNR the last timestep is pure noise (Lin et al. 2023, arXiv:2305.08891, alg. 1).
"""

from typing import Any, Literal

import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from diffaudio.diffusion.level_sampling import NoiseSettings
from diffaudio.errors import UserError

__all__ = ["training_scheduler"]

_PREDICTION_TYPES: dict[str, Literal["v_prediction", "epsilon"]] = {"v": "v_prediction", "epsilon": "epsilon"}
_BETA_SCHEDULES = {"cosine": "squaredcos_cap_v2", "linear": "linear"}


def training_scheduler(
    objective: str,
    settings: NoiseSettings = NoiseSettings(),  # noqa: B008 - frozen
) -> FlowMatchEulerDiscreteScheduler | DPMSolverMultistepScheduler:
    """The scheduler saved in the checkpoint of a model trained for `objective`.

    Args:
        objective: 'flow' (flow matching), 'v' (velocity) or 'epsilon' (noise).
        settings: of the noise schedule.

    Raises:
        ValueError: `objective` is none of these, or the settings do not go with it.
    """
    if objective == "flow":
        for name in ("schedule", "zero_terminal_snr"):
            if getattr(settings, name) is not None:
                raise UserError(f"noise.{name} has no effect with objective flow; leave it out, or choose v or epsilon")
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=settings.shift)
    if objective not in _PREDICTION_TYPES:
        raise UserError(f"objective '{objective}' is unknown; choose from flow, {', '.join(_PREDICTION_TYPES)}")
    zero_snr = objective == "v" if settings.zero_terminal_snr is None else settings.zero_terminal_snr
    if zero_snr and objective == "epsilon":
        raise UserError(
            "noise.zero_terminal_snr does not go with objective epsilon: at pure noise, its prediction says nothing "
            "about the sound; choose v"
        )
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_schedule=_BETA_SCHEDULES[settings.schedule or "cosine"],
        prediction_type=_PREDICTION_TYPES[objective],
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing="trailing",
    )
    if settings.shift == 1:
        return scheduler
    betas = _shifted_betas(scheduler.betas, settings.shift)
    shifted: Any = DPMSolverMultistepScheduler.from_config(scheduler.config, trained_betas=betas.tolist())
    return shifted


def _shifted_betas(betas: torch.Tensor, shift: float) -> torch.Tensor:
    """Betas by which sigma / alpha is multiplied at every timestep: [timesteps] -> the same."""
    alpha_squared = (1 - betas.double()).cumprod(dim=0)
    shifted = alpha_squared / (alpha_squared + shift**2 * (1 - alpha_squared))
    return 1 - shifted / torch.cat([torch.ones(1, dtype=torch.float64), shifted[:-1]])
