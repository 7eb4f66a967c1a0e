"""LCM and TCD on the exact consistency function of Gaussian latents, and on nothing else."""

import pytest
import torch
from diffusers import FlowMatchLCMScheduler, LCMScheduler, TCDScheduler
from exact import MODELS, BestGuess, M, NoiseAxes, S, alpha_sigma, generators, plain

from diffaudio.diffusion.sampling import draw_noise, make_sampler, num_steps, sample

VP = {"beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": True}
DISTILLED = {
    "lcm-flow": FlowMatchLCMScheduler(),
    "lcm-v": LCMScheduler(**VP, prediction_type="v_prediction"),
    "lcm-sample": LCMScheduler(**VP, prediction_type="sample"),
    "lcm-epsilon": LCMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="epsilon"),
    "tcd-v": TCDScheduler(**VP, prediction_type="v_prediction"),
    "tcd-epsilon": TCDScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="epsilon"),
}


@pytest.mark.parametrize("model", DISTILLED)
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_every_number_of_steps_finds_mean_and_deviation(model, steps, monkeypatch):
    own = DISTILLED[model]
    scheduler = make_sampler(model[:3], own.config, eta=1.0 if model.startswith("tcd") else None)
    axes = NoiseAxes(monkeypatch)
    (mean, deviation), seen = axes.mean_and_deviation(scheduler, own, steps, jumps=True)
    # diffusers' TCD ends at the first timestep of training, not at clean latents
    assert (mean, deviation) == (pytest.approx(M, abs=0.005), pytest.approx(S, abs=0.01 if "tcd" in model else 0.001))
    assert len(seen) == num_steps(scheduler, steps) == steps


@pytest.mark.parametrize("eta", [0.0, 0.3, None])
def test_tcd_stays_on_the_noise_levels_whatever_noise_it_adds(eta, monkeypatch):
    """Where there is one sound alone, M, a jump of any length is exact: at alpha, sigma lies alpha M + sigma e."""
    own = DISTILLED["tcd-v"]
    scheduler, axes = make_sampler("tcd", own.config, eta=eta), NoiseAxes(monkeypatch)
    _, seen = axes.mean_and_deviation(scheduler, own, 4, jumps=True, deviation=0.0)
    for timestep, (mean, deviation) in zip(scheduler.timesteps[1:], seen[:-1], strict=True):
        alpha, sigma = alpha_sigma(own, timestep)
        assert (mean, deviation) == (pytest.approx(alpha * M, abs=1e-4), pytest.approx(sigma, abs=1e-4))
    assert axes.count == (1 if eta == 0 else 4)  # the first noise, and one after each step but the last
    assert seen[-1][0] == pytest.approx(M, abs=0.001)


@pytest.mark.parametrize("model", ["lcm-flow", "lcm-v", "tcd-v"])
def test_an_item_depends_on_its_seed_alone(model):
    own = DISTILLED[model]

    def latents(*seeds):
        seeded, scheduler = generators(*seeds), make_sampler(model[:3], own.config)
        noise, embedding = draw_noise((2, 5), seeded), torch.zeros(len(seeds), 2)
        return sample(BestGuess(own, jumps=True), scheduler, noise, embedding, generators=seeded, **plain(3))

    torch.testing.assert_close(latents(3, 17, 4)[1:2], latents(17), atol=0, rtol=0)


REFUSED = [
    ("lcm", MODELS["flow"], {}, "'lcm' does not suit .* own scheduler is LCMScheduler or Flow.* this one's is of ordi"),
    ("tcd", MODELS["v"], {}, "'tcd' does not suit .* whose own scheduler is TCDScheduler; this one's is of ordinary"),
    ("tcd", DISTILLED["lcm-flow"], {}, "'tcd' does not suit .* this one's is FlowMatchLCMScheduler"),
    ("ddim", DISTILLED["lcm-flow"], {}, r"'ddim' does not suit .* \(its own scheduler is FlowMatchLCM.* take lcm"),
    ("heun", DISTILLED["tcd-v"], {}, "'heun' does not suit .* no slope to follow; take"),
    ("lcm", DISTILLED["lcm-v"], {"spacing": "karras"}, "'lcm' does not take spacing 'karras': its noise levels are"),
    ("lcm", DISTILLED["lcm-v"], {"eta": 0.5}, "eta has no effect on sampler 'lcm'"),
]


@pytest.mark.parametrize(("name", "own", "settings", "told"), REFUSED)
def test_models_and_samplers_that_do_not_fit_are_refused_with_the_reason(name, own, settings, told):
    with pytest.raises(ValueError, match=told):
        make_sampler(name, own.config, **settings)


def test_a_checkpoint_says_of_itself_what_it_was_distilled_for(tmp_path):
    for name, own, other in (("lcm", DISTILLED["lcm-v"], "tcd"), ("tcd", DISTILLED["tcd-v"], "lcm")):
        own.save_pretrained(tmp_path / name)
        config = type(own).from_pretrained(tmp_path / name).config
        assert type(make_sampler(name, config)) is type(own)
        with pytest.raises(ValueError, match=f"'{other}' does not suit .* this one's is {type(own).__name__}"):
            make_sampler(other, config)
        with pytest.raises(ValueError, match=f"does not suit .* take {name}"):
            make_sampler("ddim", config)


def test_a_distilled_model_takes_few_steps_and_a_generator_each():
    own = DISTILLED["lcm-v"]
    with pytest.raises(ValueError, match="distilled over 50 noise levels; take 1 to 50 steps"):
        num_steps(make_sampler("lcm", own.config), 51)
    scheduler, noise = make_sampler("lcm", own.config), torch.zeros(1, 1, 1)
    with pytest.raises(ValueError, match=r"give one generator an item \(1\), not none"):
        sample(BestGuess(own, jumps=True), scheduler, noise, torch.zeros(1, 2), **plain(2))


def test_a_model_that_jumps_is_followed_wrongly_by_ordinary_steps():
    """Why these are refused: the deviation comes out wrong."""
    flow = MODELS["flow"]
    noise = torch.randn(1, 1, 4000, generator=generators(0)[0])
    scheduler = make_sampler("euler", flow.config)
    latents = sample(BestGuess(flow, jumps=True), scheduler, noise, torch.zeros(1, 2), **plain(20))
    assert abs(float(latents.std()) - S) > 0.1
