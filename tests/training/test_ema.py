import pytest
import torch
from torch import nn

from diffaudio.training.ema import ema_decay, update_ema


def test_the_average_follows_its_recursion():
    module, average = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    expected = 1.0
    for t, value in enumerate([3.0, -1.0, 10.0]):
        nn.init.constant_(module.weight, value)
        module.running_mean.fill_(value)
        decay = ema_decay(t, max_decay=0.2)
        assert decay == pytest.approx([1 / 10, 2 / 11, 0.2][t])
        update_ema(average, module, decay)
        expected = decay * expected + (1 - decay) * value
        assert average.weight.item() == pytest.approx(expected)
        assert average.running_mean.item() == value
    assert ema_decay(10**9, max_decay=0.999) == 0.999


def test_the_average_of_constant_weights_is_those_weights():
    module, average = nn.Linear(2, 2), nn.Linear(2, 2)
    for t in range(200):
        update_ema(average, module, ema_decay(t, max_decay=0.9))
    torch.testing.assert_close(average.weight, module.weight)
