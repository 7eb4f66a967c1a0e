"""Noise between that of two seeds, and variations by every sampler that takes it."""

import math

import pytest
import torch
from diffusers import FlowMatchLCMScheduler
from exact import MODELS, BestGuess, generators, plain

from diffaudio.diffusion.sampler_table import SAMPLERS
from diffaudio.diffusion.sampling import draw_noise, make_sampler, sample
from diffaudio.diffusion.varied_noise import VariedNoise
from diffaudio.errors import UserError

VARIABLE = [name for name, sampler in SAMPLERS.items() if sampler.solver is not None and name != "sa"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


def varied(amount):
    return [VariedNoise(*generators(3, 9), amount)]


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.9])
def test_varied_noise_is_standard_normal_and_correlates_by_the_cosine(amount):
    shape = (100, 1000)
    base, noise = draw_noise(shape, generators(3)), draw_noise(shape, varied(amount))
    assert noise.std() == pytest.approx(1, abs=0.01)
    assert (base * noise).mean() == pytest.approx(math.cos(amount * math.pi / 2), abs=0.01)


def test_the_ends_are_the_noise_of_either_seed():
    torch.testing.assert_close(draw_noise((2, 50), varied(0)), draw_noise((2, 50), generators(3)))
    torch.testing.assert_close(draw_noise((2, 50), varied(1)), draw_noise((2, 50), generators(9)))


@pytest.mark.parametrize("name", VARIABLE)
def test_every_sampler_makes_variations_that_move_away_with_the_amount(name):
    def generated(noises):
        sampler = make_sampler(name, MODELS["flow"].config)
        return sample(BestGuess(MODELS["flow"]), sampler, draw_noise((8, 200), noises), torch.zeros(1, 2),
                      generators=noises, **plain(6))  # fmt: skip

    base, other = generated(generators(3)), generated(generators(9))
    torch.testing.assert_close(generated(varied(0)), base, atol=1e-5, rtol=0)
    torch.testing.assert_close(generated(varied(1)), other, atol=1e-5, rtol=0)
    distances = [float((generated(varied(amount)) - base).square().mean().sqrt()) for amount in (0.1, 0.4, 0.8, 1)]
    assert distances == sorted(distances) and 0 < distances[0] < 0.3 * distances[-1]


@pytest.mark.parametrize("name", ["sa", None])
def test_a_sampler_that_draws_its_own_noise_is_an_error(name):
    sampler = make_sampler(name, MODELS["flow"].config) if name else FlowMatchLCMScheduler()
    with pytest.raises(UserError, match="variations need a sampler whose noise is drawn here"):
        sample(BestGuess(MODELS["flow"]), sampler, torch.zeros(1, 2, 20), torch.zeros(1, 2), generators=varied(0.5),
               **plain(4))  # fmt: skip
