"""Divergence: every step is checked before it is made, and weights before they are saved.

What is not finite never reaches the weights, a state or a model; what was saved before stays as it is.
"""

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from diffaudio.errors import UserError
from diffaudio.training.skipped_steps import SkippedSteps

__all__ = ["DivergedError", "DivergenceGuard", "check_finite"]

MEDIAN_STEPS = 101  # steps of which the median loss is taken
MIN_STEPS = 25  # of them, before a loss is compared with it


class DivergedError(UserError):
    """Training cannot go on from here: the message says at which step, what, and what to do."""


class DivergenceGuard:
    """Checks losses and gradient norms before a step is made, and collects their means for the log.

    Args:
        reduce: makes the mean over the processes of a tensor, so that all of them stop at the same step.
        advice: ends the message of `DivergedError`: what was saved, and what to do.
        max_loss_ratio: the loss may be at most this many times the median of the last hundred steps (of 25 at least)
            since the process began; where that median is above 0. None compares nothing.
        skipped: decides which steps are skipped; None skips none.
    """

    def __init__(
        self,
        reduce: Callable[[Tensor], Tensor] = lambda value: value,
        *,
        advice: Callable[[], str] = lambda: "lower the learning rate",
        max_loss_ratio: float | None = None,
        skipped: SkippedSteps | None = None,
    ) -> None:
        self._reduce, self._advice, self._max_loss_ratio, self._skipped = reduce, advice, max_loss_ratio, skipped
        self._losses: deque[float] = deque(maxlen=MEDIAN_STEPS)
        self._values: dict[str, list[float]] = {}

    def check(self, step: int, values: Mapping[str, Tensor]) -> str | None:
        """Check the values of a step whose gradient was computed and not yet applied.

        Args:
            step: number of the step, from 1 on.
            values: scalars by name, the same names in all processes. All have to be finite; "loss" must not explode.

        Returns:
            Why the step is to be skipped; None where it is to be made.

        Raises:
            DivergedError: one is not finite, in whatever process, or the loss exploded.
        """
        stacked = torch.stack([value.detach().float() for value in values.values()])
        means = dict(zip(values, self._reduce(stacked).tolist(), strict=True))
        if self._skipped is not None:
            problem = self._skipped.problem(means)
            if not self._skipped.may_skip(problem):
                raise DivergedError(f"stopped: step {step}: {problem}; {self._advice()}")
            if problem is not None:
                return problem
        for name, value in means.items():
            if not math.isfinite(value):
                raise DivergedError(f"stopped: step {step}: {name} is {value}; {self._advice()}")
            self._values.setdefault(name, []).append(value)
        if self._max_loss_ratio is not None and len(self._losses) >= MIN_STEPS:
            median = statistics.median(self._losses)
            if 0 < self._max_loss_ratio * median < means["loss"]:
                raise DivergedError(
                    f"stopped: step {step}: loss is {means['loss']:.4g}, more than {self._max_loss_ratio:g} times "
                    f"{median:.4g}, the median of the {len(self._losses)} steps before; {self._advice()}"
                )
        self._losses.append(means["loss"])
        return None

    def check_weights(
        self, step: int, parts: Mapping[str, object], *, in_half: nn.Module | None = None
    ) -> None:  # fmt: skip
        """As `check_finite`, with this guard's advice."""
        try:
            check_finite(step, parts, in_half=in_half)
        except DivergedError as error:
            raise DivergedError(f"{error}; {self._advice()}") from None

    def take_means(self) -> dict[str, float]:
        """The mean of each value over the steps since the last call that had it."""
        means = {name: statistics.fmean(values) for name, values in self._values.items()}
        self._values = {}
        return means


def check_finite(step: int, parts: Mapping[str, object], *, in_half: nn.Module | None = None) -> None:
    """Refuse to save weights, or moments of an optimizer, that are not finite.

    Args:
        parts: modules and optimizers by name; anything else is passed over.
        in_half: a module that is saved in half precision, where what is above 65,504 becomes infinite.

    Raises:
        DivergedError: a value is not finite; names part and tensor.
    """
    for part, module in parts.items():
        for name, tensor in _tensors(module):
            if not torch.isfinite(tensor).all():
                raise DivergedError(f"stopped: step {step}: {name} of {part} is not finite")
    for name, tensor in _tensors(in_half):
        if not torch.isfinite(tensor.half()).all():
            raise DivergedError(f"stopped: step {step}: {name} is too large for the half precision of the saved model")


def _tensors(part: object) -> list[tuple[str, Tensor]]:
    if isinstance(part, nn.Module):
        return [(name, tensor) for name, tensor in part.state_dict().items() if tensor.is_floating_point()]
    if isinstance(part, torch.optim.Optimizer):
        states = part.state_dict()["state"].items()
        return [(f"{key} {i}", x) for i, values in states for key, x in values.items() if isinstance(x, Tensor)]
    return []
