import math

import pytest
import torch

from diffaudio.training.learning_rate import learning_rate, set_learning_rate


def test_the_learning_rate_rises_in_a_line_and_falls_in_a_half_cosine():
    def rate(step: int) -> float:
        return learning_rate(step, peak=2.0, warmup_steps=10, total_steps=110, final_fraction=0.1)

    assert [rate(0), rate(4), rate(9), rate(10)] == pytest.approx([0.2, 1.0, 2.0, 2.0])
    assert [rate(60), rate(110), rate(500)] == pytest.approx([1.1, 0.2, 0.2])
    assert rate(35) == pytest.approx(0.2 + 1.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate(0, peak=2.0, warmup_steps=0, total_steps=1) == 2.0


def test_the_learning_rate_is_set_for_all_parameters():
    groups = [{"params": [torch.zeros(1, requires_grad=True)]} for _ in range(2)]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    assert set_learning_rate(optimizer, 0.25) == 0.25
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
