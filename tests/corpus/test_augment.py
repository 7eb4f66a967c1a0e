"""Augmentation changes a sound in one respect, by no more than it is told to."""

import math

import pytest
import torch
from PIL import Image

from diffaudio.corpus.augment import (
    AugmentSettings,
    add_echo,
    add_noise,
    augment_picture,
    augment_sound,
    change_speed,
    filter_smoothly,
    random_crop_or_fill,
    reverberate,
    shift_pitch,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pitch_hz(waveform, sample_rate=8000):
    return float(torch.fft.rfft(waveform, n=1 << 17).abs().argmax()) * sample_rate / (1 << 17)


def tone(frequency_hz, num_samples=8000):
    return torch.sin(2 * math.pi * frequency_hz * torch.arange(num_samples) / 8000)


def test_a_crop_is_a_segment_of_the_sound():
    sound = torch.arange(100.0)
    starts = set()
    for seed in range(20):
        crop = random_crop_or_fill(sound, 30, seeded(seed))
        assert torch.equal(crop, torch.arange(crop[0].item(), crop[0].item() + 30))
        starts.add(crop[0].item())
    assert len(starts) > 10


def test_a_short_sound_is_repeated_or_laid_into_silence():
    sound, repeated = torch.arange(1.0, 11), 0
    for seed in range(40):
        laid = random_crop_or_fill(sound, 25, seeded(seed))
        assert len(laid) == 25
        if (laid == 0).any():
            assert torch.equal(laid[laid != 0], sound)
        else:
            repeated += 1
            steps = laid.diff()
            assert ((steps == 1) | (steps == -9)).all()
    assert 10 < repeated < 30


def test_speed_moves_pitch_within_its_limits():
    found = [pitch_hz(change_speed(tone(1000), 0.1, seeded(seed))) for seed in range(20)]
    assert all(900 <= pitch <= 1100 for pitch in found)
    assert max(found) - min(found) > 100
    assert torch.equal(change_speed(tone(1000), 0.0, seeded()), tone(1000))


def test_the_filter_stays_within_its_maximum_gain_and_differs_between_items():
    click = torch.zeros(3, 1024)
    click[:, 0] = 1
    gain_db = 20 * torch.fft.rfft(filter_smoothly(click, 6.0, seeded())).abs().log10()
    assert gain_db.abs().max() <= 6.001
    assert gain_db.std(dim=1).min() > 0.5
    assert (gain_db[0] - gain_db[1]).abs().max() > 1
    torch.testing.assert_close(filter_smoothly(click, 0.0, seeded()), click, atol=1e-6, rtol=0)


def test_noise_is_below_the_peak_by_the_given_level():
    silence_but_for_a_peak = torch.zeros(50, 4000)
    silence_but_for_a_peak[:, 0] = 0.5
    level_db = 20 * (add_noise(silence_but_for_a_peak, -20.0, seeded())[:, 1:].std(dim=1) / 0.5).log10()
    assert level_db.max() < -19.5
    assert level_db.min() > -80.5
    assert level_db.std() > 10


@pytest.mark.parametrize("change", [lambda x, g: filter_smoothly(x, 6.0, g), lambda x, g: add_noise(x, -20.0, g)])
def test_the_same_generator_gives_the_same_sound(change):
    x = torch.randn(2, 500)
    assert torch.equal(change(x, seeded(3)), change(x, seeded(3)))
    assert not torch.equal(change(x, seeded(3)), change(x, seeded(4)))


def test_a_filter_treats_the_channels_of_a_sound_alike():
    x = torch.randn(1, 500, generator=seeded())
    stereo = filter_smoothly(torch.stack([x, 0.5 * x], dim=1), 6.0, seeded(1))
    torch.testing.assert_close(stereo[:, 0], filter_smoothly(x, 6.0, seeded(1)))
    torch.testing.assert_close(stereo[:, 1], 0.5 * stereo[:, 0])


def only(**strength):
    return AugmentSettings(probability=1.0, **strength)


def changed(settings, x=None, *, seed=0, sample_rate=8000):
    return augment_sound(tone(1000)[None] if x is None else x, sample_rate, settings, seeded(seed))


STRENGTHS = {
    "crop": 0.5, "gain_db": 6.0, "filter_db": 6.0, "echo_s": 0.2, "reverberation_s": 0.5, "pitch_semitones": 1.0,
    "speed": 0.05,
}  # fmt: skip


def test_nothing_changes_at_probability_0_or_strength_0():
    x, picture = torch.randn(2, 4000, generator=seeded()), Image.effect_noise((20, 30), 50)
    for settings in (AugmentSettings(probability=0.0, picture_crop=0.5, picture_flip=True, **STRENGTHS), only()):
        assert changed(settings, x) is x
        assert augment_picture(picture, settings, seeded()) is picture
        assert not settings.changes_sound and not settings.changes_pictures


@pytest.mark.parametrize("name", STRENGTHS)
def test_augmentations_occur_with_their_probability_and_depend_on_the_generator_alone(name):
    settings = AugmentSettings(probability=0.5, **{name: STRENGTHS[name]})
    x = 0.3 * torch.randn(2, 3000, generator=seeded())
    made = [changed(settings, x, seed=seed) for seed in range(60)]
    assert settings.changes_sound and not settings.changes_pictures
    assert 15 < sum(y is not x for y in made) < 45
    assert all(torch.equal(changed(settings, x, seed=seed), made[seed]) for seed in range(5))
    assert all(y.shape[0] == 2 and y.isfinite().all() for y in made)


def test_a_gain_is_within_its_limits_and_every_other_augmentation_keeps_the_peak():
    gains_db = [20 * math.log10(changed(only(gain_db=6.0), seed=seed).abs().max()) for seed in range(30)]
    assert -6.01 <= min(gains_db) < -4 and 4 < max(gains_db) <= 6.01
    x = 0.3 * torch.randn(1, 3000, generator=seeded())
    for seed in range(20):
        loudest = changed(only(**STRENGTHS | {"gain_db": 0.0, "crop": 0.0}), x, seed=seed).abs().max()
        torch.testing.assert_close(loudest, x.abs().max())


def test_a_crop_keeps_the_share_that_it_has_to():
    x = torch.arange(1.0, 1001)[None]
    lengths = []
    for seed in range(30):
        part = changed(only(crop=0.4), x, seed=seed)[0]
        assert (part.diff() == 1).all()  # a stretch, as it was
        lengths.append(len(part))
    assert 600 <= min(lengths) < 700 and max(lengths) > 900


def test_an_echo_comes_so_many_samples_later_and_so_much_softer():
    click = torch.zeros(2, 100)
    click[:, 10] = 1
    echo = add_echo(click, 25, -6.0)
    assert echo[:, 10].tolist() == [1, 1] and echo[:, 35].tolist() == pytest.approx([0.501, 0.501], abs=1e-3)
    assert echo.count_nonzero() == 4
    assert torch.equal(add_echo(click, 95, -6.0), click)


def test_reverberation_falls_by_60_db_in_its_reverberation_time():
    click = torch.zeros(2, 16000)
    click[:, 0] = 1
    room = reverberate(click, 8000, 1.0, -6.0, seeded())[:, 1:]
    level_db = 10 * room.square().unfold(1, 800, 800).mean(dim=2).log10()
    assert (level_db[:, 0] - level_db[:, 5]).tolist() == pytest.approx([30, 30], abs=2)  # half a second
    assert room[:, 8000:].abs().max() < 1e-6
    assert room.square().sum(dim=1).tolist() == pytest.approx([0.251, 0.251], abs=0.02)
    assert not torch.equal(room[0], room[1])


@pytest.mark.parametrize("percent", [94, 100, 106])
def test_a_pitch_moves_by_so_many_percent_while_level_and_duration_stay(percent):
    shifted = shift_pitch(tone(1000)[None], 8000, percent)
    assert shifted.shape == (1, 8000)
    assert pitch_hz(shifted[0]) == pytest.approx(10 * percent, rel=2e-3)
    assert shifted[0, 500:-500].abs().max() == pytest.approx(1, abs=0.03)


def test_a_pitch_stays_within_its_semitones_and_takes_both_sides():
    found = [pitch_hz(changed(only(pitch_semitones=1.0), seed=seed)[0]) for seed in range(20)]
    assert 943 < min(found) < 970 and 1030 < max(found) < 1060


def test_a_pitch_shift_keeps_a_click_where_it_is_and_the_channels_apart():
    clicks = torch.zeros(2, 8000)
    clicks[0, 3000], clicks[1, 5000] = 1, 0.5
    shifted = shift_pitch(clicks, 8000, 105)
    peaks, places = shifted.abs().max(dim=1)
    assert abs(places - torch.tensor([3000, 5000])).max() < 300
    assert peaks[1] / peaks[0] == pytest.approx(0.5, abs=0.1)
    assert shift_pitch(clicks[:, :1], 8000, 105).shape == (2, 1)


def test_speed_changes_pitch_and_duration_together():
    for seed in range(10):
        faster = changed(only(speed=0.06), seed=seed)
        factor = 8000 / faster.shape[1]
        assert 1 / 1.061 <= factor <= 1.061
        assert pitch_hz(faster[0]) == pytest.approx(1000 * factor, rel=2e-3)
    assert len({changed(only(speed=0.06), seed=seed).shape for seed in range(20)}) > 5


def test_a_picture_is_mirrored_or_cropped_in_its_shape():
    picture = Image.linear_gradient("L").rotate(90).resize((64, 32))  # brightness grows along the width
    flipped = augment_picture(picture, only(picture_flip=True), seeded())
    row, mirrored = ([image.getpixel((x, 5)) for x in range(64)] for image in (picture, flipped))
    assert row[::-1] == mirrored and row != mirrored
    sizes = {augment_picture(picture, only(picture_crop=0.5), seeded(seed)).size for seed in range(30)}
    assert len(sizes) > 8
    assert all(32 <= width <= 64 and abs(width - 2 * height) <= 2 for width, height in sizes)
    only_pictures = only(picture_flip=True)
    assert only_pictures.changes_pictures and not only_pictures.changes_sound


@pytest.mark.parametrize(
    ("strength", "message"),
    [
        ({"probability": 1.5}, "probability is 1.5; choose 0 to 1"),
        ({"gain_db": -3.0}, "gain_db is -3.0; choose 0 to 40"),
        ({"crop": 1.0}, "crop is 1.0; choose 0 to 0.9"),
        ({"speed": 0.005}, "speed is 0.005, which has no effect: ratios are whole percents"),
        ({"pitch_semitones": 0.1}, "pitch_semitones is 0.1, which has no effect"),
    ],
)
def test_strengths_out_of_range_or_without_effect_are_refused(strength, message):
    with pytest.raises(ValueError, match=message):
        AugmentSettings(**strength)
