"""What is looked at in each step of training: whether it has gone astray, before a bad weight is written."""

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

__all__ = ["Diverged", "Watch", "check_weights"]

REMEMBERED = 101  # steps of which the median is taken
AT_LEAST = 25  # of them, before it says anything


class Diverged(ArithmeticError):
    """Training cannot go on; what was saved before is as it was."""


class Watch:
    """Looks at losses and norms of gradients before a step is made, and keeps their means for the log.

    Args:
        max_loss_ratio: the loss may be so many times the median of the last hundred steps, 25 at least, since the run
            was started or went on; where that median is above 0.
        reduce: makes the mean over the processes of a tensor.
    """

    def __init__(self, max_loss_ratio: float, reduce: Callable[[Tensor], Tensor] = lambda value: value) -> None:
        self._max_loss_ratio, self._reduce = max_loss_ratio, reduce
        self._losses: deque[float] = deque(maxlen=REMEMBERED)
        self._seen: dict[str, list[float]] = {}

    def look(self, step: int, values: Mapping[str, Tensor]) -> None:
        """See that all is well.

        Args:
            step: number of the step, from 1 on.
            values: scalars by name, the same names in all processes. "loss" is the one that must not explode; all
                have to be finite.

        Raises:
            Diverged: it is not, in whatever process.
        """
        means = dict(zip(values, self._reduce(torch.stack(list(values.values()))).tolist(), strict=True))
        for name, value in means.items():
            if not math.isfinite(value):
                raise Diverged(f"step {step}: {name} is {value}")
            self._seen.setdefault(name, []).append(value)
        if len(self._losses) >= AT_LEAST:
            median = statistics.median(self._losses)
            if 0 < self._max_loss_ratio * median < means["loss"]:
                raise Diverged(
                    f"step {step}: loss is {means['loss']:.4g}, more than {self._max_loss_ratio:g} times {median:.4g}, "
                    f"the median of the {len(self._losses)} steps before"
                )
        self._losses.append(means["loss"])

    def take_means(self) -> dict[str, float]:
        """The mean of each value over the steps since the last call that had it."""
        means = {name: statistics.fmean(values) for name, values in self._seen.items()}
        self._seen = {}
        return means


def check_weights(step: int, **parts: nn.Module | torch.optim.Optimizer) -> None:
    """See that all weights are numbers; optimizers are passed over.

    Raises:
        Diverged: one is not.
    """
    modules = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    for part, module in modules.items():
        for name, tensor in module.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise Diverged(f"step {step}: {name} of {part} is not finite")
