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

How often each noise level is drawn, and how much its loss weighs, is said in `level_sampling`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from diffaudio.diffusion.level_sampling import ExpectedLoss, NoiseSettings, min_snr_weight, sample_places
from diffaudio.errors import UserError
from diffaudio.seeding import BatchDraws

__all__ = ["DiffusionLoss", "clean_and_noise", "diffusion_loss", "prediction_of", "prediction_type"]

_PREDICTION_TYPES = ("flow_prediction", "v_prediction", "epsilon", "sample")


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


class DiffusionLoss(NamedTuple):
    """The losses of a batch.

    Attributes:
        items: mean squared error of each item's prediction [batch], float32.
        levels: noise level of each, 0 clean to 1 noise [batch], float32.
        total: what is minimised, the mean of the weighted losses; a scalar.
    """

    items: Tensor
    levels: Tensor
    total: Tensor


def diffusion_loss(
    unet: Callable[..., Tensor],
    latents: Tensor,
    embedding: Tensor,
    *,
    noise: Tensor,
    scheduler: Any,
    draws: BatchDraws,
    condition_dropout: float = 0.1,
    settings: NoiseSettings = NoiseSettings(),  # noqa: B008 - frozen
    expected_loss: ExpectedLoss | None = None,
) -> DiffusionLoss:
    """Squared error of the U-Net's prediction from latents at random noise levels.

    Args:
        unet: called as `unet(noisy, timestep, embedding, condition_mask)`.
        latents: [batch, channels, frames].
        embedding: [batch, embedding_dim].
        noise: standard normal [batch, channels, frames].
        scheduler: of `training_scheduler`, or any of diffusers' with one of its prediction types.
        draws: for these items: noise levels and dropped conditions.
        condition_dropout: probability of replacing the embedding by the null embedding (guidance needs both).
        settings: how noise levels are drawn and weigh.
        expected_loss: trained alongside, where the settings need it.
    """
    device, predicts = latents.device, prediction_type(scheduler.config)
    place, weight = sample_places(draws, settings, expected_loss)
    condition_mask = draws.uniform()[0] >= condition_dropout

    timestep, level, alpha, sigma = (value.to(device) for value in _noise_levels(scheduler, place))
    a, s = (value.to(latents.dtype)[:, None, None] for value in (alpha, sigma))
    target = prediction_of(latents, noise, a, s, predicts)
    prediction = unet(a * latents + s * noise, timestep, embedding, condition_mask.to(device))
    items = (prediction.float() - target.float()).square().mean(dim=(1, 2))

    weighted = items * weight.to(device)
    if settings.weighting == "min-snr":
        weighted = weighted * min_snr_weight(alpha, sigma, settings.min_snr_gamma, predicts)
    total = weighted.mean()
    if settings.learns_expected_loss:
        assert expected_loss is not None
        v = expected_loss(place.to(device))
        if settings.weighting == "learned":
            total = (weighted / v.exp() + v * weight.to(device)).mean()
        else:
            fit = (items.detach() / v.exp() + v).mean()
            total = total + fit - fit.detach()  # its gradient reaches `expected_loss` alone
    return DiffusionLoss(items, level, total)


def _noise_levels(scheduler: Any, place: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Timestep, noise level in 0..1, alpha and sigma at places of the schedule in 0..1: [items] each, float32."""
    num_timesteps = scheduler.config["num_train_timesteps"]
    if prediction_type(scheduler.config) == "flow_prediction":
        shift = scheduler.config.get("shift", 1.0)
        level = (shift * place / (1 + (shift - 1) * place)).float()  # Esser et al. 2024 (arXiv:2403.03206), eq. 23
        return level * num_timesteps, level, 1 - level, level
    timestep = (place * num_timesteps).long().clamp(max=num_timesteps - 1)
    alpha_squared = scheduler.alphas_cumprod[timestep]
    return timestep, (timestep + 1) / num_timesteps, alpha_squared.sqrt(), (1 - alpha_squared).sqrt()
