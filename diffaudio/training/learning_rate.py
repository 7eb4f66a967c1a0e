"""The learning rate of a step: linear warm-up, then a half cosine."""

import math
from typing import Any

__all__ = ["learning_rate", "set_learning_rate"]


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int, final_fraction: float = 0.0) -> float:
    """Linear warm-up to `peak`, then a half cosine down to `peak * final_fraction` at `total_steps`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return peak * (final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rate(optimizer: Any, lr: float) -> float:
    """Set the learning rate of all parameter groups; returns it."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr
