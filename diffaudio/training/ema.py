"""Exponential moving average (EMA) of the weights: what is validated, sampled from and saved as the model."""

import torch
from torch import nn

__all__ = ["ema_decay", "update_ema"]


def ema_decay(num_updates: int, max_decay: float) -> float:
    """The decay of an update: (1 + t) / (10 + t) after t updates, at most `max_decay`."""
    return min(max_decay, (1 + num_updates) / (10 + num_updates))


@torch.no_grad()
def update_ema(average: nn.Module, module: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * module, in place; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
    for averaged, current in zip(average.buffers(), module.buffers(), strict=True):
        averaged.copy_(current)
