import numpy as np
import pytest
import torch

from diffaudio.media import audio
from diffaudio.media.audio_numpy import encode_flac, mix_channels, resample


@pytest.mark.parametrize(("from_rate", "to_rate"), [(44100, 24000), (48000, 16000), (8000, 24000), (22050, 44100)])
def test_the_resampler_is_that_of_audio_without_torch(from_rate, to_rate):
    n = 2 * from_rate + 7
    t, highest_hz = np.arange(n) / from_rate, 0.4 * min(from_rate, to_rate)  # below where the two filters differ
    sweep = np.sin(2 * np.pi * (100 * t + (highest_hz - 100) / 2 * t**2 / t[-1]))
    x = np.stack([sweep, sweep[::-1]]).astype(np.float32)
    expected = audio.resample(torch.from_numpy(x), from_rate, to_rate).numpy()
    resampled = resample(x, from_rate, to_rate)
    assert resampled.dtype == np.float32 and resampled.shape == expected.shape
    inner = slice(to_rate // 20, -to_rate // 20)
    assert np.abs(resampled - expected)[:, inner].max() < 2e-3


@pytest.mark.parametrize("from_rate", [44100, 44099])  # the second with a kernel too large to be kept
def test_a_tone_below_the_new_nyquist_frequency_passes_and_one_above_does_not_fold_back(from_rate):
    t = np.arange(from_rate // 2) / from_rate
    passing, above = (np.sin(2 * np.pi * f * t, dtype=np.float32)[None] for f in (3000, 9000))
    expected = np.sin(2 * np.pi * 3000 * np.arange(8000) / 16000)
    inner = slice(200, -200)
    assert np.abs(resample(passing, from_rate, 16000)[0, inner] - expected[inner]).max() < 1e-3
    assert np.abs(resample(above, from_rate, 16000)[0, inner]).max() < 1e-3


def test_sound_at_the_rate_that_is_wanted_stays_as_it_is():
    x = np.ones((1, 10), np.float32)
    assert resample(x, 8000, 8000) is x and mix_channels(x, 1) is x
    assert resample(x[:, :0], 8000, 16000).shape == (1, 0)


def test_flac_is_rounded_to_the_nearest_of_16_bits_and_clipped():
    x = np.array([[0.0, 0.5, -0.25, 1.5, -1.5]], np.float32)
    decoded, rate = audio.decode_flac(encode_flac(x, 8000))
    assert rate == 8000
    assert torch.allclose(decoded * 32768, torch.tensor([[0.0, 16384.0, -8192.0, 32767.0, -32767.0]]))
