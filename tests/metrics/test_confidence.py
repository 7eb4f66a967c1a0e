"""Intervals: closed forms, and how often they hold the true value."""

import pytest
import torch

from diffaudio.metrics.confidence import bootstrap_mean, jackknife, wilson


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


def test_the_jackknife_of_a_mean_is_students_interval():
    values = torch.randn(12, generator=seeded(0), dtype=torch.float64)
    value = float(values.mean())
    interval = jackknife(lambda some: float(values[some].mean()), value, 12, generator=seeded(1), pairs_matter=True)
    half_width = 2.200985 * float(values.std()) / 12**0.5
    assert interval is not None and interval.method == "jackknife"
    assert (interval.low, interval.high) == pytest.approx((value - half_width, value + half_width), rel=1e-5)


def test_what_pairs_of_sounds_add_to_the_jackknife_is_taken_off():
    """A U-statistic of pairs alone, x_i x_j with mean 0: the jackknife's variance is twice the true one on average."""

    def statistic(x):
        return float((x.sum() ** 2 - x.square().sum()) / (len(x) * (len(x) - 1)))

    sets = [torch.randn(16, generator=seeded(s), dtype=torch.float64) for s in range(60)]
    variance = {False: 0.0, True: 0.0}
    for x in sets:
        for pairs_matter in variance:
            interval = jackknife(
                lambda some, x=x: statistic(x[some]), statistic(x), 16, generator=seeded(1), pairs_matter=pairs_matter
            )
            assert interval is not None
            variance[pairs_matter] += ((interval.high - interval.low) / (2 * 2.13145)) ** 2 / 60
    true = 2 / (16 * 15)
    assert variance[False] == pytest.approx(2 * true, rel=0.25)
    assert 0.8 * true < variance[True] < 1.5 * true  # more than 1 for it never goes below half of the jackknife's


def test_the_jackknife_of_a_share_stays_within_0_and_1_and_has_a_width_where_nothing_varies():
    interval = jackknife(lambda some: 1.0, 1.0, 20, generator=seeded(0), bounds=(0, 1))
    assert interval is not None and interval.high == 1 and 0.7 < interval.low < 0.9


def test_the_jackknife_leaves_out_groups_of_distinct_sounds_and_keeps_to_the_bounds():
    seen = []

    def statistic(some):
        seen.append(some)
        return float(some.double().mean())

    interval = jackknife(statistic, 19.5, 40, generator=seeded(0), bounds=(19, 20))
    assert all(len(set(some.tolist())) == len(some) in (37, 38) for some in seen) and len(seen) == 16
    assert interval is not None and (interval.low, interval.high) == (19, 20)


def test_too_few_sounds_have_no_interval():
    assert bootstrap_mean(torch.ones(1), generator=seeded(0), resamples=20) is None
    assert jackknife(lambda some: 1.0, 1.0, 7, generator=seeded(0), min_sounds=6) is None
    assert jackknife(lambda some: 1.0, 1.0, 2, generator=seeded(0)) is None
