import numpy as np
import pytest
from media import noise

from diffaudio.corpus.duplicates import distance, find_duplicates, fingerprint

RATE = 16000


def test_only_the_first_of_equal_sounds_of_different_sources_is_kept():
    a, b = (fingerprint(noise(3, RATE, seed=seed)[0], RATE) for seed in (0, 1))
    assert find_duplicates([a, b, a, b, a], ["1", "2", "3", "4", "1"]) == [None, None, 0, 1, None]


def test_a_fingerprint_survives_gain_and_half_the_sample_rate():
    x = noise(3, RATE)[0]
    halved = x[: len(x) // 2 * 2].reshape(-1, 2).mean(axis=1)
    assert distance(fingerprint(x, RATE), fingerprint(0.1 * halved, RATE // 2)) < 0.1
    assert distance(fingerprint(x, RATE), fingerprint(noise(3, RATE, seed=1)[0], RATE)) > 0.4


def test_a_steady_tone_and_silence_say_nothing():
    t = np.arange(3 * RATE) / RATE
    tones = [fingerprint(np.sin(2 * np.pi * 440 * t + phase), RATE) for phase in (0, 1)]
    silence = fingerprint(np.zeros(3 * RATE), RATE)
    assert find_duplicates([*tones, silence, silence], ["1", "2", "3", "4"]) == [None] * 4


def test_fingerprints_of_another_version_are_refused():
    with pytest.raises(ValueError, match="damaged or of another version"):
        find_duplicates([b"\x00"], ["1"])
    with pytest.raises(ValueError, match="1 fingerprints and 2 sources"):
        find_duplicates([b"\x01"], ["1", "2"])
