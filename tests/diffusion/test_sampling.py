"""Samplers against the exact answer for Gaussian latents, and against diffusers' schedulers where these are right."""

import functools
import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)
from exact import MODELS, BestGuess, M, NoiseAxes, S, alpha_sigma, generators, plain, run

from diffaudio.diffusion import solvers
from diffaudio.diffusion.sampler_table import SAMPLERS
from diffaudio.diffusion.sampling import SolverSampler, draw_noise, make_sampler, num_steps, sample
from diffaudio.diffusion.settings import Guidance
from diffaudio.diffusion.training_scheduler import training_scheduler
from diffaudio.errors import UserError

ORDINARY = {name: sampler for name, sampler in SAMPLERS.items() if sampler.solver is not None}
STOCHASTIC = [name for name, sampler in ORDINARY.items() if sampler.is_stochastic and sampler.eta != 0]
DETERMINISTIC = [name for name in ORDINARY if name not in STOCHASTIC]
SPACED = [(name, spacing) for name in DETERMINISTIC for spacing in ORDINARY[name].spacings]
# Where the theory of each holds, free of what the last step, to clean latents, adds.
BEST = {name: ORDINARY[name].spacings[-1] for name in ORDINARY}
BEST |= dict.fromkeys(("ddpm", "euler_a", "pndm", "lms", "dpm2"), "trailing")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


@functools.cache
def error(name, model, steps, spacing=None):
    """How far the sampler ends from the exact flow, for noise within four deviations."""
    noise = torch.linspace(-4, 4, 9).reshape(1, 1, 9)
    return float((run(name, model, steps, noise, spacing=spacing)[0] - (M + S * noise)).abs().max())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_every_sampler_finds_the_exact_answer(name, model):
    assert error(name, model, 80) < (0.1 if ORDINARY[name].order == 1 else 0.01 if model in ("flow", "v") else 0.03)


@pytest.mark.parametrize("model", ["flow", "v"])
@pytest.mark.parametrize(("name", "spacing"), SPACED)
def test_it_does_so_in_every_spacing_that_it_takes(name, spacing, model):
    assert error(name, model, 80, spacing) < (0.1 if ORDINARY[name].order == 1 else 0.015)


# Not pndm on v: its weights are for even steps, and the one from the first timestep of training to clean is longer.
MEASURED = [(name, model) for name in DETERMINISTIC for model in ("flow", "v") if (name, model) != ("pndm", "v")]


@pytest.mark.parametrize(("name", "model"), MEASURED)
def test_the_error_falls_by_the_order_in_the_table(name, model):
    order, few = ORDINARY[name].order, 10 if name == "dpm++3m" else 20
    gain = error(name, model, few, BEST[name]) / error(name, model, 4 * few, BEST[name])
    if order == 1:
        assert gain == pytest.approx(4, rel=0.15)
    else:
        assert gain > 0.7 * 4**order


@pytest.mark.parametrize("model", ["flow", "v"])
def test_higher_order_pays_off(model):
    """In as many passes, at the default spacing."""
    for name in DETERMINISTIC:
        sampler = ORDINARY[name]
        if sampler.order > 1:
            assert error(name, model, 50 // sampler.passes) < error("euler", model, 50) / 2, name


def test_third_order_needs_the_factor_that_diffusers_drops():
    theirs = solvers.from_diffusers("DPMSolverMultistepScheduler", solver_order=3)
    noise, off = torch.tensor([[[4.0]]]), []
    for steps in (20, 80):
        scheduler = SolverSampler(MODELS["flow"].config, theirs, spacing="exponential", is_stochastic=False)
        latents = sample(BestGuess(MODELS["flow"]), scheduler, noise, torch.zeros(1, 2), **plain(steps))
        off.append(abs(float(latents) - M - S * 4))
    assert off[0] / off[1] < 4**3 / 1.5
    assert error("dpm++3m", "flow", 80, "exponential") < off[1] / 5


def test_latents_follow_the_exact_flow_on_the_way():
    noise, farthest = torch.linspace(-2, 2, 5).reshape(1, 1, 5), []
    scheduler = make_sampler("heun", MODELS["flow"].config)
    levels = [*scheduler.passes(60), 0]

    def on_step(index, timestep, latents):
        if index % 2 == 0:  # after Euler's step the latents lie at the next level
            level = levels[index + 1]
            exact = (1 - level) * M + math.sqrt((1 - level) ** 2 * S**2 + level**2) * noise
            farthest.append(float((latents - exact).abs().max()))

    sample(BestGuess(MODELS["flow"]), scheduler, noise, torch.zeros(1, 2), on_step=on_step, **plain(60))
    assert len(farthest) == 60
    assert max(farthest) < 0.005


@pytest.mark.parametrize("model", ["flow", "v"])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_find_mean_and_deviation_by_their_order(name, model, monkeypatch):
    axes, off = NoiseAxes(monkeypatch), []
    for steps in (20, 80):
        scheduler = make_sampler(name, MODELS[model].config, spacing=BEST[name])
        (mean, deviation), _ = axes.mean_and_deviation(scheduler, MODELS[model], steps)
        assert mean == pytest.approx(M, abs=1e-3)
        assert axes.count > steps - 2  # it did draw noise
        off.append(abs(deviation - S))
    assert off[1] < (0.03 if SAMPLERS[name].order == 1 else 0.005)
    assert off[0] / off[1] > 0.7 * 4 ** SAMPLERS[name].order


@pytest.mark.parametrize("name", ["ddim", "euler_a", "dpm2_a"])
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_any_eta_keeps_mean_and_deviation(name, eta, monkeypatch):
    scheduler = make_sampler(name, MODELS["v"].config, eta=eta)
    (mean, deviation), _ = NoiseAxes(monkeypatch).mean_and_deviation(scheduler, MODELS["v"], 80)
    assert (mean, deviation) == (pytest.approx(M, abs=1e-3), pytest.approx(S, abs=0.03))


def test_eta_leads_from_ddim_to_ddpm():
    noise = torch.randn(1, 2, 3)

    def latents(name, eta=None):
        return run(name, "flow", 8, noise, eta=eta, generators=generators(3))[0]

    torch.testing.assert_close(latents("ddim"), latents("euler"), atol=0, rtol=0)
    torch.testing.assert_close(latents("euler_a", 0.0), latents("euler"), atol=0, rtol=0)
    torch.testing.assert_close(latents("ddim", 1.0), latents("ddpm"), atol=0, rtol=0)
    assert not torch.allclose(latents("ddim", 0.5), latents("ddpm"))
    assert not torch.allclose(latents("ddim", 0.5), latents("ddim"))
    assert run("ddim", "flow", 8, noise, eta=0.0)[0].isfinite().all()  # needs no generators


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize(("model", "steps"), [("flow", 1), ("flow", 2), ("v", 1), ("v", 61)])
def test_passes_are_known_before_the_run(name, model, steps):
    noise, seeded = torch.zeros(1, 1, 1), generators(0)
    latents, passes = run(name, model, steps, noise, generators=seeded)
    more = {"heun": -1, "pndm": 0 if steps == 1 else 1}.get(name, 0)
    assert passes == SAMPLERS[name].passes * steps + more
    assert passes == num_steps(make_sampler(name, MODELS[model].config), steps)
    assert latents.isfinite().all()


@pytest.mark.parametrize("model", ["flow", "v"])
@pytest.mark.parametrize("name", [name for name in ORDINARY if not name.startswith("dpm2")])
def test_one_step_ends_at_the_mean(name, model):
    """From pure noise, the best guess of the clean latents is their mean."""
    latents, _ = run(name, model, 1, torch.randn(1, 2, 3), generators=generators(0))
    torch.testing.assert_close(latents, torch.full((1, 2, 3), M), atol=0.01, rtol=0)


VP = {"timestep_spacing": "trailing", "beta_schedule": "squaredcos_cap_v2"}


@pytest.mark.parametrize(
    ("name", "model", "theirs"),
    [
        (
            "ddim",
            "v",
            DDIMScheduler(**VP, prediction_type="v_prediction", rescale_betas_zero_snr=True, clip_sample=False),
        ),
        (
            "ddpm",
            "v",
            DDPMScheduler(**VP, prediction_type="v_prediction", rescale_betas_zero_snr=True, clip_sample=False),
        ),
        ("euler_a", "epsilon", EulerAncestralDiscreteScheduler(timestep_spacing="trailing")),
        ("dpm++2m", "epsilon", DPMSolverMultistepScheduler(timestep_spacing="trailing")),
        ("unipc", "epsilon", UniPCMultistepScheduler(timestep_spacing="trailing")),
        ("euler", "flow", FlowMatchEulerDiscreteScheduler()),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_diffusers_comes_to_the_same_where_it_is_exact(name, model, theirs):
    """Also: a model that is seen as one of flow matching is sampled as it would be in its own form."""
    noise = torch.randn(1, 2, 3, generator=generators(1)[0])
    guess = BestGuess(MODELS[model])
    expected = sample(guess, theirs, noise, torch.zeros(1, 2), generators=generators(7), **plain(25))
    ours = run(name, model, 25, noise, generators=generators(7))[0]
    torch.testing.assert_close(ours, expected, atol=3e-3, rtol=0)


def test_heun_is_the_heun_of_diffusers_at_its_noise_levels():
    noise, theirs = torch.randn(1, 2, 3), FlowMatchHeunDiscreteScheduler()
    expected = sample(BestGuess(MODELS["flow"]), theirs, noise, torch.zeros(1, 2), **plain(10))
    torch.testing.assert_close(run("heun", "flow", 10, noise)[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ORDINARY)
def test_latents_stay_on_their_device(name):
    """Without one at hand: 'meta' refuses to be mixed with the CPU, as a GPU does."""
    noise, embedding = torch.empty(2, 3, 5, device="meta"), torch.empty(2, 2, device="meta")
    scheduler = make_sampler(name, MODELS["v"].config)
    latents = sample(lambda z, t, e: z / 2, scheduler, noise, embedding, generators=generators(0, 1), **plain(4))
    assert (latents.device.type, latents.dtype, latents.shape) == ("meta", torch.float32, noise.shape)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["euler", "dpm2"])
def test_guidance_receives_the_noise_level_of_each_pass(name, model):
    """An interval of noise levels is guided where the timesteps say so."""
    seen, scheduler = [], make_sampler(name, MODELS[model].config)

    def unet(latents, timestep, embedding, condition_mask=None):
        seen.append((float(timestep), len(latents)))
        return latents

    sample(
        unet,
        scheduler,
        torch.zeros(1, 1, 1),
        torch.zeros(1, 2),
        num_inference_steps=20,
        guidance_scale=2,
        guidance=Guidance(interval=(0.3, 0.8)),
    )
    for timestep, items in seen:
        alpha, sigma = alpha_sigma(MODELS[model], timestep)
        assert items == (2 if 0.3 < sigma / (alpha + sigma) <= 0.8 else 1)


@pytest.mark.parametrize("name", ORDINARY)
def test_an_item_depends_on_its_seed_alone(name):
    def latents(*seeds):
        seeded = generators(*seeds)
        return run(name, "flow", 6, draw_noise((2, 5), seeded), generators=seeded)[0]

    batch = latents(3, 17, 4)
    torch.testing.assert_close(batch[1:2], latents(17), atol=0, rtol=0)
    assert not torch.allclose(batch[0], batch[1])


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("name", ORDINARY)
def test_zero_init_holds_the_latents_still_and_the_sampler_starts_afterwards(name, scale):
    """No pass, no fresh noise, and no slope of zero in the history of multistep samplers."""
    noise, passes, latents = torch.linspace(-2, 2, 5).reshape(1, 1, 5), [], []
    sampler, held = make_sampler(name, MODELS["flow"].config, spacing="trailing"), 3

    def unet(z, timestep, embedding=None, condition_mask=None):
        passes.append(float(timestep))
        return BestGuess(MODELS["flow"])(z, timestep, embedding)

    def on_step(index, timestep, z):
        latents.append(z)

    def run_sampler(start, **settings):
        passes.clear()
        latents.clear()
        return sample(unet, sampler, start, torch.zeros(1, 2), guidance_scale=scale, on_step=on_step, **settings)

    settings = {"num_inference_steps": 10, "generators": generators(3), "guidance": Guidance(zero_init=0.25)}
    ended = run_sampler(noise, **settings)
    assert passes[0] == pytest.approx(700)
    assert all(torch.equal(z, noise) for z in latents[:held])
    assert not torch.equal(latents[held], noise)
    assert len(latents) == num_steps(sampler, 10, settings["guidance"])

    schedule = sampler.schedule
    levels = schedule.levels("trailing", 10)[held:]
    slope = BestGuess(MODELS["flow"])
    exact = sampler.solver(lambda y, s: slope(y, 1000 * s, None), noise, levels, generators(3))
    torch.testing.assert_close(ended, exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("own", [training_scheduler("flow"), FlowMatchHeunDiscreteScheduler(), FlowMatchLCMScheduler()])
def test_zero_init_holds_the_latents_of_a_checkpoints_own_scheduler_still_too(own):
    noise, latents = torch.linspace(-2, 2, 5).reshape(1, 1, 5), []
    guidance, guess = Guidance(zero_init=0.25), BestGuess(MODELS["flow"])
    settings = {"num_inference_steps": 10, "guidance_scale": 1, "generators": generators(3), "guidance": guidance}
    sample(guess, own, noise, torch.zeros(1, 2), on_step=lambda i, t, z: latents.append(z), **settings)
    assert torch.equal(latents[2], noise)
    moved = [z for z in latents if not torch.equal(z, noise)]
    assert len(latents) - len(moved) == len(latents) - guess.passes
    assert len(latents) == num_steps(own, 10, guidance)
    assert all(z.isfinite().all() for z in latents)


def test_zero_init_that_would_leave_nothing_but_noise_is_refused():
    sampler, noise = make_sampler("euler", MODELS["flow"].config), torch.zeros(1, 1, 1)
    with pytest.raises(UserError, match="zero-init 0.04 holds all 1 steps still, so that only noise would be left"):
        sample(
            BestGuess(MODELS["flow"]), sampler, noise, torch.zeros(1, 2), guidance=Guidance(zero_init=0.04), **plain(1)
        )


@pytest.mark.parametrize("steps", [4, 6, 8, 10, 12, 15, 20, 25])
@pytest.mark.parametrize("std", [0.5, 1.02])
def test_sa_does_not_overshoot_in_few_steps(std, steps, monkeypatch):
    axes, sampler = NoiseAxes(monkeypatch), make_sampler("sa", MODELS["flow"].config)
    (_, found), _ = axes.mean_and_deviation(sampler, MODELS["flow"], steps, deviation=std)
    assert (0.6 if steps < 8 else 0.78) < found / std < 1.02
    assert abs(found / std - 1) < 0.04 or steps < 20


@pytest.mark.parametrize("name", ORDINARY)
def test_a_scheduler_can_be_used_again(name):
    scheduler, noise, guess = make_sampler(name, MODELS["flow"].config), torch.randn(1, 2, 3), BestGuess(MODELS["flow"])
    first, second = (
        sample(guess, scheduler, noise, torch.zeros(1, 2), generators=generators(5), **plain(4)) for _ in range(2)
    )
    torch.testing.assert_close(first, second, atol=0, rtol=0)


def test_counting_passes_draws_no_noise():
    state = torch.get_rng_state()
    num_steps(make_sampler("sa", MODELS["flow"].config), 10)
    assert torch.equal(torch.get_rng_state(), state)


def test_guidance_and_a_negative_embedding_reach_the_unet():
    seen = []

    def unet(latents, timestep, embedding, condition_mask=None):
        seen.append(
            (len(latents), embedding.flatten().tolist(), None if condition_mask is None else condition_mask.tolist())
        )
        return latents

    noise, embedding = torch.zeros(1, 1, 1), torch.ones(1, 1)
    scheduler = make_sampler("euler", MODELS["flow"].config)
    settings = {"num_inference_steps": 1, "guidance_scale": 3.0}
    sample(unet, scheduler, noise, embedding, **settings)
    sample(unet, scheduler, noise, embedding, negative_embedding=-embedding, **settings)
    assert seen == [(2, [1.0, 1.0], [True, False]), (2, [1.0, -1.0], None)]


def test_settings_out_of_range_are_refused():
    noise, embedding = torch.zeros(2, 1, 1), torch.zeros(2, 2)

    def attempt(name="euler", model="flow", spacing=None, eta=None, **changes):
        settings = {"num_inference_steps": 4, "guidance_scale": 2.0, **changes}
        scheduler = make_sampler(name, MODELS[model].config, spacing=spacing, eta=eta)
        sample(BestGuess(MODELS[model]), scheduler, noise, embedding, **settings)

    with pytest.raises(ValueError, match=r"sampler 'dpm3' is unknown; choose from ddpm, ddim, .*lcm, tcd"):
        attempt("dpm3")
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=f"num_inference_steps is {steps}; it must be 1 to 1000"):
            attempt(num_inference_steps=steps)
    with pytest.raises(ValueError, match="guidance_scale is -1; it must be at least 0"):
        attempt(guidance_scale=-1)
    for given in (None, generators(0)):
        with pytest.raises(ValueError, match=r"give one generator an item \(2\), not (none|1)"):
            attempt("dpm++2m_sde", generators=given)
    with pytest.raises(ValueError, match="spacing 'leading' is unknown; choose from trailing, linear, karras, exp"):
        attempt(spacing="leading")
    with pytest.raises(
        ValueError, match="'pndm' does not take spacing 'karras': its weights hold for steps that are ev"
    ):
        attempt("pndm", spacing="karras")
    with pytest.raises(ValueError, match=r"'deis' does not take spacing 'linear': its last step would be a leap"):
        attempt("deis", spacing="linear")
    with pytest.raises(
        ValueError, match="'sa' does not take spacing 'karras': in fewer than 40 steps it would overshoo"
    ):
        attempt("sa", spacing="karras")
    with pytest.raises(
        ValueError, match="eta has no effect on sampler 'heun'; .* choose from ddim, euler_a, dpm2_a, tcd"
    ):
        attempt("heun", eta=0.5)
    with pytest.raises(ValueError, match=r"eta is 1.5; 0 \(no fresh noise\) to 1 is allowed"):
        attempt("ddim", eta=1.5)


def test_predicted_noise_says_nothing_where_there_is_nothing_else():
    config = DDIMScheduler(prediction_type="epsilon", rescale_betas_zero_snr=True).config
    with pytest.raises(ValueError, match="sampler 'ddim' does not suit this model: this model predicts noise and its"):
        make_sampler("ddim", config)


def test_a_scheduler_of_diffusers_can_be_used_as_it_is():
    noise = torch.linspace(-2, 2, 5).reshape(1, 1, 5)
    for own in (training_scheduler("flow"), training_scheduler("v")):
        latents = sample(BestGuess(own), own, noise, torch.zeros(1, 2), **plain(40))
        torch.testing.assert_close(latents, M + S * noise, atol=0.05, rtol=0)
    unipc = UniPCMultistepScheduler(timestep_spacing="trailing")
    with pytest.raises(ValueError, match="UniPCMultistepScheduler cannot take 61 steps; take one more or less"):
        sample(BestGuess(unipc), unipc, noise, torch.zeros(1, 2), **plain(61))
