"""Augmentation changes a sound in one respect, by no more than it is told to."""

import math

import pytest
import torch

from diffaudio.corpus.augment import add_noise, change_speed, crop_or_lay, filter_smoothly


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pitch_hz(waveform, sample_rate=8000):
    return float(torch.fft.rfft(waveform, n=1 << 17).abs().argmax()) * sample_rate / (1 << 17)


def tone(frequency_hz, num_samples=8000):
    return torch.sin(2 * math.pi * frequency_hz * torch.arange(num_samples) / 8000)


def test_a_crop_is_a_stretch_of_the_sound():
    sound = torch.arange(100.0)
    starts = set()
    for seed in range(20):
        crop = crop_or_lay(sound, 30, seeded(seed))
        assert torch.equal(crop, torch.arange(crop[0].item(), crop[0].item() + 30))
        starts.add(crop[0].item())
    assert len(starts) > 10


def test_a_short_sound_is_repeated_or_laid_into_silence():
    sound, repeated = torch.arange(1.0, 11), 0
    for seed in range(40):
        laid = crop_or_lay(sound, 25, seeded(seed))
        assert len(laid) == 25
        if (laid == 0).any():
            assert torch.equal(laid[laid != 0], sound)
        else:
            repeated += 1
            steps = laid.diff()
            assert ((steps == 1) | (steps == -9)).all()
    assert 10 < repeated < 30


def test_speed_moves_pitch_within_its_limits():
    found = [pitch_hz(change_speed(tone(1000), 0.1, seeded(seed))) for seed in range(20)]
    assert all(900 <= pitch <= 1100 for pitch in found)
    assert max(found) - min(found) > 100
    assert torch.equal(change_speed(tone(1000), 0.0, seeded()), tone(1000))


def test_the_filter_gains_no_more_than_it_is_told_and_differs_between_items():
    click = torch.zeros(3, 1024)
    click[:, 0] = 1
    gain_db = 20 * torch.fft.rfft(filter_smoothly(click, 6.0, seeded())).abs().log10()
    assert gain_db.abs().max() <= 6.001
    assert gain_db.std(dim=1).min() > 0.5
    assert (gain_db[0] - gain_db[1]).abs().max() > 1
    torch.testing.assert_close(filter_smoothly(click, 0.0, seeded()), click, atol=1e-6, rtol=0)


def test_noise_lies_below_the_peak_as_far_as_told():
    silence_but_for_a_peak = torch.zeros(50, 4000)
    silence_but_for_a_peak[:, 0] = 0.5
    level_db = 20 * (add_noise(silence_but_for_a_peak, -20.0, seeded())[:, 1:].std(dim=1) / 0.5).log10()
    assert level_db.max() < -19.5
    assert level_db.min() > -80.5
    assert level_db.std() > 10


@pytest.mark.parametrize("change", [lambda x, g: filter_smoothly(x, 6.0, g), lambda x, g: add_noise(x, -20.0, g)])
def test_the_same_generator_gives_the_same_sound(change):
    x = torch.randn(2, 500)
    assert torch.equal(change(x, seeded(3)), change(x, seeded(3)))
    assert not torch.equal(change(x, seeded(3)), change(x, seeded(4)))
