"""Noise schedules of training, against their formulas."""

import math

import pytest
import torch

from diffaudio.diffusion.level_sampling import NoiseSettings
from diffaudio.diffusion.loss import diffusion_loss
from diffaudio.diffusion.noise_schedule import NoiseSchedule
from diffaudio.diffusion.training_scheduler import training_scheduler
from diffaudio.errors import UserError
from diffaudio.library_loading import read_scheduler
from diffaudio.seeding import BatchDraws


def ratios(scheduler):
    """sigma / alpha at each timestep, by which a shift multiplies: [timesteps] float64."""
    alpha_squared = scheduler.alphas_cumprod.double()
    return ((1 - alpha_squared) / alpha_squared).sqrt()


def test_the_cosine_schedule_is_a_squared_cosine():
    alpha_squared = training_scheduler("epsilon", NoiseSettings(schedule="cosine")).alphas_cumprod
    t = torch.arange(1, 990, dtype=torch.float64) / 1000  # beta is capped at the very end
    expected = ((t + 0.008) / 1.008 * math.pi / 2).cos().square() / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(alpha_squared[:989].double(), expected, rtol=1e-3, atol=1e-6)


def test_the_linear_schedule_has_linear_betas():
    alpha_squared = training_scheduler("epsilon", NoiseSettings(schedule="linear")).alphas_cumprod
    expected = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    torch.testing.assert_close(alpha_squared.double(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_with_zero_terminal_snr_the_last_timestep_is_noise_and_the_first_stays(schedule, shift):
    settings = {"schedule": schedule, "shift": shift}
    with_noise_at_the_end = training_scheduler("v", NoiseSettings(**settings)).alphas_cumprod
    without = training_scheduler("v", NoiseSettings(**settings, zero_terminal_snr=False)).alphas_cumprod
    assert with_noise_at_the_end[-1] < 1e-7
    if schedule == "linear":  # the cosine ends in noise by itself
        assert without[-1] > 1e-6
    assert with_noise_at_the_end[0].item() == pytest.approx(without[0].item(), rel=1e-5)
    assert (with_noise_at_the_end[:-1].diff() < 0).all()


@pytest.mark.parametrize("objective", ["v", "epsilon"])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_a_shift_multiplies_noise_over_signal_at_every_timestep(objective, schedule, shift):
    original, shifted = (
        ratios(training_scheduler(objective, NoiseSettings(schedule=schedule, shift=each))) for each in (1.0, shift)
    )
    torch.testing.assert_close(shifted[:-1], shift * original[:-1], rtol=5e-3, atol=0)


@pytest.mark.parametrize("objective", ["flow", "v", "epsilon"])
def test_sampling_meets_the_shifted_levels_of_training_also_after_loading(objective, tmp_path):
    settings = NoiseSettings(shift=3.0, sampling="uniform")
    scheduler = training_scheduler(objective, settings)
    scheduler.save_pretrained(tmp_path)
    schedule = NoiseSchedule(read_scheduler(tmp_path / "scheduler_config.json").config)
    assert schedule.predicts == {"flow": "flow_prediction", "v": "v_prediction"}.get(objective, "epsilon")
    called = {}

    def unet(noisy, timestep, *_):
        called.update(noisy=noisy, timestep=timestep)
        return noisy

    noise = torch.ones(16, 1, 1)
    draws = BatchDraws(0, 0, 16)
    latents, embedding = torch.zeros(16, 1, 1), torch.zeros(16, 1)
    diffusion_loss(unet, latents, embedding, noise=noise, scheduler=scheduler, draws=draws, settings=settings)
    for timestep, sigma in zip(called["timestep"].tolist(), called["noisy"].flatten().tolist(), strict=True):
        assert schedule.alpha_sigma(schedule.level(timestep))[1] == pytest.approx(sigma, abs=1e-3)


def test_settings_that_do_not_go_with_the_objective_are_refused():
    for name, value in (("schedule", "cosine"), ("zero_terminal_snr", True)):
        with pytest.raises(UserError, match=f"noise.{name} has no effect with objective flow; leave it out"):
            training_scheduler("flow", NoiseSettings(**{name: value}))
    with pytest.raises(UserError, match=r"noise.zero_terminal_snr does not go with objective epsilon: .*; choose v"):
        training_scheduler("epsilon", NoiseSettings(zero_terminal_snr=True))
