"""What is not finite never reaches a weight or a file, and an exploding loss ends a run."""

import math

import pytest
import torch
from torch import nn

from diffaudio.training.divergence import DivergedError, DivergenceGuard, check_finite


def test_the_guard_stops_at_what_is_not_finite_and_at_an_explosion_only():
    guard = DivergenceGuard(max_loss_ratio=10.0, advice=lambda: "lower train.lr")

    def check(step: int, loss: float, norm: float = 1.0) -> None:
        guard.check(step, {"loss": torch.tensor(loss), "grad_norm": torch.tensor(norm)})

    check(1, 500.0)  # the beginning may be wild
    for step in range(2, 40):
        check(step, 2.0 + step % 2)
    check(40, 29.0)
    assert guard.take_means() == {"loss": pytest.approx((500 + 19 * 5 + 29) / 40), "grad_norm": 1.0}
    with pytest.raises(DivergedError, match=r"step 41: loss is 31, more than 10 times 3, .* 40 steps before"):
        check(41, 31.0)
    with pytest.raises(DivergedError, match="step 41: grad_norm is inf; lower train.lr"):
        check(41, 2.0, math.inf)
    with pytest.raises(DivergedError, match="step 41: loss is nan"):
        check(41, math.nan)


def test_a_loss_around_zero_does_not_explode():
    guard = DivergenceGuard(max_loss_ratio=10.0)
    for step in range(60):
        guard.check(step, {"loss": torch.tensor(-0.1 if step % 3 else 1.0)})


def test_what_is_not_finite_in_another_process_stops_this_one_too():
    guard = DivergenceGuard(lambda values: values + torch.tensor([math.nan]))
    with pytest.raises(DivergedError, match="step 1: loss is nan"):
        guard.check(1, {"loss": torch.tensor(1.0)})


def test_weights_and_moments_that_are_not_finite_are_named():
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.full((1, 2), 1e15)).square().sum().backward()
    check_finite(3, {"layer": layer, "optimizer": optimizer, "scaler": None})
    optimizer.step()  # the square of the gradient is above what float32 holds
    with pytest.raises(DivergedError, match="step 3: exp_avg_sq 0 of optimizer is not finite"):
        check_finite(3, {"layer": layer, "optimizer": optimizer})
    nn.init.constant_(layer.bias, math.nan)
    with pytest.raises(DivergedError, match="step 3: bias of layer is not finite"):
        check_finite(3, {"layer": layer})


def test_weights_too_large_for_half_precision_are_not_saved_in_it():
    layer = nn.Linear(2, 1)
    nn.init.constant_(layer.bias, 1e5)
    check_finite(1, {"layer": layer})
    with pytest.raises(DivergedError, match="step 1: bias is too large for the half precision"):
        check_finite(1, {"layer": layer}, in_half=layer)
