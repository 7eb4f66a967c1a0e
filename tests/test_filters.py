import numpy as np
from media import noise
from PIL import Image

from diffaudio.corpus.filters import FilterSettings, is_black, judge_sound


def reason(x, rate=8000, **settings):
    verdict = judge_sound(np.asarray(x, np.float32), rate, FilterSettings(**settings))
    return verdict and verdict[0]


def test_silence_is_judged_by_the_loudest_tenth_of_a_second():
    quiet = noise(1, 8000, gain=1e-3)  # -60 dB
    assert reason(quiet, min_level_db=-50) == "silent"
    assert reason(quiet, min_level_db=-70) is None
    click = np.zeros((1, 80000))
    click[0, 40000:40200] = 0.5
    assert reason(click, min_level_db=-40) is None  # one short loud event is enough


def test_clipping_is_judged_by_the_worse_channel():
    half = np.array([[0.1] * 50, [0.96] * 10 + [0.1] * 40], np.float32)
    assert reason(half, max_clipped_fraction=0.21) is None
    assert judge_sound(half, 8000, FilterSettings(max_clipped_fraction=0.19)) == (
        "clipped",
        "20.0% of the samples at full scale, above 19.0%",
    )


def test_samples_that_no_recording_has_are_damage():
    assert reason([[2.0]], max_clipped_fraction=1) is None
    assert reason([[float("nan")]]) == "damaged" and reason([[1e9]]) == "damaged"


def test_a_picture_with_a_lamp_is_not_black():
    night = Image.new("L", (100, 100))
    assert is_black(night, 0.1)
    night.paste(200, (0, 0, 20, 20))
    assert not is_black(night, 0.1)
