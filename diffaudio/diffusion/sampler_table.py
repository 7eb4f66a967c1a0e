"""The samplers by name: description, order of convergence, supported models and settings.

Diffusers' schedulers are used where they support flow matching (DPM-Solver++, DEIS, UniPC, SA), with our own noise
levels (`noise_schedule`). The others are implemented in `solvers`: diffusers' have no form for flow matching; its LMS
needs scipy; its DDIM and PNDM miscount where the number of steps does not divide 1000; its Heun, DPM2 and LMS measure
in sigma / alpha, which is infinite where a schedule begins with pure noise; and its DPM-Solver++ of third order is of
second.

Like `solvers`, this module imports no torch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffaudio.diffusion import solvers
from diffaudio.errors import UserError

if TYPE_CHECKING:
    from diffaudio.diffusion.solvers import Solver

__all__ = ["SAMPLERS", "SPACINGS", "Sampler", "check_sampler"]

SPACINGS = ("trailing", "linear", "karras", "exponential")  # see `noise_schedule`
OBJECTIVES = ("flow", "v", "epsilon", "sample")
EVEN = ("trailing", "linear")
# For solvers that extrapolate in log(sigma / alpha), where the last steps of 'linear' are a leap.
NO_LEAP = ("trailing", "karras", "exponential")
TRAILING = ("trailing",)


@dataclass(frozen=True)
class Sampler:
    """A row of the table.

    Attributes:
        description: one line, with its paper.
        order: order of convergence in the number of steps; if stochastic, of mean and std. 0 for distilled models.
        solver: None for distilled models, which are sampled by their own scheduler.
        passes: U-Net evaluations per step.
        is_stochastic: draws noise in each step; where it has an eta, only if that is above 0.
        spacings: supported spacings, the default first.
        eta: default eta; None if it has none.
        objectives: objectives of the models that it supports.
    """

    description: str
    order: int
    solver: Solver | None
    passes: int = 1
    is_stochastic: bool = False
    spacings: tuple[str, ...] = SPACINGS
    eta: float | None = None
    objectives: tuple[str, ...] = OBJECTIVES


_dpmpp_2m = functools.partial(
    solvers.from_diffusers,
    "DPMSolverMultistepScheduler",
    takes_generators=True,
    solver_order=2,
    solver_type="midpoint",
)

SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(
        "training in reverse: Ho et al. 2020 (arXiv:2006.11239), alg. 2",
        order=1,
        solver=functools.partial(solvers.euler, eta=1.0),
        is_stochastic=True,
    ),
    "ddim": Sampler(
        "Euler steps, with fresh noise by eta (1 is ddpm): Song et al. 2020 (arXiv:2010.02502), eq. 12 and 16",
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
        "straight steps along the slope, the same as ddim at eta 0: Karras et al. 2022 (arXiv:2206.00364), sec. 3",
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
        "slope at the midpoint: DPM-Solver-2, Lu et al. 2022 (arXiv:2206.00927), alg. 1, as in k-diffusion",
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
        solver=solvers.from_diffusers(
            "DPMSolverSinglestepScheduler", takes_generators=True, solver_order=2, lower_order_final=True
        ),
        spacings=NO_LEAP,
    ),
    "dpm++2m": Sampler(
        "DPM-Solver++(2M), multistep: Lu et al. 2022 (arXiv:2211.01095), alg. 2",
        order=2,
        solver=_dpmpp_2m(algorithm_type="dpmsolver++"),
        spacings=NO_LEAP,
    ),
    "dpm++2m_sde": Sampler(
        "SDE-DPM-Solver++(2M), dpm++2m with fresh noise: Lu et al. 2022 (arXiv:2211.01095)",
        order=2,
        solver=_dpmpp_2m(algorithm_type="sde-dpmsolver++"),
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
        solver=solvers.from_diffusers("DEISMultistepScheduler", solver_order=2, euler_ends=True),
        spacings=NO_LEAP,
    ),
    "unipc": Sampler(
        "predictor, then corrector by the next pass: Zhao et al. 2023 (arXiv:2302.04867), alg. 1 and 2",
        order=3,
        solver=solvers.from_diffusers("UniPCMultistepScheduler", solver_order=2, solver_type="bh2"),
        spacings=NO_LEAP,
    ),
    "sa": Sampler(
        "stochastic Adams, with fresh noise at middle noise levels: Xue et al. 2023 (arXiv:2309.05019), alg. 1",
        order=2,
        # A predictor of second order overshoots in few steps: std 1.2 to 1.5 times the exact one at 6 to 12 steps.
        solver=solvers.from_diffusers(
            "SASolverScheduler", takes_generators=True, euler_ends=True, predictor_order=1, corrector_order=2
        ),
        is_stochastic=True,
        spacings=TRAILING,
    ),
    "lcm": Sampler(
        "jump to clean latents and add noise again: Luo et al. 2023 (arXiv:2310.04378)",
        order=0,
        solver=None,
        is_stochastic=True,
        spacings=(),
        objectives=("distilled by LCM",),
    ),
    "tcd": Sampler(
        "jump part of the way, with fresh noise by eta (gamma there): Zheng et al. 2024 (arXiv:2402.19159)",
        order=0,
        solver=None,
        is_stochastic=True,
        spacings=(),
        eta=0.3,
        objectives=("distilled by TCD",),
    ),
}


def check_sampler(name: str, spacing: str | None = None, eta: float | None = None) -> None:
    """Reject an unknown sampler, or settings that it does not support.

    Raises:
        UserError: the sampler is unknown, or a setting is unknown, unsupported or out of range.
    """
    if name not in SAMPLERS:
        raise UserError(f"sampler '{name}' is unknown; choose from {', '.join(SAMPLERS)}")
    sampler = SAMPLERS[name]
    if spacing is not None and spacing not in SPACINGS:
        raise UserError(f"spacing '{spacing}' is unknown; choose from {', '.join(SPACINGS)}")
    if spacing is not None and spacing not in sampler.spacings:
        why = {
            (): "its noise levels are those of the distillation; leave it out",
            EVEN: f"its weights hold for steps that are even in time; choose from {', '.join(EVEN)}",
            NO_LEAP: f"its last step would be a leap in log(sigma / alpha); choose from {', '.join(NO_LEAP)}",
            TRAILING: "in fewer than 40 steps it would overshoot several times over; leave it out",
        }[sampler.spacings]
        raise UserError(f"sampler '{name}' does not take spacing '{spacing}': {why}")
    if eta is not None and sampler.eta is None:
        with_eta = ", ".join(other for other, each in SAMPLERS.items() if each.eta is not None)
        raise UserError(f"eta has no effect on sampler '{name}'; leave it out, or choose from {with_eta}")
    if eta is not None and not 0 <= eta <= 1:
        raise UserError(f"eta is {eta}; 0 (no fresh noise) to 1 is allowed")
