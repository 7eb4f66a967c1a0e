"""Noise levels of training: how often each is drawn, and how much its loss weighs.

    u      place in the noise schedule, 0 clean to 1 noise; a scheduler's shift maps it to a noise level
    SNR    signal-to-noise ratio, alpha^2 / sigma^2
    v(u)   logarithm of the expected loss at u, learned alongside

    logit-normal  logit(u) is normal (Esser et al. 2024, arXiv:2403.03206, sec. 3.1)
    loss          u has a density in proportion to sqrt(E[loss]) and the loss is divided by it: the expected gradient is
                  that of uniform sampling, with less variance (Nichol & Dhariwal 2021, arXiv:2102.09672, sec. 3.3)
    min-snr       the squared error of x weighs min(SNR, gamma) (Hang et al. 2023, arXiv:2303.09556, sec. 3.4)
    learned       loss / exp(v) + v, by which all noise levels weigh equally (Karras et al. 2023, arXiv:2312.02696,
                  app. B.2: a multi-task uncertainty)

Places are stratified over the batch, which lowers the variance of the gradient (Kingma et al. 2021, arXiv:2107.00630,
app. I.1).
"""

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn

from diffaudio.config import Positive
from diffaudio.errors import UserError
from diffaudio.seeding import BatchDraws

__all__ = ["ExpectedLoss", "NoiseSettings", "min_snr_weight", "sample_places"]

_GRID = 1000  # places at which a density is computed


@dataclass(frozen=True)
class NoiseSettings:
    """Which noise levels a model is trained on, how often, and how much their losses weigh.

    Attributes:
        schedule: of v and epsilon; default: cosine. Flow matching has its own, which is linear.
        shift: above 1 moves all places of the schedule towards noise: sigma / alpha is multiplied by it.
        zero_terminal_snr: whether the last timestep is pure noise; default: true for v, false for epsilon.
        sampling: distribution of the places in the schedule.
        logit_mean, logit_std: of the logit of the place, for logit-normal sampling; 0 is the middle of the schedule.
        weighting: of the losses.
        min_snr_gamma: for min-snr weighting.
    """

    schedule: Literal["cosine", "linear"] | None = None
    shift: Positive = 1.0
    zero_terminal_snr: bool | None = None
    sampling: Literal["uniform", "logit-normal", "loss"] = "logit-normal"
    logit_mean: float = 0.0
    logit_std: Positive = 1.0
    weighting: Literal["uniform", "min-snr", "learned"] = "uniform"
    min_snr_gamma: Positive = 5.0

    def __post_init__(self) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        for name, of, value in (
            ("logit_mean", "sampling", "logit-normal"),
            ("logit_std", "sampling", "logit-normal"),
            ("min_snr_gamma", "weighting", "min-snr"),
        ):
            if getattr(self, of) != value and getattr(self, name) != defaults[name]:
                raise UserError(f"noise.{name} has no effect with noise.{of} {getattr(self, of)}; leave it out")

    @property
    def learns_expected_loss(self) -> bool:
        """Whether an `ExpectedLoss` is trained alongside."""
        return self.sampling == "loss" or self.weighting == "learned"


class ExpectedLoss(nn.Module):
    """v(u), the logarithm of the expected loss at a place of the noise schedule; 0 everywhere at first.

    Args:
        num_features: random Fourier features of u.
        bandwidth: standard deviation of their frequencies, in periods over the schedule.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, num_features: int = 64, bandwidth: float = 2.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("frequencies", bandwidth * torch.randn(num_features, generator=generator))
        self.register_buffer("phases", torch.rand(num_features, generator=generator))
        self.linear = nn.Linear(num_features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, u: Tensor) -> Tensor:
        """[items] -> [items], float32."""
        angles = 2 * torch.pi * (u.float()[:, None] * self.frequencies + self.phases)
        return self.linear(2**0.5 * angles.cos())[:, 0]

    @torch.no_grad()
    def density(self) -> Tensor:
        """Density of u in proportion to sqrt(E[loss]), at the middles of equal intervals: [intervals] float64, mean 1.

        It is mixed with a tenth of uniform sampling, so that no level is forgotten and no weight explodes.
        """
        middles = (torch.arange(_GRID, dtype=torch.float64, device=self.frequencies.device) + 0.5) / _GRID
        v = self(middles).double()
        density = ((v - v.max()) / 2).exp()
        return (0.9 * density / density.mean() + 0.1).cpu()


def sample_places(
    draws: BatchDraws, settings: NoiseSettings, expected_loss: ExpectedLoss | None = None
) -> tuple[Tensor, Tensor]:
    """Draw places in the noise schedule.

    Args:
        expected_loss: for sampling by loss.

    Returns:
        places in 0..1 [items] float64, and the weights of their losses [items] float32: 1 but for sampling by loss.
    """
    position = draws.stratified()
    weight = torch.ones(len(position))
    if settings.sampling == "logit-normal":
        normal = torch.special.ndtri(position.clamp(1e-6, 1 - 1e-6))
        position = torch.sigmoid(settings.logit_mean + settings.logit_std * normal)
    elif settings.sampling == "loss":
        assert expected_loss is not None
        density = expected_loss.density()
        cumulative = density.cumsum(0) / _GRID
        interval = torch.searchsorted(cumulative, position).clamp(max=_GRID - 1)
        begin = cumulative[interval] - density[interval] / _GRID
        position = (interval + (position - begin) / (density[interval] / _GRID)) / _GRID
        weight = (1 / density[interval]).float()
    return position.clamp(0, 1), weight


def min_snr_weight(alpha: Tensor, sigma: Tensor, gamma: float, predicts: str) -> Tensor:
    """The weight of the squared error of a prediction by which that of x weighs min(SNR, gamma).

    Args:
        alpha, sigma: [items].
        predicts: of `prediction_type`.
    """
    snr = (alpha / sigma).square()
    # The squared error of the prediction is this multiple of the squared error of the x that it implies.
    multiple = {"epsilon": snr, "sample": torch.ones_like(snr)}.get(predicts, sigma**-2)
    return torch.where(multiple > 0, snr.clamp(max=gamma) / multiple, 1.0)
