"""Solvers: integration from one noise level to the next, each with its paper. All use the same parametrisation.

    x, e   clean latents and noise                             [batch, channels, frames]
    s      noise level, from 1 (noise) to 0 (clean)
    y      (1 - s) x + s e                                     [batch, channels, frames]
    slope  dy/ds = e - x, from the U-Net                       [batch, channels, frames]
    lam    log((1 - s) / s), half the log signal-to-noise ratio

A solver is a function (denoiser, y, levels, generators) -> y at s = 0. `levels` decrease from the first s to 0, and y
is given at the first. `denoiser(y, s)` is the slope, one U-Net evaluation. At pure noise s and the slope are finite,
unlike sigma / alpha, which the papers and diffusers' schedulers use.

torch and numpy are imported only where they are needed, so that the table of samplers can be read without them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from diffaudio.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    Denoiser = Callable[[Tensor, float], Tensor]
    Generators = list[Any] | None  # a CPU generator or `VariedNoise` per item; for solvers that draw noise
    Solver = Callable[..., Tensor]  # (denoiser, y, levels, generators), some with an eta

__all__ = ["dpm2", "dpmpp_3m", "euler", "from_diffusers", "heun", "lms", "pndm"]

# For diffusers' schedulers, which take the logarithm of 1 - s.
_ALMOST_NOISE = 1 - 2.0**-14


def euler(
    denoiser: Denoiser, y: Tensor, levels: list[float], generators: Generators = None, *, eta: float = 0.0
) -> Tensor:
    """DDIM (Song et al. 2020, arXiv:2010.02502, eq. 12), which is Euler's method at eta 0.

    At eta 1 it is DDPM (Ho et al. 2020, arXiv:2006.11239, alg. 2, with variance beta tilde) and k-diffusion's Euler
    ancestral, which are the same step in different notation.
    """
    for s, s_next in pairwise(levels):
        s_down, scale, noise_std = _ancestral(s, s_next, eta)
        y = y + (s_down - s) * denoiser(y, s)
        y = scale * y + noise_std * _noise_like(y, generators) if noise_std > 0 else y
    return y


def dpm2(
    denoiser: Denoiser, y: Tensor, levels: list[float], generators: Generators = None, *, eta: float = 0.0
) -> Tensor:
    """The slope at the midpoint: DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927, alg. 1) as k-diffusion simplifies it.

    The midpoint is taken in s; in log sigma, as k-diffusion takes it, it would be infinitely far from pure noise.
    """
    for s, s_next in pairwise(levels):
        s_down, scale, noise_std = _ancestral(s, s_next, eta)
        s_mid = (s + s_down) / 2
        y_mid = y + (s_mid - s) * denoiser(y, s)
        y = y + (s_down - s) * denoiser(y_mid, s_mid)
        y = scale * y + noise_std * _noise_like(y, generators) if noise_std > 0 else y
    return y


def heun(denoiser: Denoiser, y: Tensor, levels: list[float], generators: Generators = None) -> Tensor:
    """The mean of the slopes at both ends: Karras et al. 2022 (arXiv:2206.00364), alg. 1."""
    for s, s_next in pairwise(levels):
        slope = denoiser(y, s)
        if s_next > 0:
            slope = (slope + denoiser(y + (s_next - s) * slope, s_next)) / 2
        y = y + (s_next - s) * slope
    return y


def lms(denoiser: Denoiser, y: Tensor, levels: list[float], generators: Generators = None, *, order: int = 4) -> Tensor:
    """Linear multistep: the polynomial through the last `order` slopes, integrated (k-diffusion's `sample_lms`)."""
    slopes: list[Tensor] = []
    for index, (s, s_next) in enumerate(pairwise(levels)):
        slopes = [*slopes, denoiser(y, s)][-order:]
        nodes = levels[index - len(slopes) + 1 : index + 1]
        weights = _adams_weights(nodes, s, s_next)
        y = y + sum(weight * slope for weight, slope in zip(weights, slopes, strict=True))
    return y


# Adams-Bashforth, the newest slope first: Liu et al. 2022, eq. 12.
_PNDM = {2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}


def pndm(denoiser: Denoiser, y: Tensor, levels: list[float], generators: Generators = None) -> Tensor:
    """Pseudo linear multistep (Liu et al. 2022, arXiv:2202.09778, eq. 12), for steps uniform in t.

    The paper combines noise predictions (eq. 9); this combines slopes, which stay finite at pure noise. It starts
    like diffusers' with `skip_prk_steps`: the first step is repeated with the mean of the slopes at both ends.
    """
    slopes: list[Tensor] = []
    for index, (s, s_next) in enumerate(pairwise(levels)):
        slopes = [denoiser(y, s), *slopes][:4]
        slope = slopes[0]
        if index == 0 and s_next > 0:
            slope = (slope + denoiser(y + (s_next - s) * slope, s_next)) / 2
        elif index > 0:
            slope = sum(weight * each for weight, each in zip(_PNDM[len(slopes)], slopes, strict=True))
        y = y + (s_next - s) * slope
    return y


def dpmpp_3m(denoiser: Denoiser, y: Tensor, levels: list[float], generators: Generators = None) -> Tensor:
    """DPM-Solver++ of third order: the parabola in lam through the last three x, integrated exactly.

    Lu et al. 2022 (arXiv:2211.01095), prop. 4.1 and sec. 4.2. The authors' code and diffusers' omit a factor of 2
    in the second derivative, which leaves them second order.
    """
    x: list[Tensor] = []
    lams: list[float] = []
    for s, s_next in pairwise(levels):
        x, lams = [y - s * denoiser(y, s), *x][:3], [_lam(s), *lams][:3]
        if s_next == 0:
            return x[0]
        h = _lam(s_next) - lams[0]
        # integrals of exp(u - h) u^k from 0 to h, u = lam - lams[0]
        integral_0 = -math.expm1(-h)
        integral_1 = h - integral_0
        integral_2 = h**2 - 2 * integral_1
        change = integral_0 * x[0]
        if len(x) > 1:
            difference_01 = (x[0] - x[1]) / (lams[0] - lams[1])
            change = change + integral_1 * difference_01
        if len(x) > 2:
            difference_12 = (x[1] - x[2]) / (lams[1] - lams[2])
            curvature = (difference_01 - difference_12) / (lams[0] - lams[2])
            change = change + (integral_2 + integral_1 * (lams[0] - lams[1])) * curvature
        y = (s_next / s) * y + (1 - s_next) * change
    return y


def from_diffusers(
    scheduler: str, *, takes_generators: bool = False, euler_ends: bool = False, **settings: Any
) -> Solver:
    """A solver from a diffusers scheduler that supports flow matching, with our noise levels instead of its own.

    Args:
        scheduler: class name.
        takes_generators: whether its steps draw noise, or may.
        euler_ends: the last step, to clean latents, is Euler's, as the scheduler's formula has no limit there.
        settings: further arguments of the scheduler.
    """

    def solver(denoiser: Denoiser, y: Tensor, levels: list[float], generators: Generators = None) -> Tensor:
        import diffusers
        import torch

        steps = getattr(diffusers, scheduler)(prediction_type="flow_prediction", use_flow_sigmas=True, **settings)
        steps.set_timesteps(len(levels) - 1)
        # differences of logarithms cancel in single precision, but MPS has no double precision
        dtype = torch.float32 if y.device.type == "mps" else torch.float64
        steps.sigmas = torch.tensor([min(s, _ALMOST_NOISE) for s in levels], dtype=dtype)
        steps.timesteps = steps.sigmas[:-1] * steps.config.num_train_timesteps
        steps.set_begin_index(0)
        noise = {"generator": generators} if takes_generators else {}
        varied = takes_generators and _is_varied(generators)
        if varied and scheduler == "SASolverScheduler":
            raise UserError("variations need a sampler whose noise is drawn here; sa draws its own, choose another")
        if varied and "variance_noise" not in inspect.signature(steps.step).parameters:
            noise, varied = {}, False  # it draws none
        for (s, s_next), timestep in zip(pairwise(levels), steps.timesteps, strict=True):
            slope = denoiser(y, s)
            if s_next == 0 and euler_ends:
                return y - s * slope
            noise = {"variance_noise": _noise_like(y, generators)} if varied else noise
            y = steps.step(slope, timestep, y, return_dict=False, **noise)[0]
        return y

    return solver


def _lam(s: float) -> float:
    return math.log((1 - s) / s) if s < 1 else -math.inf


def _ancestral(s: float, s_next: float, eta: float) -> tuple[float, float, float]:
    """Split a step into a deterministic step to less noise and fresh noise added to it (Song et al. 2020, eq. 16).

    Returns:
        The noise level to step down to, the factor applied to y there, and the standard deviation of the noise to add.
    """
    if s_next == 0 or eta == 0:
        return s_next, 1.0, 0.0
    ratio = (s_next * (1 - s)) / (s * (1 - s_next))  # ratio of the two sigma / alpha
    noise_std = eta * s_next * math.sqrt(1 - ratio**2)
    remaining_std = math.sqrt(s_next**2 - noise_std**2)
    scale = 1 - s_next + remaining_std
    return remaining_std / scale, scale, noise_std


def _is_varied(generators: Generators) -> bool:
    import torch

    return generators is not None and any(not isinstance(each, torch.Generator) for each in generators)


def _noise_like(y: Tensor, generators: Generators) -> Tensor:
    from diffusers.utils import torch_utils

    if _is_varied(generators):
        import torch

        return torch.stack([each.draw(tuple(y.shape[1:])) for each in generators or ()]).to(y)
    return torch_utils.randn_tensor(tuple(y.shape), generator=generators, device=y.device, dtype=y.dtype)


def _adams_weights(nodes: list[float], start: float, end: float) -> list[float]:
    """Quadrature weights of the nodes: the integral from start to end of the interpolating polynomial."""
    import numpy as np

    positions = (np.array(nodes) - start) / (end - start)
    powers = np.arange(len(nodes))
    return ((end - start) * np.linalg.solve(positions ** powers[:, None], 1 / (powers + 1))).tolist()
