"""Sampling from a recording and around one, against closed forms for Gaussian latents."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler
from exact import MODELS, BestGuess, M, S, alpha_sigma, generators, plain

from diffaudio.diffusion.latent_edit import LatentEdit, level_segments, raise_level
from diffaudio.diffusion.regions import windows
from diffaudio.diffusion.sampler_table import SAMPLERS
from diffaudio.diffusion.sampling import make_sampler, num_steps, sample
from diffaudio.errors import UserError

ORDINARY = {name: sampler for name, sampler in SAMPLERS.items() if sampler.solver is not None}
DETERMINISTIC = [name for name, sampler in ORDINARY.items() if not sampler.is_stochastic or sampler.eta == 0]
RECORDING = torch.linspace(-1, 2, 12).reshape(1, 1, 12)
NOISE = torch.linspace(2, -2, 12).reshape(1, 1, 12)
GENERATE = torch.arange(12).remainder(3).eq(0)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


def edited(name, model, edit, *, steps=10, scheduler=None, guess=None):
    sampler = scheduler or make_sampler(name, MODELS[model].config)
    guess = guess or BestGuess(scheduler or MODELS[model])
    return sample(guess, sampler, NOISE, torch.zeros(1, 2), generators=generators(3), edit=edit, **plain(steps))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ORDINARY)
def test_strength_0_is_the_recording_and_strength_1_is_generation_from_noise(name, model):
    assert torch.equal(edited(name, model, LatentEdit(RECORDING, strength=0)), RECORDING)
    assert torch.equal(edited(name, model, LatentEdit(RECORDING, strength=1)), edited(name, model, LatentEdit()))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("strength", [0.3, 0.6])
def test_between_them_the_noised_recording_follows_the_flow_to_its_end(name, model, strength):
    scheduler = MODELS[model]
    alpha, sigma = (1 - strength, strength) if model == "flow" else normalised(1 - strength, strength)
    away = alpha * RECORDING + sigma * NOISE - alpha * M
    exact = M + S * away / math.sqrt(alpha**2 * S**2 + sigma**2)
    found = edited(name, model, LatentEdit(RECORDING, strength=strength), steps=80)
    assert (found - exact).abs().max() < (0.1 if ORDINARY[name].order == 1 else 0.03), scheduler


def normalised(alpha, sigma):
    return alpha / math.hypot(alpha, sigma), sigma / math.hypot(alpha, sigma)


@pytest.mark.parametrize("resamples", [1, 2])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ORDINARY)
def test_frames_to_keep_come_back_and_the_others_are_generated(name, model, resamples):
    found = edited(name, model, LatentEdit(RECORDING, generate=GENERATE, resamples=resamples))
    torch.testing.assert_close(found[..., ~GENERATE], RECORDING[..., ~GENERATE], atol=2e-3, rtol=0)
    assert (found - RECORDING)[..., GENERATE].abs().min() > 1e-3
    if resamples == 1:  # frames are independent of each other in this model
        alone = edited(name, model, LatentEdit())
        torch.testing.assert_close(found[..., GENERATE], alone[..., GENERATE], atol=2e-3, rtol=0)


def test_the_model_sees_the_frames_to_keep_at_the_noise_level_of_the_step():
    guess, noise_seen = BestGuess(MODELS["flow"]), []

    def unet(latents, timestep, *conditions):
        alpha, sigma = alpha_sigma(MODELS["flow"], timestep)
        noise_seen.append(((latents - alpha * RECORDING) / sigma)[..., ~GENERATE])
        return guess(latents, timestep, *conditions)

    edited("dpm++2m", "flow", LatentEdit(RECORDING, generate=GENERATE), guess=unet)
    assert all(torch.allclose(noise, NOISE[..., ~GENERATE], atol=1e-3) for noise in noise_seen)


class Correlated:
    """The best prediction for pairs of neighbouring frames of mean 0 and variance 1, correlated by RHO."""

    RHO = 0.9

    def __call__(self, latents, timestep, embedding, condition_mask=None):
        alpha, sigma = alpha_sigma(MODELS["flow"], timestep)
        covariance = torch.tensor([[1, self.RHO], [self.RHO, 1]])
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(2))
        x = (latents.unflatten(-1, (-1, 2)) @ gain.T).flatten(-2)
        return (latents - alpha * x) / sigma - x


def test_resampling_brings_what_is_generated_closer_to_what_is_kept():
    """The mean of a frame is RHO times its neighbour's value; keeping frames alone reaches only part of it."""
    num_pairs = 4000
    recording = torch.full((1, 1, 2 * num_pairs), 2.0)
    generate = torch.arange(2 * num_pairs) % 2 == 1
    noise = torch.randn(recording.shape, generator=torch.Generator().manual_seed(0))
    sampler = make_sampler("ddim", MODELS["flow"].config)

    def mean_error(resamples):
        edit = LatentEdit(recording, generate=generate, resamples=resamples)
        found = sample(Correlated(), sampler, noise, torch.zeros(1, 2), generators=generators(1), edit=edit,
                       **plain(40))  # fmt: skip
        return abs(float(found[..., generate].mean()) - 2 * Correlated.RHO)

    assert mean_error(4) < 0.6 * mean_error(1)


def test_noise_is_raised_to_the_variance_of_the_higher_level():
    x, s, higher = torch.zeros(200_000), 0.3, 0.7
    e, noise = (torch.randn(200_000, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    raised = raise_level((1 - s) * (x + 2) + s * e, s, higher, noise)
    assert raised.mean().item() == pytest.approx((1 - higher) * 2, abs=0.01)
    assert raised.std().item() == pytest.approx(higher, abs=0.01)


def test_levels_begin_at_the_strength_and_segments_are_repeated():
    levels = [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    assert level_segments(levels, LatentEdit()) == [levels]
    assert level_segments(levels, LatentEdit(RECORDING, strength=0.5)) == [[0.5, 0.4, 0.2, 0.0]]
    assert level_segments(levels, LatentEdit(RECORDING, strength=0.4)) == [[0.4, 0.2, 0.0]]
    assert level_segments(levels, LatentEdit(RECORDING, strength=0)) == []
    twice = LatentEdit(RECORDING, strength=0.7, resamples=2)
    assert level_segments(levels, twice) == [[0.7, 0.6, 0.4, 0.2, 0.0]] * 2
    assert level_segments(levels, LatentEdit(resamples=2)) == [levels]  # from pure noise, nothing to repeat


@pytest.mark.parametrize("edit", [LatentEdit(RECORDING, strength=0.5), LatentEdit(resamples=3),
                                  LatentEdit(RECORDING, generate=GENERATE, strength=0.7, resamples=2)])  # fmt: skip
@pytest.mark.parametrize("name", ["heun", "dpm++2m", "euler_a", None])
def test_steps_are_announced_correctly(name, edit):
    if name is None and edit.resamples > 1:
        return
    sampler = make_sampler(name, MODELS["flow"].config) if name else FlowMatchEulerDiscreteScheduler()
    steps = []
    sample(BestGuess(MODELS["flow"]), sampler, NOISE, torch.zeros(1, 2), generators=generators(3), edit=edit,
           on_step=lambda index, *_: steps.append(index), **plain(10))  # fmt: skip
    assert steps == list(range(num_steps(sampler, 10, edit=edit)))


@pytest.mark.parametrize("scheduler", [FlowMatchEulerDiscreteScheduler(), FlowMatchLCMScheduler(),
                                       MODELS["v"], MODELS["epsilon"]])  # fmt: skip
def test_a_models_own_scheduler_takes_edits_too(scheduler):
    guess = BestGuess(scheduler, jumps=isinstance(scheduler, FlowMatchLCMScheduler))

    def run(edit):
        return edited(None, None, edit, scheduler=scheduler, guess=guess, steps=8)

    assert torch.equal(run(LatentEdit(RECORDING, strength=0)), RECORDING)
    assert torch.equal(run(LatentEdit(RECORDING, strength=1)), run(LatentEdit()))
    half = run(LatentEdit(RECORDING, strength=0.5))
    assert not torch.allclose(half, RECORDING, atol=0.1)
    assert not torch.allclose(half, run(LatentEdit()), atol=0.1)
    found = run(LatentEdit(RECORDING, generate=GENERATE))
    torch.testing.assert_close(found[..., ~GENERATE], RECORDING[..., ~GENERATE], atol=2e-3, rtol=0)


def test_frames_to_keep_need_no_prediction_of_their_own():
    generate = torch.arange(100) >= 90
    edit = LatentEdit(torch.zeros(1, 1, 100), generate=generate, regions=windows(100, size=20, overlap=4))
    assert [int(region.frames[0]) for region in edit.needed_regions()] == [80]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": 1.5}, "strength is 1.5; choose 0"),
        ({"strength": math.nan}, "strength is nan; choose 0"),
        ({"strength": 0.5}, "strength has no effect without a sound"),
        ({"generate": GENERATE}, "a mask has no effect without a sound"),
        ({"resamples": 0}, "resamples is 0; choose 1"),
    ],
)
def test_settings_out_of_range_are_errors(settings, message):
    with pytest.raises(UserError, match=message):
        LatentEdit(**settings)


def test_what_the_own_scheduler_cannot_do_is_an_error():
    with pytest.raises(UserError, match="resamples has no effect with the model's own scheduler"):
        edited(None, None, LatentEdit(RECORDING, generate=GENERATE, resamples=2), scheduler=FlowMatchLCMScheduler())
    with pytest.raises(UserError, match=r"strength 0.05 is below the lowest noise level of these steps \(0.25\)"):
        edited(None, None, LatentEdit(RECORDING, strength=0.05), scheduler=FlowMatchLCMScheduler(), steps=4)
