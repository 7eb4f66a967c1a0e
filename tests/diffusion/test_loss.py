"""The loss, against closed forms."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from diffaudio.corpus.datasets.clip_order import ClipOrder
from diffaudio.diffusion.level_sampling import NoiseSettings
from diffaudio.diffusion.loss import (
    clean_and_noise,
    diffusion_loss,
    prediction_of,
    prediction_type,
)
from diffaudio.diffusion.training_scheduler import training_scheduler
from diffaudio.seeding import BatchDraws

SCHEDULERS = {
    "flow_prediction": training_scheduler("flow"),
    "v_prediction": training_scheduler("v"),
    "epsilon": DDIMScheduler(prediction_type="epsilon"),
    "sample": DDIMScheduler(prediction_type="sample"),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def loss_of(unet, latents, embedding=None, *, scheduler, seed=0, **more):
    """Items and levels, with noise and draws of a seed."""
    draws = BatchDraws(seed, 0, len(latents))
    noise = draws.normal(*latents.shape[1:]).to(latents.dtype)
    embedding = torch.zeros(len(latents), 2) if embedding is None else embedding
    return diffusion_loss(unet, latents, embedding, noise=noise, scheduler=scheduler, draws=draws, **more)[:2]


def alpha_sigma(scheduler, timestep):
    """[batch, 1, 1] each."""
    if prediction_type(scheduler.config) == "flow_prediction":
        sigma = timestep / 1000
        return (1 - sigma)[:, None, None], sigma[:, None, None]
    alpha_squared = scheduler.alphas_cumprod[timestep][:, None, None]
    return alpha_squared.sqrt(), (1 - alpha_squared).sqrt()


@pytest.mark.parametrize("predicts", SCHEDULERS)
def test_who_knows_the_clean_latents_has_no_loss(predicts):
    scheduler, clean = SCHEDULERS[predicts], torch.randn(8, 3, 5)

    def knows(noisy, timestep, embedding, condition_mask):
        alpha, sigma = alpha_sigma(scheduler, timestep)
        noise = (noisy - alpha * clean) / sigma
        return {
            "flow_prediction": noise - clean,
            "v_prediction": alpha * noise - sigma * clean,
            "epsilon": noise,
            "sample": clean,
        }[predicts]

    loss, _ = loss_of(knows, clean, scheduler=scheduler)
    assert loss.shape == (8,)
    assert loss.max() < 1e-5


@pytest.mark.parametrize("predicts", SCHEDULERS)
def test_the_best_guess_for_gaussian_latents_has_the_known_loss(predicts):
    """For latents of deviation d, x given z has the variance d^2 sigma^2 / (alpha^2 d^2 + sigma^2)."""
    scheduler, deviation, batch = SCHEDULERS[predicts], 0.6, 16
    clean = deviation * torch.randn(batch, 50, 100, generator=seeded(1))
    known = {}

    def guesses(noisy, timestep, embedding, condition_mask):
        alpha, sigma = alpha_sigma(scheduler, timestep)
        x = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2) * noisy
        noise = (noisy - alpha * x) / sigma
        variance = deviation**2 * sigma**2 / (alpha**2 * deviation**2 + sigma**2)
        guess, scale = {  # scale: how far the target moves with x, noise moving along
            "flow_prediction": (noise - x, (alpha + sigma) / sigma),
            "v_prediction": (alpha * noise - sigma * x, 1 / sigma),
            "epsilon": (noise, alpha / sigma),
            "sample": (x, torch.ones_like(sigma)),
        }[predicts]
        known["loss"] = (scale**2 * variance).flatten()
        return guess

    loss, _ = loss_of(guesses, clean, scheduler=scheduler)
    torch.testing.assert_close(loss, known["loss"], rtol=0.1, atol=1e-4)


def drawn(objective, *, batch=512, **settings):
    """What the U-Net is called with, and the noise levels."""
    seen = {}

    def unet(noisy, timestep, embedding, condition_mask):
        seen.update(noisy=noisy, timestep=timestep, condition_mask=condition_mask)
        return torch.zeros_like(noisy)

    latents = torch.full((batch, 1, 1), 3.0)
    more = {"condition_dropout": settings.pop("condition_dropout")} if "condition_dropout" in settings else {}
    noise = NoiseSettings(**settings)
    _, level = loss_of(unet, latents, scheduler=training_scheduler(objective, noise), settings=noise, **more)
    return seen, level


def test_noise_levels_of_flow_matching_are_logit_normal():
    seen, level = drawn("flow", logit_mean=0.5, logit_std=2.0)
    assert level.logit().mean() == pytest.approx(0.5, abs=0.02)
    assert level.logit().std() == pytest.approx(2.0, abs=0.05)
    torch.testing.assert_close(seen["timestep"], 1000 * level)


def test_uniform_sampling_covers_all_timesteps_evenly():
    seen, level = drawn("v", batch=1000, sampling="uniform")
    assert seen["timestep"].sort().values.tolist() == pytest.approx(list(range(1000)), abs=1)
    torch.testing.assert_close(level, (seen["timestep"] + 1) / 1000)


def test_the_highest_level_of_a_velocity_model_is_pure_noise():
    alphas_cumprod = training_scheduler("v").alphas_cumprod
    assert alphas_cumprod[-1] < 1e-7
    assert alphas_cumprod[0] > 0.9999


@pytest.mark.parametrize(("dropout", "kept"), [(0.0, 512), (1.0, 0), (0.25, 384)])
def test_conditions_are_dropped_as_often_as_asked(dropout, kept):
    seen, _ = drawn("flow", condition_dropout=dropout)
    assert int(seen["condition_mask"].sum()) == pytest.approx(kept, abs=30 if 0 < kept < 512 else 0)


def test_all_randomness_comes_from_the_draws():
    state = torch.get_rng_state()
    first, second = drawn("flow"), drawn("flow")
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_scheduler_says_what_its_model_predicts_also_when_loaded(tmp_path):
    for objective, predicts in (("flow", "flow_prediction"), ("v", "v_prediction")):
        scheduler = training_scheduler(objective)
        scheduler.save_pretrained(tmp_path / objective)
        loaded = type(scheduler).from_pretrained(tmp_path / objective)
        assert prediction_type(loaded.config) == prediction_type(scheduler.config) == predicts


def test_unknown_objectives_are_refused():
    with pytest.raises(ValueError, match="objective 'edm' is unknown; choose from flow, v, epsilon"):
        training_scheduler("edm")
    with pytest.raises(ValueError, match="prediction_type 'score' is unknown; choose from flow_prediction, v_pred"):
        prediction_type({"prediction_type": "score"})


def test_loss_is_float32_and_finite_in_half_precision():
    latents = torch.randn(4, 3, 5, dtype=torch.float16)
    loss, level = loss_of(lambda noisy, *_: noisy, latents, scheduler=training_scheduler("flow"))
    assert loss.dtype == level.dtype == torch.float32
    assert math.isfinite(loss.mean())


@pytest.mark.parametrize("predicts", ["flow_prediction", "v_prediction", "epsilon", "sample"])
def test_clean_latents_and_noise_come_back_from_a_perfect_prediction(predicts):
    x, e = torch.randn(2, 2, 3, 4)
    alpha, sigma = (0.3, 0.7) if predicts == "flow_prediction" else (0.6, 0.8)
    prediction = prediction_of(x, e, alpha, sigma, predicts)
    got = clean_and_noise(prediction, alpha * x + sigma * e, alpha, sigma, predicts)
    torch.testing.assert_close(got, (x, e))


@pytest.mark.parametrize(("weights", "batch"), [((15.0, 1.0), 16), ((31.0, 1.0), 32), ((1.0, 1.0, 2.0), 8)])
@pytest.mark.parametrize("objective", ["flow", "v"])
def test_every_corpus_is_trained_on_all_noise_levels_whatever_its_weight(weights, batch, objective):
    """The clips of a corpus stand at fixed places of the batch, so a fixed level at each place would tie the two."""
    order, scheduler = ClipOrder((40,) * len(weights), weights), training_scheduler(objective)
    levels: list[list[float]] = [[] for _ in weights]
    latents, embedding = torch.zeros(batch, 1, 1), torch.zeros(batch, 1)
    for step in range(400):
        corpora = order.clips(step * batch, batch) // 40
        _, level = loss_of(lambda z, *_: z, latents, embedding, scheduler=scheduler, seed=step)
        for corpus, value in zip(corpora.tolist(), level.tolist(), strict=True):
            levels[corpus].append(value)
    of_all = torch.tensor([value for of_corpus in levels for value in of_corpus])
    for of_corpus in levels:
        ours = torch.tensor(of_corpus)
        for share in (0.05, 0.25, 0.5, 0.75, 0.95):  # each corpus has the distribution that all have together
            assert (ours <= of_all.quantile(share)).float().mean() == pytest.approx(share, abs=0.09)


def test_levels_are_stratified_over_the_batch():
    uniform = NoiseSettings(sampling="uniform")
    _, level = loss_of(lambda z, *_: z, torch.zeros(16, 1, 1), scheduler=SCHEDULERS["v_prediction"], settings=uniform)
    assert sorted(((1000 * level - 1) / 1000 * 16).long().tolist()) == list(range(16))
    assert level.tolist() != sorted(level.tolist())
