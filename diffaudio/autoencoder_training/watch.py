"""Whether training has gone astray: found before a bad weight is written."""

import math
import statistics
from collections import deque
from collections.abc import Mapping

import torch
from torch import nn

__all__ = ["Diverged", "Watch", "check_weights"]

REMEMBERED = 101  # steps of which the median is taken
AT_LEAST = 25  # of them, before it says anything


class Diverged(ArithmeticError):
    """Training cannot go on; what was saved before is as it was."""


class Watch:
    """Looks at the loss and at the gradient's norm of each step, before the step is made.

    Args:
        max_loss_ratio: the loss may be so many times the median of the last hundred steps.
        advice: what to do, the end of the message.
    """

    def __init__(self, max_loss_ratio: float, advice: str) -> None:
        self._max_loss_ratio, self._advice = max_loss_ratio, advice
        self._losses: deque[float] = deque(maxlen=REMEMBERED)

    def look(self, step: int, loss: float, others: Mapping[str, float]) -> None:
        """See that all is well.

        Args:
            step: number of the step, from 1 on.
            loss: what must not explode.
            others: what has to be finite beside it, by name.

        Raises:
            Diverged: it is not.
        """
        for name, value in {"loss": loss, **others}.items():
            if not math.isfinite(value):
                raise Diverged(f"step {step}: {name} is {value}; {self._advice}")
        if len(self._losses) >= AT_LEAST and loss > self._max_loss_ratio * (median := statistics.median(self._losses)):
            raise Diverged(
                f"step {step}: loss is {loss:.4g}, more than {self._max_loss_ratio:g} times the median {median:.4g} "
                f"of the {len(self._losses)} steps before; {self._advice}"
            )
        self._losses.append(loss)


def check_weights(step: int, advice: str, **modules: nn.Module) -> None:
    """See that all weights are numbers.

    Raises:
        Diverged: one is not.
    """
    for part, module in modules.items():
        for name, tensor in module.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise Diverged(f"step {step}: {name} of {part} is not finite; {advice}")
