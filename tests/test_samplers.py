"""Samplers against the exact answer for Gaussian latents.

For latents of mean M and deviation S in every entry, the best prediction is known in closed form,
and with it the flow from noise u to latents: at alpha, sigma it passes through
alpha M + sqrt(alpha^2 S^2 + sigma^2) u, and it ends at M + S u.
"""

import functools
import math

import pytest
import torch
from diffusers import DDIMScheduler

from diffaudio.diffusion.objectives import prediction_type, training_scheduler
from diffaudio.diffusion.samplers import SAMPLERS, draw_noise, make_sampler, sample

M, S = 0.7, 0.5
MODELS = {
    "flow": training_scheduler("flow"),
    "v": training_scheduler("v"),
    "epsilon": DDIMScheduler(prediction_type="epsilon", timestep_spacing="trailing", clip_sample=False),
    "sample": DDIMScheduler(prediction_type="sample", timestep_spacing="trailing", clip_sample=False),
}
DETERMINISTIC = [name for name in SAMPLERS if name != "dpm++2m_sde"]
SECOND_ORDER = ["dpm++2m", "heun", "unipc"]


class BestGuess:
    """What a perfectly trained U-Net would predict; counts its passes."""

    def __init__(self, model):
        self.scheduler, self.passes = MODELS[model], 0

    def __call__(self, latents, timestep, embedding, keep=None):
        self.passes += 1
        if prediction_type(self.scheduler.config) == "flow_prediction":
            sigma = float(timestep) / 1000
            alpha = 1 - sigma
        else:
            alpha = math.sqrt(self.scheduler.alphas_cumprod[int(timestep)])
            sigma = math.sqrt(1 - alpha**2)
        variance = alpha**2 * S**2 + sigma**2
        x = M + alpha * S**2 / variance * (latents - alpha * M)
        noise = sigma / variance * (latents - alpha * M)
        return {
            "flow_prediction": noise - x,
            "v_prediction": alpha * noise - sigma * x,
            "epsilon": noise,
            "sample": x,
        }[prediction_type(self.scheduler.config)]


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def run(name, model, steps, noise, **settings):
    """Sample with the best guess; returns the latents, and the number of passes."""
    guess = BestGuess(model)
    latents = sample(
        guess,
        make_sampler(name, MODELS[model].config),
        noise,
        torch.zeros(len(noise), 2),
        num_inference_steps=steps,
        guidance_scale=1,
        **settings,
    )
    return latents, guess.passes


@functools.cache
def error(name, model, steps):
    """How far the sampler ends from the exact flow, for noise within four deviations."""
    noise = torch.linspace(-4, 4, 9).reshape(1, 1, 9)
    return float((run(name, model, steps, noise)[0] - (M + S * noise)).abs().max())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_every_sampler_finds_the_exact_answer(name, model):
    assert error(name, model, 80) < (0.01 if name in SECOND_ORDER else 0.1)


@pytest.mark.parametrize("model", ["flow", "v"])
@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_first_order_samplers_halve_their_error_with_twice_the_steps(name, model):
    assert error(name, model, 40) / error(name, model, 80) == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("model", ["flow", "v"])
@pytest.mark.parametrize("name", ["heun", "unipc"])
def test_second_order_samplers_gain_the_square(name, model):
    assert error(name, model, 20) / error(name, model, 80) > 8


@pytest.mark.parametrize("model", ["flow", "v"])
@pytest.mark.parametrize("name", SECOND_ORDER)
def test_second_order_samplers_pay_off(name, model):
    for steps in (25, 50):
        euler_steps = 2 * steps if name == "heun" else steps
        assert error(name, model, steps) < error("euler", model, euler_steps) / 2


def test_latents_follow_the_exact_flow_on_the_way():
    noise, farthest = torch.linspace(-2, 2, 5).reshape(1, 1, 5), []
    scheduler = make_sampler("heun", MODELS["flow"].config)

    def on_step(index, timestep, latents):
        if index % 2 == 0:  # after Euler's step the latents lie at the next level
            level = float(scheduler.sigmas[index + 1])
            exact = (1 - level) * M + math.sqrt((1 - level) ** 2 * S**2 + level**2) * noise
            farthest.append(float((latents - exact).abs().max()))

    sample(
        BestGuess("flow"),
        scheduler,
        noise,
        torch.zeros(1, 2),
        num_inference_steps=60,
        guidance_scale=1,
        on_step=on_step,
    )
    assert len(farthest) == 60
    assert max(farthest) < 0.005


@pytest.mark.parametrize("model", ["flow", "v"])
def test_the_stochastic_sampler_finds_mean_and_deviation(model):
    seeded = generators(*range(8))
    latents, _ = run("dpm++2m_sde", model, 60, draw_noise((8, 64), seeded), generators=seeded)
    assert float(latents.mean()) == pytest.approx(M, abs=0.04)
    assert float(latents.std()) == pytest.approx(S, abs=0.04)


@pytest.mark.parametrize("model", ["flow", "v"])
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 25, 30])
def test_passes_are_steps_and_twice_that_for_heun(name, model, steps):
    noise, seeded = torch.zeros(1, 1, 1), generators(0)
    latents, passes = run(name, model, steps, noise, generators=seeded)
    assert passes == (2 * steps - 1 if name == "heun" else steps)
    assert latents.isfinite().all()


@pytest.mark.parametrize("model", ["flow", "v"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_ends_at_the_mean(name, model):
    """From pure noise, the best guess of the clean latents is their mean."""
    latents, _ = run(name, model, 1, torch.randn(1, 2, 3), generators=generators(0))
    torch.testing.assert_close(latents, torch.full((1, 2, 3), M), atol=0.01, rtol=0)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++2m", "heun"])
def test_diffusers_miscounted_numbers_of_steps_are_taken_right(name):
    assert error(name, "v", 61) < error(name, "v", 55)


def test_ddim_is_the_ddim_of_diffusers_where_that_is_exact():
    noise = torch.randn(1, 2, 3)
    theirs = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    expected = sample(BestGuess("v"), theirs, noise, torch.zeros(1, 2), num_inference_steps=25, guidance_scale=1)
    torch.testing.assert_close(run("ddim", "v", 25, noise)[0], expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_item_depends_on_its_seed_alone(name):
    def latents(*seeds):
        seeded = generators(*seeds)
        return run(name, "flow", 6, draw_noise((2, 5), seeded), generators=seeded)[0]

    batch = latents(3, 17, 4)
    torch.testing.assert_close(batch[1:2], latents(17), atol=0, rtol=0)
    assert not torch.allclose(batch[0], batch[1])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_scheduler_can_be_used_again(name):
    scheduler, noise = make_sampler(name, MODELS["flow"].config), torch.randn(1, 2, 3)
    first, second = (
        sample(
            BestGuess("flow"),
            scheduler,
            noise,
            torch.zeros(1, 2),
            num_inference_steps=steps,
            guidance_scale=1,
            generators=generators(5),
        )
        for steps in (4, 4)
    )
    torch.testing.assert_close(first, second, atol=0, rtol=0)


def test_guidance_and_a_negative_embedding_reach_the_unet():
    seen = []

    def unet(latents, timestep, embedding, keep=None):
        seen.append((len(latents), embedding.flatten().tolist(), None if keep is None else keep.tolist()))
        return latents

    noise, embedding = torch.zeros(1, 1, 1), torch.ones(1, 1)
    scheduler = make_sampler("euler", MODELS["flow"].config)
    settings = {"num_inference_steps": 1, "guidance_scale": 3.0}
    sample(unet, scheduler, noise, embedding, **settings)
    sample(unet, scheduler, noise, embedding, negative_embedding=-embedding, **settings)
    assert seen == [(2, [1.0, 1.0], [True, False]), (2, [1.0, -1.0], None)]


def test_settings_out_of_range_are_refused():
    noise, embedding = torch.zeros(2, 1, 1), torch.zeros(2, 2)

    def attempt(name="euler", model="flow", **changes):
        settings = {"num_inference_steps": 4, "guidance_scale": 2.0, **changes}
        sample(BestGuess(model), make_sampler(name, MODELS[model].config), noise, embedding, **settings)

    with pytest.raises(ValueError, match=r"sampler 'dpm2' is unknown; choose from ddim, dpm\+\+2m, .*heun, unipc"):
        attempt("dpm2")
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=f"num_inference_steps is {steps}; it must be 1 to 1000"):
            attempt(num_inference_steps=steps)
    for scale in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"guidance_scale is {scale}; it must be at least 0"):
            attempt(guidance_scale=scale)
    with pytest.raises(ValueError, match="a negative prompt has no effect at guidance scale 1"):
        attempt(guidance_scale=1, negative_embedding=embedding)
    with pytest.raises(ValueError, match=r"give one generator an item \(2\), not none"):
        attempt("dpm++2m_sde")
    with pytest.raises(ValueError, match=r"give one generator an item \(2\), not 1"):
        attempt("dpm++2m_sde", generators=generators(0))
    with pytest.raises(ValueError, match="UniPCMultistepScheduler cannot take 61 steps; take one more or less"):
        attempt("unipc", "v", num_inference_steps=61)
