"""Noise levels: what a model knows of them, and the spacing of steps."""

import math
from itertools import pairwise

import pytest
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from exact import MODELS, alpha_sigma

from diffaudio.diffusion.noise_schedule import NoiseSchedule
from diffaudio.diffusion.sampler_table import SPACINGS


def ratio(s):
    return s / (1 - s)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_levels_fall_from_the_noisiest_to_clean(model, spacing, steps):
    schedule = NoiseSchedule(MODELS[model].config)
    levels = schedule.levels(spacing, steps)
    assert len(levels) == steps + 1
    assert all(after < before for before, after in pairwise(levels))
    assert levels[-1] == 0
    alpha, sigma = alpha_sigma(MODELS[model], 1000 if model == "flow" else 999)
    assert levels[0] == pytest.approx(sigma / (alpha + sigma))
    assert (levels[0] == 1) == (model in ("flow", "v"))


@pytest.mark.parametrize("model", MODELS)
def test_alpha_and_sigma_are_those_of_training_at_the_given_timestep(model):
    schedule = NoiseSchedule(MODELS[model].config)
    for s in schedule.levels("karras", 20)[:-1]:
        expected = alpha_sigma(MODELS[model], schedule.timestep(s))
        assert schedule.alpha_sigma(s) == pytest.approx(expected, abs=1e-6)
        assert schedule.level(schedule.timestep(s)) == pytest.approx(s)
    alpha, sigma = schedule.alpha_sigma(0.4)
    assert (alpha + sigma if model == "flow" else math.hypot(alpha, sigma)) == pytest.approx(1)


def test_trailing_and_linear_are_even_in_time():
    flow, v = (NoiseSchedule(MODELS[model].config) for model in ("flow", "v"))
    assert flow.levels("trailing", 4) == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert flow.levels("linear", 4) == pytest.approx([1, 0.667, 0.334, 0.001, 0])
    assert [v.timestep(s) for s in v.levels("trailing", 4)[:-1]] == pytest.approx([999, 749, 499, 249])
    assert [v.timestep(s) for s in v.levels("linear", 4)[:-1]] == pytest.approx([999, 666, 333, 0])


@pytest.mark.parametrize("model", ["flow", "v"])
def test_karras_and_exponential_are_even_in_their_powers_and_logarithms(model):
    schedule = NoiseSchedule(MODELS[model].config)
    for spacing, measure in (("karras", lambda s: ratio(s) ** (1 / 7)), ("exponential", lambda s: math.log(ratio(s)))):
        places = [measure(s) for s in schedule.levels(spacing, 9)[1:-1]]
        steps = [after - before for before, after in pairwise(places)]
        assert steps == pytest.approx([steps[0]] * len(steps))
        assert places[0] - steps[0] == pytest.approx(measure(80 / 81))  # where the first would be without pure noise
    lowest = schedule.levels("karras", 9)[-2]
    assert lowest == pytest.approx(schedule.levels("linear", 9)[-2])


def test_a_model_that_knows_less_noise_begins_with_what_it_knows():
    """Stable Diffusion's schedule ends at 14.6 times as much noise as sound."""
    config = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").config
    levels = NoiseSchedule(config).levels("exponential", 3)
    assert ratio(levels[0]) == pytest.approx(14.61, abs=0.01)
    assert ratio(levels[1]) == pytest.approx(math.sqrt(ratio(levels[0]) * ratio(levels[2])))


def test_the_shift_of_a_flow_model_holds():
    levels = NoiseSchedule(FlowMatchEulerDiscreteScheduler(shift=3.0).config).levels("trailing", 4)
    assert levels == pytest.approx([1, 0.9, 0.75, 0.5, 0])


def test_what_is_out_of_range_is_refused():
    schedule = NoiseSchedule(MODELS["flow"].config)
    with pytest.raises(
        ValueError, match="spacing 'even' is unknown; choose from trailing, linear, karras, exponential"
    ):
        schedule.levels("even", 4)
    with pytest.raises(ValueError, match="num_inference_steps is 1001; it must be 1 to 1000"):
        schedule.levels("karras", 1001)
