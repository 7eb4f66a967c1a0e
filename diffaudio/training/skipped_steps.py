"""Steps that would harm the weights are skipped and counted: gradients not finite, or far above the usual ones."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffaudio.config import NonNegativeCount, Positive
from diffaudio.errors import UserError

__all__ = ["SkippedSteps", "SpikeSettings"]

MEDIAN_STEPS = 101  # steps whose gradient norms the median is taken of
MIN_STEPS = 25  # of them, before a norm is compared with it


@dataclass
class SpikeSettings:
    """Which steps are skipped, and how many may be.

    Attributes:
        max_skipped: so many steps in a row are skipped before the run ends; 0 ends it at the first.
        max_ratio: a gradient whose norm is above this many times the median of the last hundred steps is skipped; None
            skips only what is not finite.
    """

    max_skipped: NonNegativeCount = 0
    max_ratio: Positive | None = None

    def __post_init__(self) -> None:
        if self.max_ratio is not None and self.max_ratio <= 1:
            raise UserError(f"spikes.max_ratio is {self.max_ratio:g}; it must be above 1, 10 is usual")
        if self.max_ratio is not None and not self.max_skipped:
            raise UserError("spikes.max_ratio would end the run at the first large gradient; set spikes.max_skipped")


class SkippedSteps(nn.Module):
    """Decides which steps are skipped. A module, so that its counts and norms are saved with the state of the run."""

    norms: Tensor
    num_norms: Tensor
    total: Tensor
    in_a_row: Tensor

    def __init__(self, settings: SpikeSettings) -> None:
        super().__init__()
        self._settings = settings
        self.register_buffer("norms", torch.zeros(MEDIAN_STEPS))
        for name in ("num_norms", "total", "in_a_row"):
            self.register_buffer(name, torch.zeros((), dtype=torch.long))

    def problem(self, values: dict[str, float]) -> str | None:
        """What is wrong with a step; None where nothing is, and the step counts for the median.

        Args:
            values: loss and, unless a scaler looks after it, grad_norm; the same in all processes.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                return f"{name} is {value}"
        norm = values.get("grad_norm")
        if norm is None:
            return None
        count = min(int(self.num_norms), MEDIAN_STEPS)
        if self._settings.max_ratio is not None and count >= MIN_STEPS:
            median = float(self.norms[:count].median())
            if norm > self._settings.max_ratio * median > 0:
                return (
                    f"grad_norm is {norm:.4g}, more than {self._settings.max_ratio:g} times {median:.4g}, the median "
                    f"of the {count} steps before"
                )
        self.norms[int(self.num_norms) % MEDIAN_STEPS] = norm
        self.num_norms += 1
        return None

    def may_skip(self, problem: str | None) -> bool:
        """Count a step; False where it is one too many to be skipped."""
        if problem is None:
            self.in_a_row.zero_()
            return True
        self.total += 1
        self.in_a_row += 1
        return int(self.in_a_row) <= self._settings.max_skipped
