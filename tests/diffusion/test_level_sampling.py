"""How often noise levels are drawn and how much they weigh, against closed forms."""

import math

import pytest
import torch

from diffaudio.diffusion.level_sampling import ExpectedLoss, NoiseSettings, min_snr_weight, sample_places
from diffaudio.diffusion.loss import clean_and_noise, diffusion_loss, prediction_of
from diffaudio.diffusion.training_scheduler import training_scheduler
from diffaudio.errors import UserError
from diffaudio.seeding import BatchDraws

SHARES = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)


def loss_at(settings, latents, prediction=0.0, *, objective="flow", expected_loss=None, seed=0):
    """The loss of a network that always predicts the same number."""
    draws = BatchDraws(seed, 0, len(latents))
    noise = draws.normal(*latents.shape[1:])
    answer = torch.as_tensor(prediction)
    return diffusion_loss(
        lambda noisy, *_: answer.expand_as(noisy),
        latents,
        torch.zeros(len(latents), 1),
        noise=noise,
        scheduler=training_scheduler(objective, settings),
        draws=draws,
        settings=settings,
        expected_loss=expected_loss,
    )


def test_uniform_places_fill_the_schedule_one_to_each_stratum():
    places, weights = sample_places(BatchDraws(0, 0, 64), NoiseSettings(sampling="uniform"))
    assert sorted((64 * places).long().tolist()) == list(range(64)) and places.tolist() != sorted(places.tolist())
    assert (weights == 1).all()


def test_logit_normal_places_have_the_quantiles_of_a_logit_normal_distribution():
    places, weights = sample_places(BatchDraws(0, 0, 4096), NoiseSettings(logit_mean=-0.4, logit_std=0.7))
    expected = torch.sigmoid(-0.4 + 0.7 * torch.special.ndtri(SHARES))
    torch.testing.assert_close(places.quantile(SHARES), expected, rtol=0, atol=2e-3)
    assert (weights == 1).all()


@pytest.mark.parametrize("objective", ["flow", "v"])
def test_logit_normal_places_are_those_of_the_schedule_for_every_objective(objective):
    levels = loss_at(NoiseSettings(logit_mean=1.0, logit_std=0.5), torch.zeros(4096, 1, 1), objective=objective).levels
    expected = torch.sigmoid(1.0 + 0.5 * torch.special.ndtri(SHARES)).float()
    torch.testing.assert_close(levels.quantile(SHARES.float()), expected, rtol=0, atol=3e-3)


def test_a_shift_of_flow_matching_multiplies_the_ratio_of_noise_and_signal():
    one, three = (
        loss_at(NoiseSettings(sampling="uniform", shift=shift), torch.zeros(256, 1, 1)).levels for shift in (1.0, 3.0)
    )
    torch.testing.assert_close(three / (1 - three), 3 * one / (1 - one), rtol=1e-4, atol=0)


class Exponential(ExpectedLoss):
    """Whose expected loss is known: E[loss] = exp(rate u)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, u):
        return self.rate * u.float() + 0 * self.linear.bias


def test_places_drawn_by_loss_have_the_density_of_its_root_mixed_with_uniform():
    rate = 4.0
    places, weights = sample_places(BatchDraws(0, 0, 8192), NoiseSettings(sampling="loss"), Exponential(rate))
    density = 0.9 * (rate / 2) * (rate / 2 * places).exp() / math.expm1(rate / 2) + 0.1
    torch.testing.assert_close(weights, (1 / density).float(), rtol=2e-3, atol=0)
    for u in (0.1, 0.3, 0.5, 0.8):
        cumulative = 0.9 * math.expm1(rate / 2 * u) / math.expm1(rate / 2) + 0.1 * u
        assert (places <= u).double().mean().item() == pytest.approx(cumulative, abs=1e-3)


@pytest.mark.parametrize(("function", "integral"), [(lambda u: u**2, 1 / 3), (lambda u: 1 - u, 0.5)])
def test_weights_of_sampling_by_loss_keep_expectations_those_of_uniform_sampling(function, integral):
    places, weights = sample_places(BatchDraws(1, 0, 8192), NoiseSettings(sampling="loss"), Exponential(3.0))
    assert (function(places) * weights).mean().item() == pytest.approx(integral, rel=2e-3)


def test_sampling_by_loss_lowers_the_variance_of_the_estimated_loss():
    """Of one item a batch, whose stratum is the whole schedule; its loss is the one that was expected."""
    spread = {}
    for sampling, weight in (("uniform", False), ("loss", True)):
        known = Exponential(4.0)
        estimates = []
        for step in range(2000):
            places, weights = sample_places(BatchDraws(0, step, 1), NoiseSettings(sampling=sampling), known)
            estimates.append(((4.0 * places).exp() * (weights if weight else 1)).item())
        spread[sampling] = torch.tensor(estimates).std().item()
    assert spread["loss"] < 0.7 * spread["uniform"]


@pytest.mark.parametrize("predicts", ["flow_prediction", "v_prediction", "epsilon", "sample"])
def test_min_snr_weights_the_squared_error_of_the_clean_latents_by_the_bounded_snr(predicts):
    generator = torch.Generator().manual_seed(0)
    x, e, error = torch.randn(3, 40, dtype=torch.float64, generator=generator)
    sigma = torch.linspace(0.02, 0.99, 40, dtype=torch.float64)
    alpha = 1 - sigma if predicts == "flow_prediction" else (1 - sigma**2).sqrt()
    z = alpha * x + sigma * e
    prediction = prediction_of(x, e, alpha, sigma, predicts) + error
    found, _ = clean_and_noise(prediction, z, alpha, sigma, predicts)
    snr = (alpha / sigma) ** 2
    weighted = min_snr_weight(alpha, sigma, 5.0, predicts) * error**2
    torch.testing.assert_close(weighted, snr.clamp(max=5.0) * (found - x) ** 2)


@pytest.mark.parametrize(("predicts", "weight"), [("flow_prediction", 0.0), ("v_prediction", 0.0), ("epsilon", 1.0)])
def test_min_snr_is_finite_at_pure_noise(predicts, weight):
    found = min_snr_weight(torch.zeros(1), torch.ones(1), 5.0, predicts)
    assert found.item() == weight


def test_min_snr_weighting_is_applied_to_the_total_and_not_to_the_logged_losses():
    latents = torch.randn(64, 2, 3)
    uniform, weighted = (loss_at(NoiseSettings(weighting=each), latents) for each in ("uniform", "min-snr"))
    assert torch.equal(uniform.items, weighted.items)
    assert uniform.total.item() == pytest.approx(uniform.items.mean().item())
    s = uniform.levels
    expected = (uniform.items * s**2 * ((1 - s) / s).square().clamp(max=5.0)).mean()
    assert weighted.total.item() == pytest.approx(expected.item(), rel=1e-4)


def test_learned_weighting_divides_by_the_expected_loss_and_adds_its_logarithm():
    latents = torch.randn(64, 2, 3)
    losses = loss_at(NoiseSettings(weighting="learned"), latents, expected_loss=Exponential(2.0))
    v = 2 * losses.levels
    assert losses.total.item() == pytest.approx((losses.items / v.exp() + v).mean().item(), rel=1e-4)


@pytest.mark.parametrize("settings", [NoiseSettings(weighting="learned"), NoiseSettings(sampling="loss")])
def test_the_expected_loss_is_learned(settings):
    """With a prediction of 0, the loss of the latents c is that of e - c: 1 + c^2, whatever the level."""
    torch.manual_seed(0)
    learned = ExpectedLoss()
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.02)
    latents = torch.full((64, 4, 64), 2.0)
    for step in range(150):
        optimizer.zero_grad()
        loss_at(settings, latents, expected_loss=learned, seed=step).total.backward()
        optimizer.step()
    u = torch.linspace(0.1, 0.9, 9)
    torch.testing.assert_close(learned(u), torch.full((9,), math.log(5.0)), rtol=0, atol=0.1)


def test_learning_the_expected_loss_for_sampling_changes_neither_total_nor_gradient_of_the_network():
    latents, answer = torch.randn(64, 2, 3), torch.zeros((), requires_grad=True)
    losses = loss_at(NoiseSettings(sampling="loss"), latents, answer, expected_loss=Exponential(0.0))
    assert losses.total.item() == pytest.approx(losses.items.mean().item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(losses.total, answer, retain_graph=True)
    (expected,) = torch.autograd.grad(losses.items.mean(), answer)
    assert gradient.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling": "uniform", "logit_mean": 1.0}, "noise.logit_mean has no effect with noise.sampling uniform"),
        ({"sampling": "loss", "logit_std": 2.0}, "noise.logit_std has no effect with noise.sampling loss"),
        ({"min_snr_gamma": 1.0}, "noise.min_snr_gamma has no effect with noise.weighting uniform; leave it out"),
    ],
)
def test_settings_without_effect_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        NoiseSettings(**settings)
