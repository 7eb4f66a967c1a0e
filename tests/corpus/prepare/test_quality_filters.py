import numpy as np
import pytest
from media import noise
from PIL import Image

from diffaudio.corpus.prepare.bandwidth import cutoff_hz
from diffaudio.corpus.prepare.quality_filters import (
    FilterSettings,
    check_audio,
    check_frames,
    check_header,
    is_black,
    largest_difference,
    loudest_level_db,
)
from diffaudio.corpus.prepare.settings import PrepareSettings
from diffaudio.media.container import MediaInfo

RATE = 44100


def reason(x, rate=8000, **settings):
    verdict = check_audio(np.asarray(x, np.float32), rate, FilterSettings(**settings))
    return verdict and verdict[0]


def file_reason(**settings):
    known = {"has_audio": True, "has_video": True, "sample_rate": 44100}
    info = MediaInfo(duration_s=8, audio_duration_s=2, video_duration_s=8, **known)
    return check_header(info, FilterSettings(**settings))


def shaped_noise(gain_of_frequency, *, rate=RATE):
    """2 s of white noise whose spectrum is multiplied by a function of the frequency in Hz: [1, samples]."""
    spectrum = np.fft.rfft(noise(2, rate))
    return np.fft.irfft(spectrum * gain_of_frequency(np.fft.rfftfreq(2 * rate, 1 / rate))).astype(np.float32)


def test_a_file_needs_sound_and_picture():
    assert check_header(MediaInfo(1, False, True), FilterSettings()) == ("no_sound", "the file has no sound track")
    assert check_header(MediaInfo(1, True, False), FilterSettings()) == ("no_picture", "the file has no picture track")
    assert check_header(MediaInfo(None, True, True), FilterSettings()) is None  # what is not known passes


def test_a_low_sample_rate_is_judged_by_the_header():
    assert file_reason(min_sample_rate=44100) is None
    assert file_reason(min_sample_rate=48000) == ("low_sample_rate", "sound at 44100 Hz, below 48000 Hz")


def test_sound_and_picture_may_differ_in_length_by_so_much_either_way():
    assert file_reason(min_length_ratio=0.25) is None
    detail = "2.00 s of sound and 8.00 s of pictures, the shorter below 26% of the longer"
    assert file_reason(min_length_ratio=0.26) == ("length_mismatch", detail)
    longer_sound = MediaInfo(8, True, True, audio_duration_s=8, video_duration_s=2)
    assert check_header(longer_sound, FilterSettings(min_length_ratio=0.26)) is not None
    assert check_header(longer_sound, FilterSettings(min_length_ratio=0)) is None


def test_silence_is_judged_by_the_loudest_tenth_of_a_second():
    quiet = noise(1, 8000, gain=1e-3)  # -60 dB
    assert reason(quiet, min_level_db=-50) == "silent"
    assert reason(quiet, min_level_db=-70) is None
    click = np.zeros((1, 80000))
    click[0, 40000:40200] = 0.5
    assert reason(click, min_level_db=-40) is None  # one short loud event is enough


def test_the_level_is_the_power_averaged_over_channels():
    square = np.tile(np.array([0.5, -0.5], np.float32), 4000)
    assert loudest_level_db(square[None], 8000) == pytest.approx(20 * np.log10(0.5))
    assert loudest_level_db(np.stack([square, 0 * square]), 8000) == pytest.approx(10 * np.log10(0.125))
    assert loudest_level_db(np.zeros((1, 10), np.float32), 8000) == -120


def test_clipping_is_judged_by_the_worse_channel():
    half = np.array([[0.1] * 50, [0.96] * 10 + [0.1] * 40], np.float32)
    assert reason(half, max_clipped_fraction=0.21) is None
    assert check_audio(half, 8000, FilterSettings(max_clipped_fraction=0.19)) == (
        "clipped",
        "20.0% of the samples at full scale, above 19.0%",
    )


def test_samples_that_no_recording_has_are_damage():
    assert reason([[2.0]], max_clipped_fraction=1) is None
    assert reason([[float("nan")]]) == reason([[float("-inf")]]) == "damaged"
    assert reason([[-9.0]], max_clipped_fraction=1, max_peak=8) == "damaged"
    assert reason([[-9.0]], max_clipped_fraction=1, max_peak=10) is None


def test_sound_upsampled_from_a_lower_rate_is_detected_by_the_cutoff_of_its_spectrum():
    telephone = shaped_noise(lambda f: f < 4000)
    assert cutoff_hz(telephone, RATE, highest_hz=20000) == pytest.approx(4000, rel=0.1)
    verdict = check_audio(telephone, RATE, FilterSettings())
    assert verdict is not None and verdict[0] == "upsampled"
    assert "kHz, below 22% of the 22.05 kHz that 44100 Hz promise" in verdict[1]
    assert reason(telephone, RATE, min_bandwidth=0.15) is None
    assert reason(telephone, RATE, min_bandwidth=0) is None


def test_one_full_channel_is_enough():
    both = np.concatenate([shaped_noise(lambda f: f < 4000), shaped_noise(lambda f: f < 1e9)])
    assert reason(both, RATE) is None


def test_dull_sound_was_not_brought_up():
    dull = shaped_noise(lambda f: 1 / (1 + (f / 500) ** 2))  # 66 dB down at the top
    assert cutoff_hz(dull, RATE, highest_hz=20000) is None
    assert cutoff_hz(shaped_noise(lambda f: f < 2500), RATE, highest_hz=20000) is None  # a bell ends as it likes
    assert cutoff_hz(noise(2, RATE), RATE, highest_hz=20000) is None
    assert cutoff_hz(np.zeros((1, 100), np.float32), RATE, highest_hz=20000) is None


def test_a_low_sample_rate_that_is_used_up_is_honest():
    assert reason(noise(1, 8000), 8000) is None


def test_a_picture_with_a_lamp_is_not_black():
    night = Image.new("L", (100, 100))
    assert is_black(night, 0.1)
    night.paste(200, (0, 0, 20, 20))
    assert not is_black(night, 0.1)


def test_a_clip_is_black_when_all_its_pictures_are():
    black, grey = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), (99, 99, 99))
    assert check_frames([black, black], FilterSettings()) == ("black", "all 2 pictures are black")
    assert check_frames([black, grey], FilterSettings()) is None
    assert check_frames([black, black], FilterSettings(min_brightness=0)) is None


def test_a_clip_is_frozen_when_no_picture_differs_from_the_next():
    first = Image.new("L", (100, 100), 100)
    second = first.copy()
    second.paste(151, (0, 0, 100, 10))  # a fifth of the range, a tenth of the picture
    assert largest_difference([first, first, second]) == pytest.approx(0.02)
    assert check_frames([first, first, second], FilterSettings(min_motion=0.019)) is None
    verdict = check_frames([first, first, second], FilterSettings(min_motion=0.021))
    assert verdict == ("frozen", "no picture differs from the next by more than 0.02, below 0.021")
    assert check_frames([first], FilterSettings(min_motion=0.001)) is not None  # has stood all the time
    assert check_frames([first, first], FilterSettings()) is None  # a photograph under sound is welcome


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("min_length_ratio", 1.5, "from 0 to 1"),
        ("max_clipped_fraction", -0.1, "from 0 to 1"),
        ("min_bandwidth", 2, "from 0 to 1"),
        ("min_brightness", float("nan"), "from 0 to 1"),
        ("min_motion", -1, "from 0 to 1"),
        ("min_sample_rate", -1, "at least 0"),
        ("max_peak", 0.5, "at least 1"),
        ("min_level_db", 3, "at most 0"),
        ("max_duplicate_distance", 0.5, "from 0 to 0.25, or None to keep duplicates"),
    ],
)
def test_thresholds_outside_their_range_are_refused(setting, value, allowed):
    with pytest.raises(ValueError, match=rf"{setting} is {value}; it must be {allowed}"):
        FilterSettings(**{setting: value})
    with pytest.raises(ValueError, match=setting):
        PrepareSettings(**{setting: value})


def test_motion_needs_pictures_to_compare():
    with pytest.raises(ValueError, match=r"min_motion is 0\.1, which compares pictures, but frames_per_clip is 1"):
        PrepareSettings(min_motion=0.1, frames_per_clip=1)
