"""Silence, clipping, loudness, repeats."""

import math

import pytest
import torch

from diffaudio.media.audio import decode_flac, encode_flac, resample
from diffaudio.metrics.audio_checks import (
    check,
    fingerprint,
    is_clipped,
    is_silent,
    join_checks,
    loudness_lufs,
    repeated,
)

RATE = 16000


def tone(gain: float, *, frequency: float = 997.0, rate: int = RATE, seconds: float = 2.0) -> torch.Tensor:
    return gain * torch.sin(2 * torch.pi * frequency * torch.arange(round(seconds * rate)) / rate)[None]


def noise(seed: int, seconds: float = 2.0, gain: float = 0.1) -> torch.Tensor:
    return gain * torch.randn(1, round(seconds * RATE), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("waveform", "expected"),
    [
        (torch.zeros(1, RATE), True),
        (torch.zeros(2, 0), True),
        (noise(0, gain=0.0005), True),
        (noise(0, gain=0.002), False),
        (torch.cat([torch.zeros(1, RATE), tone(0.1, seconds=0.1), torch.zeros(1, RATE)], dim=1), False),
        (torch.cat([torch.zeros(1, RATE), tone(0.1, seconds=1)]), False),
        (torch.full((1, RATE), 0.0009), True),
    ],
)
def test_silence_is_where_no_50_ms_reach_60_db_below_full_scale(waveform, expected):
    assert is_silent(waveform, RATE) is expected


@pytest.mark.parametrize(
    ("waveform", "expected"),
    [
        (tone(0.99), False),
        (tone(1.5).clamp(-1, 1), True),
        (-tone(1.5).clamp(-1, 0.5), True),
        (torch.tensor([[0.0, 1, 1, 0]]), False),
        (torch.tensor([[0.0, 1, 1, 1, 0]]), True),
        (torch.tensor([[0.0, 1, -1, 1, 0]]), False),
        (torch.tensor([[1.0, 1]]), False),
    ],
)
def test_clipping_is_three_samples_in_a_row_at_full_scale(waveform, expected):
    assert is_clipped(waveform) is expected


@pytest.mark.parametrize("gain", [1.0, 0.1])
def test_a_full_scale_tone_has_the_standards_loudness_and_gain_counts_in_db(gain):
    """BS.1770-4: a 0 dBFS sine of 997 Hz in one channel reads -3.01; pyloudnorm's filters are off by 0.04."""
    assert loudness_lufs(tone(gain, rate=48000), 48000) == pytest.approx(-3.01 + 20 * math.log10(gain), abs=0.06)


@pytest.mark.parametrize(("frequency", "expected"), [(100, -24.873787), (3000, -19.936211), (10000, -19.702516)])
def test_loudness_is_that_of_pyloudnorm(frequency, expected):
    assert loudness_lufs(tone(0.1, frequency=frequency, rate=48000, seconds=3), 48000) == pytest.approx(
        expected, abs=0.01
    )


def test_the_gate_is_at_70_lufs_below_full_scale_whatever_the_peak_is():
    """A click over faint noise: the noise at -52 LUFS is above the gate, so it is most of what is measured."""
    faint = noise(0, seconds=5.0, gain=10 ** (-52 / 20))
    quiet = loudness_lufs(faint, RATE)
    clicked = faint.clone()
    clicked[0, 8000] = 0.9
    assert quiet == pytest.approx(-52, abs=4)
    assert loudness_lufs(clicked, RATE) < -45
    gain_db = -6
    assert loudness_lufs(clicked * 10 ** (gain_db / 20), RATE) == pytest.approx(
        loudness_lufs(clicked, RATE) + gain_db, abs=0.2
    )


def test_what_is_louder_than_full_scale_or_has_many_channels_has_a_loudness_too():
    assert loudness_lufs(tone(4.0), RATE) == pytest.approx(loudness_lufs(tone(0.4), RATE) + 20, abs=0.01)
    assert math.isfinite(loudness_lufs(tone(0.1).expand(6, -1), RATE))


def test_two_channels_are_3_db_louder_than_one():
    one = loudness_lufs(tone(0.1), RATE)
    assert loudness_lufs(tone(0.1).expand(2, -1), RATE) == pytest.approx(one + 10 * math.log10(2), abs=1e-3)


@pytest.mark.parametrize("waveform", [torch.zeros(1, RATE), tone(0.1, seconds=0.3), tone(1e-5)])
def test_what_is_silent_or_short_has_no_loudness(waveform):
    assert math.isnan(loudness_lufs(waveform, RATE))


def test_a_recording_that_comes_twice_is_noticed_whatever_its_gain_rate_and_coding():
    original = noise(0)
    softer = 0.3 * original
    other_rate = fingerprint(resample(original, RATE, 44100), 44100)
    coded, _ = decode_flac(encode_flac(softer, RATE))
    prints = [fingerprint(x, RATE) for x in (original, softer, coded, noise(1), noise(2))]
    assert repeated([*prints, other_rate]).tolist() == [1, 1, 1, 0, 0, 1]


def test_different_takes_of_one_kind_of_sound_are_no_repeats():
    """Same spectrum, same envelope, other noise."""
    envelope = torch.exp(-torch.arange(2 * RATE) / RATE * 4)
    assert repeated([fingerprint(noise(seed) * envelope, RATE) for seed in range(6)]).sum() == 0


def test_steady_tones_of_different_pitch_are_no_repeats():
    prints = [fingerprint(tone(0.3, frequency=frequency), RATE) for frequency in (440.0, 880.0, 1760.0)]
    assert repeated(prints).sum() == 0


def test_silences_are_repeats_of_each_other_but_not_of_sounds():
    prints = [fingerprint(x, RATE) for x in (torch.zeros(1, RATE), noise(0), torch.zeros(1, 2 * RATE))]
    assert repeated(prints).tolist() == [1, 0, 1]
    assert repeated(prints[:2]).tolist() == [0, 0]


def test_all_checks_of_several_sounds():
    checks = join_checks([check(x, RATE) for x in (tone(0.1), torch.zeros(1, RATE), tone(2.0).clamp(-1, 1))])
    assert checks.silent.tolist() == [0, 1, 0] and checks.clipped.tolist() == [0, 0, 1]
    assert checks.loudness.isnan().tolist() == [False, True, False]
    assert checks.pick([1]).silent.tolist() == [1] and len(checks.pick([2, 0]).fingerprints) == 2


def test_a_sound_shorter_than_a_step_has_a_fingerprint_too():
    assert len(fingerprint(tone(0.1, seconds=0.001), RATE)) > 0
