"""Outliers: what is kept of a recording, and what is not."""

import pytest
import torch

from diffaudio.corpus.outliers import SYNTHETIC, is_steady, make_noise, make_outlier, make_tones, scramble_phases

RATE = 16000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def decaying_noise(seconds=1.0):
    noise = torch.randn(round(seconds * RATE), generator=generator())
    return noise * torch.exp(-8 * torch.arange(len(noise)) / RATE)


@pytest.mark.parametrize("what", SYNTHETIC)
def test_an_outlier_has_the_length_of_the_recording_and_a_peak_of_1(what):
    for num_samples in (1, 401, RATE):
        x = make_outlier(what, decaying_noise()[:num_samples], RATE, generator())
        assert x.shape == (num_samples,) and x.dtype == torch.float32 and x.isfinite().all()
        assert float(x.abs().max()) == pytest.approx(1) or num_samples == 1
    assert not torch.equal(make_outlier(what, decaying_noise(), RATE, generator()), decaying_noise())


def test_each_is_a_function_of_its_generator():
    for what in ("noise", "tones", "scrambled"):
        a, b, c = (make_outlier(what, decaying_noise(), RATE, generator(seed)) for seed in (0, 0, 1))
        assert torch.equal(a, b) and not torch.equal(a, c)


def test_reversing_twice_gives_the_recording():
    x = decaying_noise() / decaying_noise().abs().max()
    assert torch.equal(make_outlier("reversed", make_outlier("reversed", x, RATE, generator()), RATE, generator()), x)


def test_scrambled_phases_keep_the_spectrum_and_lose_the_envelope():
    x = decaying_noise()
    scrambled = scramble_phases(x, generator())
    torch.testing.assert_close(
        torch.fft.rfft(scrambled).abs()[1:-1], torch.fft.rfft(x).abs()[1:-1], rtol=1e-3, atol=1e-3
    )
    halves = scrambled.square().reshape(2, -1).sum(dim=1)
    assert float(halves[0] / halves[1]) < 2 < 100 < float(x[:8000].square().sum() / x[8000:].square().sum())
    assert is_steady(scrambled) and not is_steady(x)


def test_noise_has_a_spectrum_that_falls_or_rises_smoothly():
    slopes = []
    for seed in range(8):
        power = torch.fft.rfft(make_noise(2**15, generator(seed))).abs().square()
        octaves = [float(10 * power[2**k : 2 ** (k + 1)].mean().log10()) for k in range(6, 14)]
        steps = torch.tensor(octaves).diff()
        assert float((steps - steps.mean()).abs().max()) < 2.5
        slopes.append(float(steps.mean()))
    assert min(slopes) < -1 and max(slopes) > 1 and max(map(abs, slopes)) < 6.5


def test_tones_have_few_partials_below_the_highest_frequency():
    for seed in range(5):
        power = torch.fft.rfft(make_tones(RATE, RATE, generator(seed)) * torch.hann_window(RATE)).abs().square()
        assert float(power[int(0.42 * RATE) :].sum() / power.sum()) < 1e-3
        assert float(power.sort(descending=True).values[:2000].sum() / power.sum()) > 0.9


def test_only_a_level_that_changes_makes_a_sound_unsteady():
    noise = torch.randn(RATE, generator=generator())
    assert is_steady(noise) and is_steady(torch.zeros(RATE)) and is_steady(noise[:300])
    bursts = noise * (torch.arange(RATE) // 4000 % 2)
    assert not is_steady(bursts)
