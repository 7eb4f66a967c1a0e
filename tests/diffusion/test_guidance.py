"""Guidance: each form against its formula, what it costs, and what does not go together."""

import math

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import normalized_guidance
from diffusers.guiders.guider_utils import rescale_noise_cfg

from diffaudio.diffusion.guidance import Guide
from diffaudio.diffusion.loss import clean_and_noise
from diffaudio.diffusion.settings import GUIDANCE_SCHEDULES, PLAIN_CFG, Guidance, Projection

SHAPE = (2, 3, 4)
Z, D_C, D_0, D_N, D_W = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0))
EMBEDDING, NEGATIVE = torch.ones(2, 1), -torch.ones(2, 1)
LEVELS = {"flow_prediction": (0.4, 0.6), "v_prediction": (0.8, 0.6), "epsilon": (0.8, 0.6), "sample": (0.8, 0.6)}
APG = Guidance(projection=Projection())


class Told:
    """A U-Net that predicts D_c, D_0 or D_N (the negative embedding's); notes how many items a call has."""

    def __init__(self, conditional=D_C):
        self.conditional, self.calls = conditional, []

    def __call__(self, z, timestep, embedding=None, condition_mask=None):
        self.calls.append(len(z))
        repeats = len(z) // len(self.conditional)
        if embedding is None:
            return D_0
        if condition_mask is not None:
            return torch.where(
                condition_mask[:, None, None], self.conditional.repeat(repeats, 1, 1), D_0.repeat(repeats, 1, 1)
            )
        return torch.where(embedding[:, :, None] > 0, self.conditional.repeat(repeats, 1, 1), D_N.repeat(repeats, 1, 1))


def guided(options=PLAIN_CFG, *, at=(0.4, 0.6), unet=None, scale=3.0, predicts="flow_prediction", **others):
    guide = Guide(unet or Told(), EMBEDDING, scale=scale, predicts=predicts, options=options, **others)
    return guide(Z, 600.0, *at)


def inner(a, b):
    return (a * b).sum(dim=(1, 2), keepdim=True)


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("scale", "others", "expected", "calls"),
    [
        (0, {}, D_0, [2]),
        (1, {}, D_C, [2]),
        (3, {}, D_0 + 3 * (D_C - D_0), [4]),
        (0.5, {}, (D_0 + D_C) / 2, [4]),
        (3, {"negative_embedding": NEGATIVE}, D_N + 3 * (D_C - D_N), [4]),
    ],
)
def test_guidance_extrapolates_in_as_few_passes_as_it_can(scale, others, expected, calls):
    unet = Told()
    same(guided(unet=unet, scale=scale, **others), expected)
    assert unet.calls == calls


def test_autoguidance_leads_away_from_what_a_weaker_model_predicts_from_the_same_embedding():
    unet, weak = Told(), Told(conditional=D_W)
    same(guided(unet=unet, weak_unet=weak), D_W + 3 * (D_C - D_W))
    assert (unet.calls, weak.calls) == ([2], [2])


def test_rescaling_gives_each_item_the_deviation_of_its_conditional_prediction():
    whole, part, none = (guided(Guidance(rescale=amount)) for amount in (1.0, 0.7, 0.0))
    same(whole.std(dim=(1, 2)), D_C.std(dim=(1, 2)))
    same(part, 0.7 * whole + 0.3 * none)
    same(part, rescale_noise_cfg(none, D_C, 0.7))


@pytest.mark.parametrize(
    ("at", "inside"),
    [((0.7, 0.3), False), ((0.69, 0.31), True), ((0.4, 0.6), True), ((0.39, 0.61), False), ((0.0, 1.0), False)],
)
def test_outside_of_the_interval_the_conditional_prediction_stands_and_costs_one_pass(at, inside):
    unet = Told()
    same(guided(Guidance(interval=(0.3, 0.6)), at=at, unet=unet), D_0 + 3 * (D_C - D_0) if inside else D_C)
    assert unet.calls == [4 if inside else 2]


@pytest.mark.parametrize("rounding", [-1e-8, 0, 1e-8])
def test_a_step_on_the_bound_of_an_interval_belongs_to_it_however_it_is_rounded(rounding):
    at = (0.4 - rounding, 0.6 + rounding)
    same(guided(Guidance(interval=(0.3, 0.6)), at=at), D_0 + 3 * (D_C - D_0))
    same(guided(Guidance(interval=(0.6, 0.9)), at=at), D_C)
    assert Guidance(zero_init=0.4).num_held([1.0, 0.7, at[1], 0.2]) == 2


def test_noise_levels_are_measured_alike_for_all_models():
    """At alpha 0.6 and sigma 0.8 the level is 4/7."""
    options = Guidance(interval=(0, 0.5))
    same(guided(options, at=(0.6, 0.8), predicts="v_prediction"), D_C)
    same(guided(options, at=(0.8, 0.6), predicts="v_prediction"), D_0 + 3 * (D_C - D_0))


@pytest.mark.parametrize("name", GUIDANCE_SCHEDULES)
def test_every_schedule_spends_the_same_amount_of_guidance(name):
    levels = [(index + 0.5) / 1000 for index in range(1000)]
    scales = [Guidance(schedule=name).scale_at(level, 3.0) for level in levels]
    assert sum(scales) / len(scales) == pytest.approx(3.0)
    assert min(scales) >= 1


@pytest.mark.parametrize(
    ("name", "scales"),
    [
        ("constant", [3, 3, 3]),
        ("linear", [5, 4, 1]),
        ("cosine", [5, 3 + math.sqrt(2), 1]),
        ("inverse_linear", [1, 2, 5]),
        ("sine", [1, 3 - math.sqrt(2), 5]),
        ("lambda", [1, 3, 1]),
        ("v", [5, 3, 5]),
    ],
)
def test_a_schedule_gives_the_scale_by_noise_level(name, scales):
    options = Guidance(schedule=name)
    assert [options.scale_at(level, 3.0) for level in (0.0, 0.25, 1.0)] == pytest.approx(scales)
    same(guided(options, at=(0.75, 0.25)), D_0 + scales[1] * (D_C - D_0))


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_schedule_that_begins_with_no_guidance_saves_that_pass(name):
    unet = Told()
    same(guided(Guidance(schedule=name), at=(0.0, 1.0), unet=unet), D_C)
    assert unet.calls == [2]


@pytest.mark.parametrize("predicts", LEVELS)
def test_projected_guidance_moves_the_clean_latents_at_right_angles(predicts):
    at = LEVELS[predicts]
    prediction = guided(APG, at=at, predicts=predicts)
    (x, e), (x_c, _), (x_0, _) = (clean_and_noise(each, Z, *at, predicts) for each in (prediction, D_C, D_0))
    same(at[0] * x + at[1] * e, Z)
    same(x, x_c + 2 * (x_c - x_0 - x_c * inner(x_c - x_0, x_c) / inner(x_c, x_c)))
    same(inner(x - x_c, x_c), torch.zeros(2, 1, 1))


@pytest.mark.parametrize("predicts", LEVELS)
def test_projected_guidance_that_keeps_everything_is_standard_guidance(predicts):
    everything = Guidance(projection=Projection(parallel=1, threshold=1e6))
    same(guided(everything, at=LEVELS[predicts], predicts=predicts), D_0 + 3 * (D_C - D_0))


def test_projected_guidance_is_that_of_diffusers_in_the_papers_form():
    how = Projection(parallel=0.3, threshold=0.5)
    expected = normalized_guidance(
        D_C, D_0, 2.0, eta=0.3, norm_threshold=0.5 * math.sqrt(12), use_original_formulation=True
    )
    same(guided(Guidance(projection=how), predicts="sample"), expected)


def test_the_threshold_bounds_the_size_of_the_correction_whatever_the_duration():
    def size(threshold):
        how = Guidance(projection=Projection(parallel=1, threshold=threshold))
        return (guided(how, scale=2.0, predicts="sample") - D_C).square().mean(dim=(1, 2)).sqrt()

    same(size(0.25), torch.full((2,), 0.25))
    same(size(100.0), (D_C - D_0).square().mean(dim=(1, 2)).sqrt())


def test_momentum_sums_the_differences_up_from_noise_level_to_noise_level():
    """Looked at twice, as by Heun's method, a noise level counts once, with what was seen last."""
    unet = Told()
    how = Guidance(projection=Projection(parallel=1, momentum=-0.5))
    guide = Guide(unet, EMBEDDING, scale=2.0, predicts="sample", options=how)
    differences = []
    for level, conditional in ((0.9, D_C), (0.8, D_W), (0.8, D_N), (0.7, D_C)):
        unet.conditional = conditional
        differences.append(guide(Z, 1000 * level, 1 - level, level) - conditional)
    first = D_C - D_0
    second = D_N - D_0 - 0.5 * first
    for difference, expected in zip(
        differences, (first, D_W - D_0 - 0.5 * first, second, D_C - D_0 - 0.5 * second), strict=True
    ):
        same(difference, expected)


def test_zero_star_leads_away_from_the_part_of_the_other_prediction_that_is_nearest():
    length = inner(D_C, D_0) / inner(D_0, D_0)
    same(guided(Guidance(zero_star=True)), length * D_0 + 3 * (D_C - length * D_0))
    same(inner(guided(Guidance(zero_star=True), scale=2.0) - D_C, D_0), torch.zeros(2, 1, 1))
    same(guided(Guidance(zero_star=True), unet=Told(conditional=2 * D_0)), 2 * D_0)


def test_forms_work_together():
    same(guided(Guidance(rescale=1.0, projection=Projection(), interval=(0, 0.9))).std((1, 2)), D_C.std((1, 2)))
    same(guided(Guidance(schedule="linear", interval=(0, 0.5)), at=(0.75, 0.25)), D_0 + 4 * (D_C - D_0))
    same(guided(Guidance(schedule="linear", interval=(0, 0.5)), at=(0.25, 0.75)), D_C)
    weak = Told(conditional=D_W)
    same(guided(Guidance(interval=(0, 0.5)), weak_unet=weak), D_C)
    assert weak.calls == []
    length = inner(D_C, D_N) / inner(D_N, D_N)
    expected = length * D_N + 3 * (D_C - length * D_N)
    same(guided(Guidance(zero_star=True), negative_embedding=NEGATIVE), expected)
    same(guided(Guidance(zero_star=True, rescale=1.0)).std((1, 2)), D_C.std((1, 2)))


@pytest.mark.parametrize(
    "options",
    [Guidance(rescale=0.7), Guidance(projection=Projection(0.2, 0.3, -0.5)), Guidance(zero_star=True)],
)
def test_an_item_is_guided_alike_whatever_the_batch_around_it(options):
    def run(part):
        def unet(z, timestep, embedding, condition_mask):
            return torch.where(condition_mask[:, None, None], D_C[part].repeat(2, 1, 1), D_0[part].repeat(2, 1, 1))

        guide = Guide(unet, EMBEDDING[part], scale=3.0, predicts="flow_prediction", options=options)
        return [guide(Z[part], 1000 * level, 1 - level, level) for level in (0.9, 0.5)]

    for together, alone in zip(run(slice(0, 2)), run(slice(1, 2)), strict=True):
        same(together[1:], alone)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Guidance(rescale=1.5), "guidance rescale is 1.5; 0 (off) to 1 is allowed, 0.7 is usual"),
        (
            lambda: Guidance(interval=(0.6, 0.3)),
            "guidance interval is 0.6 to 0.3; give two noise levels from 0 (clean)",
        ),
        (lambda: Guidance(interval=(0.3, 1.3)), "guidance interval is 0.3 to 1.3; give two noise levels"),
        (lambda: Guidance(interval=(0, 1)), "guidance interval 0 to 1 has no effect, it covers all noise levels"),
        (lambda: Guidance(schedule="square"), "guidance schedule 'square' is unknown; choose from constant, linear, "),
        (lambda: Guidance(zero_init=1.0), "zero-init is 1.0; from 0 (off) to less than 1 is allowed, 0.04 is usual"),
        (
            lambda: Guidance(zero_star=True, projection=Projection()),
            "CFG-Zero* and APG both reshape the same difference; choose one of them",
        ),
        (lambda: Projection(parallel=-1), "APG: the parallel part is -1; 0 (none) or more is allowed, 1 keeps all"),
        (lambda: Projection(threshold=0), "APG: the threshold is 0; more than 0 is needed"),
        (lambda: Projection(momentum=-1), "APG: the momentum is -1; it must lie between -1 and 1"),
        (lambda: Projection(parallel=1), "APG has no effect with all of the parallel part, no threshold and no moment"),
        (lambda: guided(scale=-1.0), "guidance_scale is -1.0; it must be at least 0"),
        (lambda: guided(scale=math.nan), "guidance_scale is nan; it must be at least 0"),
        (
            lambda: guided(scale=1.0, negative_embedding=NEGATIVE),
            "a negative prompt has no effect at guidance scale 1;",
        ),
        (
            lambda: guided(scale=0.0, negative_embedding=NEGATIVE),
            "a negative prompt has no effect at guidance scale 0;",
        ),
        (lambda: guided(scale=1.0, weak_unet=Told()), "a weaker model has no effect at guidance scale 1; raise the"),
        (lambda: guided(Guidance(rescale=0.7), scale=1.0), "guidance rescale has no effect at guidance scale 1; raise"),
        (lambda: guided(Guidance(interval=(0, 0.5)), scale=1.0), "a guidance interval has no effect at guidance scale"),
        (lambda: guided(Guidance(schedule="linear"), scale=1.0), "a guidance schedule has no effect at guidance scale"),
        (lambda: guided(APG, scale=1.0), "APG has no effect at guidance scale 1; raise the scale above 1"),
        (lambda: guided(Guidance(zero_star=True), scale=0.0), "CFG-Zero* has no effect at guidance scale 0; raise"),
        (
            lambda: guided(negative_embedding=NEGATIVE, weak_unet=Told()),
            "a negative prompt has no effect beside a weaker model, which takes its place; choose one",
        ),
        (
            lambda: guided(Guidance(zero_star=True), predicts="v_prediction"),
            "CFG-Zero* is for models of flow matching; this one's prediction is v_prediction",
        ),
        (
            lambda: guided(Guidance(zero_init=0.04), predicts="epsilon"),
            "CFG-Zero* is for models of flow matching; this one's prediction is epsilon",
        ),
    ],
)
def test_what_is_out_of_range_or_contradicts_itself_is_refused_with_the_reason(make, message):
    with pytest.raises(ValueError) as raised:
        make()
    assert message in str(raised.value)
