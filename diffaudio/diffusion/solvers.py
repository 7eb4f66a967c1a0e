"""Solvers: how a sampler goes from level to level, each beside its paper. All work on one form of latents.

    x, e   clean latents and noise                             [batch, channels, frames]
    s      noise level, from 1 (noise) to 0 (clean)
    y      (1 - s) x + s e                                     [batch, channels, frames]
    slope  dy/ds = e - x, from the U-Net                       [batch, channels, frames]
    lam    log((1 - s) / s), half the log signal-to-noise ratio

A solver is a generator: it yields (y, s) where it wants the slope, is sent that, and returns y at s = 0. At pure noise
s and the slope are finite, unlike sigma / alpha, in which the papers and diffusers' schedulers measure.
"""

import inspect
import math
from collections.abc import Callable, Generator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

__all__ = ["Generators", "Solution", "Solver", "dpm2", "dpmpp_3m", "euler", "heun", "lms", "of_diffusers", "pndm"]

Solution = Generator[tuple[Tensor, float], Tensor, Tensor]
Generators = list[torch.Generator] | None  # one an item, on the CPU; for solvers that draw noise
Solver = Callable[[Tensor, list[float], Generators], Solution]

# For diffusers' schedulers, which take the logarithm of 1 - s.
_ALMOST_NOISE = 1 - 2.0**-14


def euler(y: Tensor, levels: list[float], generators: Generators, *, eta: float = 0.0) -> Solution:
    """DDIM (Song et al. 2020, arXiv:2010.02502, eq. 12), whose step is Euler's with eta 0.

    With eta 1 it is DDPM's (Ho et al. 2020, arXiv:2006.11239, alg. 2, of variance beta tilde) and k-diffusion's Euler
    ancestral, which are the same step in other letters.
    """
    for s, s_next in pairwise(levels):
        s_down, size, s_up = _ancestral(s, s_next, eta)
        y = y + (s_down - s) * (yield y, s)
        y = size * y + s_up * _noise(y, generators) if s_up > 0 else y
    return y


def dpm2(y: Tensor, levels: list[float], generators: Generators, *, eta: float = 0.0) -> Solution:
    """The slope from half way: DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927, alg. 1) as k-diffusion simplifies it.

    Half way is taken in s; in log sigma, as there, it would be infinitely far from pure noise. Euler's step ends it.
    """
    for s, s_next in pairwise(levels):
        s_down, size, s_up = _ancestral(s, s_next, eta)
        middle = (s + s_down) / 2
        slope = yield y, s
        slope = yield y + (middle - s) * slope, middle
        y = y + (s_down - s) * slope
        y = size * y + s_up * _noise(y, generators) if s_up > 0 else y
    return y


def heun(y: Tensor, levels: list[float], generators: Generators) -> Solution:
    """The mean of the slopes at both ends: Karras et al. 2022 (arXiv:2206.00364), alg. 1."""
    for s, s_next in pairwise(levels):
        slope = yield y, s
        if s_next > 0:
            slope = (slope + (yield y + (s_next - s) * slope, s_next)) / 2
        y = y + (s_next - s) * slope
    return y


def lms(y: Tensor, levels: list[float], generators: Generators, *, order: int = 4) -> Solution:
    """Linear multistep: the polynomial through the last `order` slopes, integrated (k-diffusion's `sample_lms`)."""
    slopes: list[Tensor] = []
    for index, (s, s_next) in enumerate(pairwise(levels)):
        slopes = [*slopes, (yield y, s)][-order:]
        nodes = levels[index - len(slopes) + 1 : index + 1]
        weights = _adams_weights(nodes, s, s_next)
        y = y + sum(weight * slope for weight, slope in zip(weights, slopes, strict=True))
    return y


# Adams-Bashforth, the newest first: Liu et al. 2022, eq. 12.
_PNDM = {2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}


def pndm(y: Tensor, levels: list[float], generators: Generators) -> Solution:
    """Pseudo linear multistep (Liu et al. 2022, arXiv:2202.09778, eq. 12), for steps even in t.

    The paper's transfer of mean noise (eq. 9) is that of the mean slope here, which stays finite at pure noise. It
    begins like diffusers' with `skip_prk_steps`: the first step is made again with the mean of the slopes at both ends.
    """
    slopes: list[Tensor] = []
    for index, (s, s_next) in enumerate(pairwise(levels)):
        slopes = [(yield y, s), *slopes][:4]
        slope = slopes[0]
        if index == 0 and s_next > 0:
            slope = (slope + (yield y + (s_next - s) * slope, s_next)) / 2
        elif index > 0:
            slope = sum(weight * each for weight, each in zip(_PNDM[len(slopes)], slopes, strict=True))
        y = y + (s_next - s) * slope
    return y


def dpmpp_3m(y: Tensor, levels: list[float], generators: Generators) -> Solution:
    """DPM-Solver++ of third order: the parabola in lam through the last three x, integrated exactly.

    Lu et al. 2022 (arXiv:2211.01095), prop. 4.1 and sec. 4.2. The authors' code and diffusers' drop a factor 2 of the
    second derivative, with which the order stays 2.
    """
    clean: list[Tensor] = []
    lams: list[float] = []
    for s, s_next in pairwise(levels):
        slope = yield y, s
        clean, lams = [y - s * slope, *clean][:3], [_lam(s), *lams][:3]
        if s_next == 0:
            return clean[0]
        h = _lam(s_next) - lams[0]
        # integrals of exp(u - h) u^k from 0 to h, u = lam - lams[0]
        first = -math.expm1(-h)
        second = h - first
        third = h**2 - 2 * second
        change = first * clean[0]
        if len(clean) > 1:
            slope_0 = (clean[0] - clean[1]) / (lams[0] - lams[1])
            change = change + second * slope_0
        if len(clean) > 2:
            slope_1 = (clean[1] - clean[2]) / (lams[1] - lams[2])
            bend = (slope_0 - slope_1) / (lams[0] - lams[2])
            change = change + (third + second * (lams[0] - lams[1])) * bend
        y = (s_next / s) * y + (1 - s_next) * change
    return y


def of_diffusers(kind: type, *, euler_ends: bool = False, **settings: Any) -> Solver:
    """A solver out of a scheduler of diffusers that knows flow matching, with our levels in place of its own.

    Args:
        euler_ends: the last step, to clean latents, is Euler's, as the scheduler's own formula has no limit there.
        settings: of the scheduler.
    """
    takes_generators = "generator" in inspect.signature(kind.step).parameters

    def solver(y: Tensor, levels: list[float], generators: Generators) -> Solution:
        scheduler = kind(prediction_type="flow_prediction", use_flow_sigmas=True, **settings)
        scheduler.set_timesteps(len(levels) - 1)
        # differences of logarithms cancel in single precision, but MPS has no other
        dtype = torch.float32 if y.device.type == "mps" else torch.float64
        scheduler.sigmas = torch.tensor([min(s, _ALMOST_NOISE) for s in levels], dtype=dtype)
        scheduler.timesteps = scheduler.sigmas[:-1] * scheduler.config.num_train_timesteps
        scheduler.set_begin_index(0)
        draws = {"generator": generators} if takes_generators else {}
        for (s, s_next), timestep in zip(pairwise(levels), scheduler.timesteps, strict=True):
            slope = yield y, s
            if s_next == 0 and euler_ends:
                return y - s * slope
            y = scheduler.step(slope, timestep, y, return_dict=False, **draws)[0]
        return y

    return solver


def _lam(s: float) -> float:
    return math.log((1 - s) / s) if s < 1 else -math.inf


def _ancestral(s: float, s_next: float, eta: float) -> tuple[float, float, float]:
    """Split a step in one down to less noise and fresh noise on top of it (Song et al. 2020, eq. 16).

    Returns:
        The level to go down to, by what to scale y there, and the deviation of the noise to add.
    """
    if s_next == 0 or eta == 0:
        return s_next, 1.0, 0.0
    ratio = (s_next * (1 - s)) / (s * (1 - s_next))  # of sigma / alpha
    s_up = eta * s_next * math.sqrt(1 - ratio**2)
    rest = math.sqrt(s_next**2 - s_up**2)
    size = 1 - s_next + rest
    return rest / size, size, s_up


def _noise(y: Tensor, generators: Generators) -> Tensor:
    return randn_tensor(tuple(y.shape), generator=generators, device=y.device, dtype=y.dtype)


def _adams_weights(nodes: list[float], start: float, end: float) -> list[float]:
    """What to weigh values at the nodes by, for the integral from start to end of the polynomial through them."""
    places = (np.array(nodes) - start) / (end - start)
    powers = np.arange(len(nodes))
    return ((end - start) * np.linalg.solve(places ** powers[:, None], 1 / (powers + 1))).tolist()
