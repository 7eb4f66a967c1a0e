"""Joints: everything outside is untouched, the level holds, nothing clicks."""

import pytest
import torch

from diffaudio.errors import UserError
from diffaudio.media.crossfade import close_loop, crossfade, splice

RATE = 8000


def noise(num_samples, seed=0, channels=1):
    return torch.randn(channels, num_samples, generator=torch.Generator().manual_seed(seed)) * 0.1


def sine(num_samples, phase=0.0):
    return 0.1 * torch.sin(torch.arange(num_samples) * 0.3 + phase)[None]


def test_a_crossfade_of_a_sound_with_itself_changes_nothing():
    sound = noise(400, channels=2)
    torch.testing.assert_close(crossfade(sound, sound), sound)


def test_a_crossfade_of_unrelated_sounds_keeps_their_power():
    faded = crossfade(noise(200_000, 1), noise(200_000, 2))
    for part in faded.unfold(1, 20_000, 20_000)[0]:
        assert part.std() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("phase", [0.0, 0.5, 1.5])
def test_a_crossfade_of_tones_keeps_their_power_whatever_their_phases(phase):
    faded = crossfade(sine(2000), sine(2000, phase))
    assert faded[0, 900:1100].square().mean() == pytest.approx(0.005, rel=0.1)


def test_silence_can_be_faded_in_and_out():
    silence, sound = torch.zeros(1, 100), noise(100)
    assert crossfade(silence, silence).eq(0).all()
    assert crossfade(silence, sound).isfinite().all()


def test_outside_spans_and_seams_every_sample_is_the_recordings_and_inside_the_generated_ones():
    recording, generated = noise(8000, 1, channels=2), noise(8000, 2, channels=2)
    result = splice(recording, generated, [(2000, 3000), (5000, 5500)], seam=160)
    is_kept = torch.ones(8000, dtype=torch.bool)
    for start, end in ((2000, 3000), (5000, 5500)):
        assert torch.equal(result[:, start:end], generated[:, start:end])
        is_kept[start - 160 : end + 160] = False
        assert not torch.equal(result[:, start - 80 : start], recording[:, start - 80 : start])
    assert torch.equal(result[:, is_kept], recording[:, is_kept])


def test_seams_do_not_click():
    """The largest step between samples at the seams is like that of the sounds themselves."""
    recording, generated = sine(8000), sine(8000, 2.0) + noise(8000) * 0.01
    result = splice(recording, generated, [(2000, 3000)], seam=160)
    step = result.diff().abs()
    usual = max(recording.diff().abs().max(), generated.diff().abs().max())
    assert step.max() < 1.1 * usual
    hard = splice(recording, generated, [(2000, 3000)], seam=0)
    assert hard.diff().abs().max() > 2 * usual


@pytest.mark.parametrize("span", [(0, 500), (7500, 8000), (0, 8000)])
def test_spans_may_reach_the_ends_of_the_sound(span):
    recording, generated = noise(8000, 1), noise(8000, 2)
    result = splice(recording, generated, [span], seam=160)
    assert torch.equal(result[:, slice(*span)], generated[:, slice(*span)])


def test_spans_closer_than_two_seams_share_what_is_between_them():
    recording, generated = noise(8000, 1), noise(8000, 2)
    result = splice(recording, generated, [(1000, 2000), (2100, 3000)], seam=160)
    assert torch.equal(result[:, 1000:2000], generated[:, 1000:2000])
    assert torch.equal(result[:, 2100:3000], generated[:, 2100:3000])
    assert result[:, 2000:2100].std() == pytest.approx(0.1, rel=0.3)


def test_different_shapes_are_an_error():
    with pytest.raises(UserError, match=r"a recording \[1, 10\] and a sound \[1, 11\] cannot be spliced"):
        splice(noise(10), noise(11), [(1, 2)], seam=1)


def test_the_end_of_a_loop_continues_with_its_beginning():
    period = 2 * torch.pi / 0.3
    num_samples = 4000
    extended = torch.cat([sine(num_samples), sine(400, num_samples * 0.3)], dim=1)  # a tone that goes on
    loop = close_loop(extended, num_samples, seam=200)
    assert loop.shape == (1, num_samples)
    wrapped = torch.cat([loop[:, -50:], loop[:, :50]], dim=1)
    assert wrapped.diff().abs().max() < 1.1 * extended.diff().abs().max(), period
    assert torch.equal(loop[:, 200:], extended[:, 200:num_samples])
    assert loop[0, 0] == pytest.approx(float(extended[0, num_samples]), abs=0.002)
