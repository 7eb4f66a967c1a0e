"""Intervals: they hold what they should, and are the same for the same seed."""

import pytest
import torch

from diffaudio.metrics.confidence import bootstrap_mean, half_samples, wilson
from diffaudio.metrics.frechet import fit_gaussian, frechet_between


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_bootstrap_of_a_mean_is_as_wide_as_the_theory_says():
    values = torch.randn(400, generator=seeded(0))
    interval = bootstrap_mean(values, generator=seeded(1), resamples=4000)
    error = float(values.std()) / 20
    assert interval is not None
    assert interval.low == pytest.approx(float(values.mean()) - 1.96 * error, abs=0.1 * error)
    assert interval.high == pytest.approx(float(values.mean()) + 1.96 * error, abs=0.1 * error)


def test_the_bootstrap_holds_the_true_mean_as_often_as_it_promises():
    intervals = [
        bootstrap_mean(torch.rand(40, generator=seeded(s)), generator=seeded(s), resamples=300) for s in range(200)
    ]
    held = sum(interval is not None and interval.low <= 0.5 <= interval.high for interval in intervals) / 200
    assert 0.9 <= held <= 0.99


def test_wilsons_interval_is_the_published_one():
    interval = wilson(0.1, 10)  # Newcombe 1998 and statsmodels: 1 of 10
    assert (interval.low, interval.high) == pytest.approx((0.01787621, 0.40415), abs=1e-5)


def test_a_share_of_all_or_none_still_has_a_width():
    assert (wilson(0.0, 25).low, wilson(1.0, 25).high) == pytest.approx((0, 1))
    assert wilson(0.0, 25).high == pytest.approx(1.959964**2 / (25 + 1.959964**2))
    assert wilson(1.0, 25).low == pytest.approx(25 / (25 + 1.959964**2))


def test_half_samples_spread_as_new_sets_of_the_full_size_do():
    """The deviation of a Fréchet distance over fresh sets, against what half-samples of one set say of it."""
    reference = fit_gaussian(torch.randn(5000, 4, generator=seeded(99), dtype=torch.float64))

    def distance(x):
        return frechet_between(fit_gaussian(x), reference)

    sets = [torch.randn(80, 4, generator=seeded(s), dtype=torch.float64) + 1 for s in range(60)]
    fresh = torch.tensor([distance(x) for x in sets])
    widths = []
    for x in sets[:15]:
        interval = half_samples(lambda few, x=x: distance(x[few]), distance(x), 80, generator=seeded(1), resamples=100)
        assert interval is not None and interval.low <= distance(x) <= interval.high
        widths.append((interval.high - interval.low) / (2 * 1.96))
    assert sum(widths) / 15 == pytest.approx(float(fresh.std()), rel=0.25)


def test_half_samples_hold_each_sound_once_and_stay_in_bounds():
    drawn = []

    def statistic(few):
        drawn.append(few)
        return float(few.double().mean())

    interval = half_samples(statistic, 4.5, 10, generator=seeded(0), resamples=50, bounds=(4, 5))
    assert all(len(set(few.tolist())) == 5 for few in drawn)
    assert interval is not None and interval.low == 4 and interval.high == 5


def test_too_few_sounds_have_no_interval():
    assert bootstrap_mean(torch.ones(1), generator=seeded(0), resamples=20) is None
    assert half_samples(lambda few: 1.0, 1.0, 11, generator=seeded(0), resamples=20, fewest=6) is None
