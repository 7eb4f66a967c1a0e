"""Which training steps are skipped, and when a run ends for them."""

import pytest

from diffaudio.errors import UserError
from diffaudio.training.skipped_steps import MIN_STEPS, SkippedSteps, SpikeSettings


def test_a_gradient_far_above_the_median_is_skipped_once_there_is_a_median():
    steps = SkippedSteps(SpikeSettings(max_skipped=2, max_ratio=10))
    assert steps.problem({"loss": 1.0, "grad_norm": 1000.0}) is None  # nothing to compare with yet
    for _ in range(MIN_STEPS):
        assert steps.problem({"loss": 1.0, "grad_norm": 1.0}) is None
    assert steps.problem({"loss": 1.0, "grad_norm": 9.9}) is None
    problem = steps.problem({"loss": 1.0, "grad_norm": 10.1})
    assert problem is not None and problem.startswith("grad_norm is 10.1, more than 10 times 1, the median of the ")


def test_a_spike_does_not_change_what_later_gradients_are_compared_with():
    steps = SkippedSteps(SpikeSettings(max_skipped=2, max_ratio=10))
    for _ in range(MIN_STEPS):
        steps.problem({"loss": 1.0, "grad_norm": 1.0})
    before = {name: value.clone() for name, value in steps.state_dict().items()}
    steps.problem({"loss": 1.0, "grad_norm": 50.0})
    assert all(before[name].equal(value) for name, value in steps.state_dict().items())


def test_the_run_ends_at_one_more_than_the_allowed_number_in_a_row_and_counts_go_on_from_a_state():
    steps = SkippedSteps(SpikeSettings(max_skipped=2))
    assert steps.may_skip("loss is nan") and steps.may_skip("loss is nan") and steps.may_skip(None)
    assert steps.may_skip("loss is nan")
    resumed = SkippedSteps(SpikeSettings(max_skipped=2))
    resumed.load_state_dict(steps.state_dict())
    assert int(resumed.total) == 3
    assert resumed.may_skip("loss is nan") and not resumed.may_skip("loss is nan")


def test_a_ratio_that_could_never_skip_is_refused():
    with pytest.raises(UserError, match="spikes.max_ratio is 1; it must be above 1"):
        SpikeSettings(max_skipped=1, max_ratio=1)
    with pytest.raises(UserError, match="set spikes.max_skipped"):
        SpikeSettings(max_ratio=10)
