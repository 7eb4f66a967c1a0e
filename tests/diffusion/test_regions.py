"""Regions: weights that sum to one, and predictions that equal those of the whole where the model allows it."""

import pytest
import torch
from exact import MODELS, Autoregressive, BestGuess, generators, plain

from diffaudio.diffusion.guidance import Guide
from diffaudio.diffusion.latent_edit import LatentEdit
from diffaudio.diffusion.regions import RegionGuide, range_weights, windows, with_conditions
from diffaudio.diffusion.sampling import make_sampler, sample
from diffaudio.errors import UserError

SIZES = [(1, 8, 2), (8, 8, 2), (9, 8, 2), (14, 8, 2), (100, 16, 4), (101, 16, 15), (64, 16, 8), (65, 16, 8)]


def summed(regions, num_frames):
    total = torch.zeros(num_frames)
    for region in regions:
        total.index_add_(0, region.frames, region.weights)
    return total


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize(("num_frames", "size", "overlap"), SIZES)
def test_the_weights_of_every_frame_sum_to_one(num_frames, size, overlap, loop):
    regions = windows(num_frames, size=size, overlap=overlap, loop=loop)
    torch.testing.assert_close(summed(regions, num_frames), torch.ones(num_frames))
    assert all(len(region.frames) <= max(size, num_frames + 2 * overlap) for region in regions)
    assert all((region.weights >= 0).all() for region in regions)


def test_windows_share_exactly_the_overlap_and_fade_linearly_over_it():
    first, second = windows(13, size=8, overlap=3)
    assert first.frames.tolist() == list(range(8))
    assert second.frames.tolist() == list(range(5, 13))
    torch.testing.assert_close(first.weights[5:], torch.tensor([5 / 6, 3 / 6, 1 / 6]))
    torch.testing.assert_close(second.weights[:3], torch.tensor([1 / 6, 3 / 6, 5 / 6]))


@pytest.mark.parametrize("loop", [False, True])
def test_a_window_has_no_weight_in_its_margins_except_at_the_ends_of_the_sound(loop):
    regions = windows(100, size=40, overlap=20, margin=6, loop=loop)
    torch.testing.assert_close(summed(regions, 100), torch.ones(100))
    assert regions[1].weights[:6].eq(0).all() and regions[1].weights[-6:].eq(0).all()
    assert regions[1].weights[14:26].eq(1).all()
    assert regions[0].weights[0] == (0 if loop else 1)
    with pytest.raises(UserError, match="an overlap of 20 frames has no room for two margins of 10"):
        windows(100, size=40, overlap=20, margin=10)


def test_a_sound_of_one_window_is_predicted_whole():
    (region,) = windows(7, size=8, overlap=2)
    assert region.frames.tolist() == list(range(7))
    assert region.weights.eq(1).all()


@pytest.mark.parametrize("overlap", [0, 8, 9])
def test_an_overlap_out_of_range_is_an_error(overlap):
    with pytest.raises(UserError, match="choose an overlap of 1 to 7"):
        windows(20, size=8, overlap=overlap)


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("name", ["heun", "dpm++2m_sde"])
def test_a_model_that_looks_at_single_frames_gives_the_same_in_windows_as_at_once(name, loop):
    noise = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    edit = LatentEdit(regions=windows(50, size=16, overlap=4, loop=loop))
    whole, divided = (sampled(name, noise, each) for each in (LatentEdit(), edit))
    torch.testing.assert_close(divided, whole, atol=1e-5, rtol=0)


def sampled(name, noise, edit, model="flow"):
    scheduler = make_sampler(name, MODELS[model].config)
    return sample(BestGuess(MODELS[model]), scheduler, noise, torch.zeros(len(noise), 2), edit=edit,
                  generators=generators(*range(len(noise))), **plain(6))  # fmt: skip


@pytest.mark.parametrize("loop", [False, True])
def test_level_and_correlation_are_the_same_at_the_edges_of_windows_as_inside(loop):
    """Every window sees a part only, so averaging is a compromise; without overlap, neighbours would not correlate."""
    num_frames, num_sounds = 84, 2000
    noise = torch.randn(num_sounds, 1, num_frames, generator=torch.Generator().manual_seed(0))
    edit = LatentEdit(regions=windows(num_frames, size=40, overlap=12, loop=loop))
    sampler = make_sampler("dpm++2m_sde", MODELS["flow"].config)
    x = sample(Autoregressive(), sampler, noise, torch.zeros(num_sounds, 2), edit=edit,
               generators=generators(*range(num_sounds)), **plain(15))[:, 0]  # fmt: skip
    std = x.std(dim=0)
    assert std.max() / std.min() < 1.1
    neighbour = x.roll(-1, 1) if loop else x[:, 1:]
    correlation = (x[:, : neighbour.shape[1]] * neighbour).mean(dim=0) / (
        x[:, : neighbour.shape[1]].std(dim=0) * neighbour.std(dim=0)
    )
    assert correlation.min() > 0.86 and correlation.max() < 0.92


def smoothing(latents, timestep, embedding, condition_mask=None):
    """A U-Net that sees two frames to either side, and silence beyond the ends."""
    return torch.nn.functional.avg_pool1d(latents, 5, 1, 2) + embedding[:, :1, None]


@pytest.mark.parametrize(("num_frames", "turn"), [(9, 5), (36, 12)])  # in several windows, by a window's hop
def test_in_a_loop_every_frame_sees_the_same_surroundings(num_frames, turn):
    """Turning the noise around turns the sound around; without the loop the ends would be different."""
    noise = torch.randn(1, 2, num_frames, generator=torch.Generator().manual_seed(0))

    def generated(start, *, loop=True):
        edit = LatentEdit(regions=windows(num_frames, size=16, overlap=4, loop=loop))
        sampler = make_sampler("ddim", MODELS["flow"].config)
        return sample(smoothing, sampler, noise.roll(start, -1), torch.zeros(1, 2), edit=edit, **plain(4))

    torch.testing.assert_close(generated(0).roll(turn, -1), generated(turn), atol=1e-5, rtol=0)
    assert (generated(0, loop=False).roll(turn, -1) - generated(turn, loop=False)).abs().max() > 0.01


def test_queries_share_frames_where_their_ranges_overlap_and_crossfade_at_the_ends():
    weights = range_weights([(0, 8), (5, 9)], 90, latent_rate=10, crossfade_s=1)
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(90))
    assert weights[0, :45].eq(1).all()
    assert weights[:, 56:75].eq(0.5).all()
    assert weights[1, 85:].eq(1).all()
    assert (weights[1, 45:56].diff() > 0).all()  # from 4.5 to 5.5 s


def test_ranges_that_touch_meet_at_half():
    weights = range_weights([(0, 2), (2, 4)], 40, latent_rate=10, crossfade_s=1)
    torch.testing.assert_close(weights[0, 15:25], 0.95 - 0.1 * torch.arange(10))
    torch.testing.assert_close(weights[0] + weights[1], torch.ones(40))


def test_the_weights_of_a_part_are_a_part_of_the_weights():
    ranges = [(0, 3.3), (2, 10)]
    whole = range_weights(ranges, 100, latent_rate=10, crossfade_s=0.5)
    part = range_weights(ranges, 30, latent_rate=10, crossfade_s=0.5, first_frame=20)
    assert torch.equal(whole[:, 20:50], part)


def test_frames_without_a_query_are_an_error_that_says_where():
    with pytest.raises(UserError, match=r"no prompt is active at 2\.\d\d s; let the time ranges cover"):
        range_weights([(0, 2), (3, 4)], 40, latent_rate=10, crossfade_s=0.2)


def test_each_query_conditions_its_own_time():
    weights = range_weights([(0, 2), (2, 4)], 40, latent_rate=10, crossfade_s=0.2)
    embeddings = [torch.tensor([[1.0, 0.0]]), torch.tensor([[5.0, 0.0]])]
    regions = with_conditions(windows(40, size=16, overlap=4), embeddings, weights)

    def unet(latents, timestep, embedding, condition_mask=None):
        return embedding[:, :1, None].expand_as(latents)

    guide = RegionGuide(lambda embedding: Guide(unet, embedding, scale=1, predicts="sample"), regions, embeddings[0])
    prediction = guide(torch.zeros(1, 2, 40), 500.0, 0.5, 0.5)
    assert prediction[..., :19].sub(1).abs().max() < 1e-6
    assert prediction[..., 21:].sub(5).abs().max() < 1e-5
