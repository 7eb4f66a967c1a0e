"""Sample rate, loudness and fades of streams, against the same of whole sounds."""

import math

import numpy as np
import pytest
import soxr
from media import noise
from pyloudnorm import Meter

from diffaudio.media.mastering import LoudnessMeter, faded, resampled


def pieces(sound, *lengths):
    """The sound in chunks of these lengths, again and again."""
    chunks, start, index = [], 0, 0
    while start < sound.shape[1]:
        chunks.append(sound[:, start : start + lengths[index % len(lengths)]])
        start, index = start + lengths[index % len(lengths)], index + 1
    return chunks


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("sample_rate", [8000, 24000, 48000])
def test_loudness_of_a_stream_is_that_of_the_whole_by_pyloudnorm(channels, sample_rate):
    envelope = np.repeat([0.5, 0.001, 0.05, 0.2, 0.0], sample_rate)  # what the gates leave out too
    sound = noise(5, sample_rate, channels=channels)[:, : len(envelope)] * envelope.astype(np.float32)
    meter = LoudnessMeter(sample_rate, channels)
    for chunk in pieces(sound, 1, 777, 12345, 5):
        meter.add(chunk)
    assert meter.lufs() == pytest.approx(Meter(sample_rate).integrated_loudness(sound.T.astype(float)), abs=0.02)
    assert meter.peak == pytest.approx(np.abs(sound).max())


def test_a_sine_at_full_scale_has_the_loudness_that_the_standard_gives():
    """A sine of 997 Hz at 0 dBFS in one channel reads -3.01 LKFS."""
    sine = np.sin(2 * np.pi * 997 * np.arange(48000 * 3) / 48000).astype(np.float32)[None]
    meter = LoudnessMeter(48000, 1)
    meter.add(sine)
    assert meter.lufs() == pytest.approx(-3.01, abs=0.05)


def test_silence_and_what_is_too_short_have_no_loudness():
    for duration in (3000, 100000):
        meter = LoudnessMeter(8000, 1)
        meter.add(np.zeros((1, duration), np.float32))
        assert math.isnan(meter.lufs())


@pytest.mark.parametrize(("from_rate", "to_rate"), [(24000, 48000), (24000, 44100), (24000, 8000), (8000, 8000)])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_stream_is_resampled_like_the_whole(from_rate, to_rate, channels):
    sound = noise(1.5, from_rate, channels=channels)
    stream = np.concatenate(list(resampled(pieces(sound, 100, 7001), from_rate, to_rate)), axis=1)
    whole = sound if from_rate == to_rate else soxr.resample(sound.T, from_rate, to_rate).T
    assert stream.shape == (channels, round(sound.shape[1] * to_rate / from_rate))
    num_samples = min(stream.shape[1], whole.shape[1])
    assert np.abs(stream[:, :num_samples] - whole[:, :num_samples]).max() < 1e-4


def test_an_empty_stream_stays_empty():
    assert list(resampled([], 8000, 24000)) == []


def test_fades_start_and_end_in_silence_and_leave_the_middle():
    sound = np.ones((2, 1000), np.float32)
    result = np.concatenate(list(faded(pieces(sound, 130), 1000, 100, fade_in_s=1, fade_out_s=2)), axis=1)
    assert result[:, 100:800].tolist() == sound[:, 100:800].tolist()
    assert (np.diff(result[0, :100]) > 0).all() and (np.diff(result[0, 800:]) < 0).all()
    assert result[0, 0] < 1e-3 and result[0, -1] < 1e-3
    assert result[0, 49] + result[0, 50] == pytest.approx(1, abs=1e-6)  # half way at half of its time
