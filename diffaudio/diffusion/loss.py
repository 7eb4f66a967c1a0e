"""Objectives: what the U-Net predicts, and its training loss. The scheduler's config is authoritative.

    x    clean latents                      [batch, channels, frames]
    e    standard normal noise              [batch, channels, frames]
    z    noisy latents, input of the U-Net  [batch, channels, frames]
    s    noise level, 0 clean to 1 noise    [batch]

    flow_prediction  z = (1 - s) x + s e,         target e - x        (Liu et al. 2022, arXiv:2209.03003, eq. 1,
                                                                       time running the other way)
    v_prediction     z = alpha x + sigma e,       target alpha e - sigma x
                     alpha^2 = alphas_cumprod, sigma^2 = 1 - alpha^2  (Salimans & Ho 2022, arXiv:2202.00512, app. D)
    epsilon, sample  the same z,                  target e or x

Noise levels are logit-normal for flow matching (Esser et al. 2024, arXiv:2403.03206, eq. 19), for the
others uniform over the scheduler's timesteps. Both are stratified over the batch, which lowers the
variance of the gradient (Kingma et al. 2021, arXiv:2107.00630).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from diffaudio.errors import UserError

__all__ = ["clean_and_noise", "diffusion_loss", "prediction_of", "prediction_type", "training_scheduler"]

_PREDICTION_TYPES = ("flow_prediction", "v_prediction", "epsilon", "sample")


def training_scheduler(objective: str) -> FlowMatchEulerDiscreteScheduler | DPMSolverMultistepScheduler:
    """The scheduler saved in the checkpoint of a model trained for `objective`.

    Args:
        objective: 'flow' (flow matching) or 'v' (velocity, cosine noise schedule whose last step is pure noise:
            Lin et al. 2023, arXiv:2305.08891).

    Raises:
        ValueError: `objective` is neither.
    """
    if objective == "flow":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    if objective == "v":
        return DPMSolverMultistepScheduler(
            num_train_timesteps=1000,
            beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        )
    raise UserError(f"objective '{objective}' is unknown; choose from flow, v")


def prediction_type(scheduler_config: Mapping[str, Any]) -> str:
    """What a U-Net trained with this scheduler predicts: 'flow_prediction', 'v_prediction', 'epsilon' or 'sample'.

    Raises:
        ValueError: the config names another prediction.
    """
    # Flow-matching schedulers of diffusers have no such key, since they support only one prediction.
    name = scheduler_config.get("prediction_type", "flow_prediction")
    if name not in _PREDICTION_TYPES:
        choices = ", ".join(_PREDICTION_TYPES)
        raise UserError(f"the scheduler's prediction_type '{name}' is unknown; choose from {choices}")
    return name


def prediction_of(x: Tensor, e: Tensor, alpha: Tensor | float, sigma: Tensor | float, predicts: str) -> Tensor:
    """What a perfect U-Net would predict where z = alpha x + sigma e.

    Args:
        x, e: [batch, channels, frames].
        alpha, sigma: numbers, or [batch, 1, 1]; their sum is 1 for flow matching, that of their squares otherwise.
        predicts: of `prediction_type`.

    Returns:
        [batch, channels, frames].
    """
    if predicts == "flow_prediction":
        return e - x
    if predicts == "v_prediction":
        return alpha * e - sigma * x
    return e if predicts == "epsilon" else x


def clean_and_noise(
    prediction: Tensor, z: Tensor, alpha: Tensor | float, sigma: Tensor | float, predicts: str
) -> tuple[Tensor, Tensor]:
    """The x and e implied by a prediction at z: the inverse of `prediction_of`.

    The result is not finite where it is undetermined: x from predicted noise at alpha 0, e from predicted x at sigma 0.
    """
    if predicts == "flow_prediction":
        return z - sigma * prediction, z + alpha * prediction
    if predicts == "v_prediction":
        return alpha * z - sigma * prediction, sigma * z + alpha * prediction
    if predicts == "epsilon":
        return (z - sigma * prediction) / alpha, prediction
    return prediction, (z - alpha * prediction) / sigma


def diffusion_loss(
    unet: Callable[..., Tensor],
    latents: Tensor,
    embedding: Tensor,
    *,
    scheduler: Any,
    generator: torch.Generator,
    condition_dropout: float = 0.1,
    level_mean: float = 0.0,
    level_std: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Squared error of the U-Net's prediction from latents at random noise levels.

    Args:
        unet: called as `unet(noisy, timestep, embedding, condition_mask)`.
        latents: [batch, channels, frames].
        embedding: [batch, embedding_dim].
        scheduler: of `training_scheduler`, or any of diffusers' with one of its prediction types.
        generator: on the CPU; noise, noise levels and dropped conditions are drawn from it.
        condition_dropout: probability of replacing the embedding by the null embedding (guidance needs both).
        level_mean, level_std: mean and standard deviation of the logit of the noise level; for flow matching only.

    Returns:
        The loss of each item [batch], and its noise level in 0..1 [batch], both float32.
    """
    batch, device = latents.shape[0], latents.device
    noise = torch.randn(latents.shape, generator=generator).to(device, latents.dtype)
    # strata are assigned to items at random: where several corpora are mixed, each has fixed positions in the batch
    stratum = torch.randperm(batch, generator=generator)
    position = (stratum + torch.rand(batch, generator=generator)) / batch
    condition_mask = torch.rand(batch, generator=generator) >= condition_dropout
    predicts, num_timesteps = prediction_type(scheduler.config), scheduler.config["num_train_timesteps"]

    if predicts == "flow_prediction":
        logit = level_mean + level_std * torch.special.ndtri(position.clamp(1e-6, 1 - 1e-6))
        level = torch.sigmoid(logit)
        timestep = level * num_timesteps
        alpha, sigma = 1 - level, level
    else:
        timestep = (position * num_timesteps).long().clamp(max=num_timesteps - 1)
        level = (timestep + 1) / num_timesteps
        alpha_squared = scheduler.alphas_cumprod[timestep]
        alpha, sigma = alpha_squared.sqrt(), (1 - alpha_squared).sqrt()

    alpha, sigma = (y.to(device, latents.dtype)[:, None, None] for y in (alpha, sigma))
    target = prediction_of(latents, noise, alpha, sigma, predicts)
    prediction = unet(alpha * latents + sigma * noise, timestep.to(device), embedding, condition_mask.to(device))
    return (prediction.float() - target.float()).square().mean(dim=(1, 2)), level.to(device)
