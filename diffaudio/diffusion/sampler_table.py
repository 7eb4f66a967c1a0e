"""The samplers by name: what each does, how exactly, for which models and with which settings."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)

from diffaudio.diffusion import solvers
from diffaudio.diffusion.noise_schedule import SPACINGS

__all__ = ["EVEN", "NO_LEAP", "SAMPLERS", "TRAILING", "Sampler"]

OBJECTIVES = ("flow", "v", "epsilon", "sample")
EVEN = ("trailing", "linear")
# For solvers that extrapolate in log(sigma / alpha), where the last steps of 'linear' are a leap.
NO_LEAP = ("trailing", "karras", "exponential")
TRAILING = ("trailing",)


@dataclass(frozen=True)
class Sampler:
    """What a name stands for.

    Attributes:
        description: in a line, with its paper.
        order: of convergence in the number of steps; of a stochastic one's mean and deviation. 0 for those that jump.
        solver: None for distilled models, whose own scheduler serves.
        passes: over the U-Net, a step.
        is_stochastic: draws noise in each step; where it has an eta, only if that is above 0.
        spacings: those it takes, the first by itself.
        eta: None where it has none.
        objectives: of the models that it suits.
    """

    description: str
    order: int
    solver: Callable[..., solvers.Solution] | None
    passes: int = 1
    is_stochastic: bool = False
    spacings: tuple[str, ...] = SPACINGS
    eta: float | None = None
    objectives: tuple[str, ...] = OBJECTIVES


_dpm = functools.partial(solvers.of_diffusers, DPMSolverMultistepScheduler, solver_order=2, solver_type="midpoint")

SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(
        "the way of training backwards: Ho et al. 2020 (arXiv:2006.11239), alg. 2",
        order=1,
        solver=functools.partial(solvers.euler, eta=1.0),
        is_stochastic=True,
    ),
    "ddim": Sampler(
        "straight steps, with fresh noise by eta (1 is ddpm): Song et al. 2020 (arXiv:2010.02502), eq. 12 and 16",
        order=1,
        solver=solvers.euler,
        is_stochastic=True,
        eta=0.0,
    ),
    "pndm": Sampler(
        "linear multistep by constant weights: Liu et al. 2022 (arXiv:2202.09778), eq. 12",
        order=2,
        solver=solvers.pndm,
        spacings=EVEN,
    ),
    "euler": Sampler(
        "straight steps along the slope, the same as ddim with eta 0: Karras et al. 2022 (arXiv:2206.00364), sec. 3",
        order=1,
        solver=solvers.euler,
    ),
    "euler_a": Sampler(
        "euler with fresh noise, by eta; the same steps as ddpm with eta 1: k-diffusion's sample_euler_ancestral",
        order=1,
        solver=solvers.euler,
        is_stochastic=True,
        eta=1.0,
    ),
    "heun": Sampler(
        "mean slope of both ends, one pass in the last step: Karras et al. 2022 (arXiv:2206.00364), alg. 1",
        order=2,
        solver=solvers.heun,
        passes=2,
        spacings=("linear", "trailing", "karras", "exponential"),  # its last step is euler's, so best a short one
    ),
    "lms": Sampler(
        "linear multistep over four slopes, started by euler: k-diffusion's sample_lms",
        order=2,
        solver=solvers.lms,
    ),
    "dpm2": Sampler(
        "slope from half way: DPM-Solver-2, Lu et al. 2022 (arXiv:2206.00927), alg. 1, as in k-diffusion",
        order=2,
        solver=solvers.dpm2,
        passes=2,
    ),
    "dpm2_a": Sampler(
        "dpm2 with fresh noise, by eta: k-diffusion's sample_dpm_2_ancestral",
        order=2,
        solver=solvers.dpm2,
        passes=2,
        is_stochastic=True,
        eta=1.0,
    ),
    "dpm++2s": Sampler(
        "DPM-Solver++(2S), two steps at a time: Lu et al. 2022 (arXiv:2211.01095), alg. 1",
        order=2,
        solver=solvers.of_diffusers(DPMSolverSinglestepScheduler, solver_order=2, lower_order_final=True),
        spacings=NO_LEAP,
    ),
    "dpm++2m": Sampler(
        "DPM-Solver++(2M), multistep: Lu et al. 2022 (arXiv:2211.01095), alg. 2",
        order=2,
        solver=_dpm(algorithm_type="dpmsolver++"),
        spacings=NO_LEAP,
    ),
    "dpm++2m_sde": Sampler(
        "SDE-DPM-Solver++(2M), dpm++2m with fresh noise: Lu et al. 2022 (arXiv:2211.01095)",
        order=2,
        solver=_dpm(algorithm_type="sde-dpmsolver++"),
        is_stochastic=True,
        spacings=NO_LEAP,
    ),
    "dpm++3m": Sampler(
        "DPM-Solver++(3M), its order reached with spacing exponential: Lu et al. 2022 (arXiv:2211.01095), sec. 4.2",
        order=3,
        solver=solvers.dpmpp_3m,
        spacings=NO_LEAP,
    ),
    "deis": Sampler(
        "multistep on the noise, over log(sigma / alpha), of second order: Zhang & Chen 2022 (arXiv:2204.13902)",
        order=2,
        solver=solvers.of_diffusers(DEISMultistepScheduler, solver_order=2, euler_ends=True),
        spacings=NO_LEAP,
    ),
    "unipc": Sampler(
        "predictor, then corrector by the next pass: Zhao et al. 2023 (arXiv:2302.04867), alg. 1 and 2",
        order=3,
        solver=solvers.of_diffusers(UniPCMultistepScheduler, solver_order=2, solver_type="bh2"),
        spacings=NO_LEAP,
    ),
    "sa": Sampler(
        "stochastic Adams, with fresh noise in the middle of the way: Xue et al. 2023 (arXiv:2309.05019), alg. 1",
        order=2,
        solver=solvers.of_diffusers(SASolverScheduler, euler_ends=True),
        is_stochastic=True,
        spacings=TRAILING,
    ),
    "lcm": Sampler(
        "jump to clean latents and put noise on again: Luo et al. 2023 (arXiv:2310.04378)",
        order=0,
        solver=None,
        is_stochastic=True,
        spacings=(),
        objectives=("distilled by LCM",),
    ),
    "tcd": Sampler(
        "jump a part of the way, with fresh noise by eta (gamma there): Zheng et al. 2024 (arXiv:2402.19159)",
        order=0,
        solver=None,
        is_stochastic=True,
        spacings=(),
        eta=0.3,
        objectives=("distilled by TCD",),
    ),
}
