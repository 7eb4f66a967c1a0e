"""Waveforms to files: what layers, rates and loudness do, and that long sounds need no memory."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from diffaudio.errors import UserError
from diffaudio.generation.file_output import mix_layers, write_long, write_sound
from diffaudio.media.file_settings import FileSettings
from diffaudio.metrics.audio_checks import loudness_lufs

RATE = 8000


def noise(seconds=2.0, seed=0, gain=0.1):
    return gain * torch.randn(1, round(seconds * RATE), generator=torch.Generator().manual_seed(seed))


def read(path):
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T), rate


@pytest.mark.parametrize("gain_db", [-12.0, 0.0, 6.0])
def test_a_layer_is_as_many_db_from_the_sound_as_asked_for_whatever_its_own_level(gain_db):
    sound, layer = noise(seed=1, gain=0.02), noise(seed=2, gain=0.3)
    mixture = mix_layers(sound, [(layer, gain_db)], RATE, None)
    added = loudness_lufs(mixture - sound, RATE)
    assert added - loudness_lufs(sound, RATE) == pytest.approx(gain_db, abs=0.01)


def test_a_mixture_has_the_loudness_asked_for_and_silence_adds_nothing():
    sound = noise()
    assert loudness_lufs(mix_layers(sound, [(noise(seed=1), 0)], RATE, -30), RATE) == pytest.approx(-30, abs=0.05)
    assert torch.equal(mix_layers(sound, [(torch.zeros_like(sound), 0)], RATE, None), sound)


def test_a_file_without_settings_holds_the_waveform(tmp_path):
    sound = noise()
    write_sound(tmp_path / "a.wav", sound, RATE, FileSettings(bit_depth=32))
    found, rate = read(tmp_path / "a.wav")
    assert rate == RATE and torch.equal(found, sound)


def test_a_resampled_file_has_the_tone_and_length_at_the_new_rate(tmp_path):
    sound = 0.99 * torch.sin(torch.arange(2 * RATE) * 2 * torch.pi * 440 / RATE)[None]
    write_sound(tmp_path / "a.flac", sound, RATE, FileSettings(sample_rate=44100, bit_depth=24))
    found, rate = read(tmp_path / "a.flac")
    assert rate == 44100 and found.shape == (1, 88200)
    assert np.abs(np.fft.rfft(found[0].numpy())).argmax() == 880
    assert found.abs().max() <= 1


def test_fades_are_in_the_file(tmp_path):
    write_sound(tmp_path / "a.wav", torch.full((1, 16000), 0.5), RATE, FileSettings(fade_in=0.5, fade_out=1))
    found, _ = read(tmp_path / "a.wav")
    assert found[0, [0, -1]].abs().max() < 1e-3
    assert found[0, 4000:8000].sub(0.5).abs().max() < 1e-4


@pytest.mark.parametrize("settings", [FileSettings(), FileSettings(sample_rate=16000, fade_in=0.2, fade_out=0.3)])
@pytest.mark.parametrize("loudness", [-30.0, None])
def test_a_long_sound_is_written_like_a_short_one(tmp_path, settings, loudness):
    sound = noise(6, gain=0.5)
    write_long(tmp_path / "a.wav", sound.split(7777, dim=-1), RATE, settings, loudness=loudness)
    found, rate = read(tmp_path / "a.wav")
    assert rate == (settings.sample_rate or RATE)
    assert found.shape == (1, 6 * rate)
    if loudness is not None and not settings.fade_in:
        assert loudness_lufs(found, rate) == pytest.approx(loudness, abs=0.05)
    if loudness is None:
        assert found.abs().max() == pytest.approx(0.99, abs=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_what_is_made_of_a_long_sound_is_on_disk_before_the_next_piece_is(tmp_path):
    sizes = []

    def pieces():
        for seed in range(4):
            yield noise(1, seed)
            sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))

    write_long(tmp_path / "a.wav", pieces(), RATE, FileSettings(), loudness=-23)
    assert sizes == [4 * RATE * (seed + 1) for seed in range(4)]


def test_a_long_sound_that_fails_leaves_nothing(tmp_path):
    def pieces():
        yield noise(1)
        raise UserError("stopped")

    with pytest.raises(UserError, match="stopped"):
        write_long(tmp_path / "a.wav", pieces(), RATE, FileSettings(), loudness=-23)
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_depend_on_the_duration(tmp_path):
    """The rise of the peak over ten minutes at 48 kHz, 115 MB of samples, in a process of its own."""
    script = f"""
import resource, torch
from pathlib import Path
from diffaudio.media.file_settings import FileSettings
from diffaudio.generation.file_output import write_long
def peak(seconds):
    pieces = (0.1 * torch.randn(1, 48000) for _ in range(seconds))
    write_long(Path({str(tmp_path)!r}) / "a.flac", pieces, 48000, FileSettings(), loudness=-23)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
first = peak(20)
print(peak(600) - first)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(run.stdout) * (1 if sys.platform != "darwin" else 1 / 1024) < 20_000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_rate": 100}, "sample rate is 100; choose 4000 to 384000 Hz"),
        ({"bit_depth": 8}, "bit depth is 8; choose from 16, 24, 32"),
        ({"fade_in": -1}, "fade-in is -1; choose 0"),
        ({"fade_out": float("nan")}, "fade-out is nan; choose 0"),
    ],
)
def test_settings_out_of_range_are_errors(settings, message):
    with pytest.raises(UserError, match=message):
        FileSettings(**settings)


def test_fades_longer_than_the_sound_are_an_error():
    with pytest.raises(UserError, match="a fade-in of 3 s and a fade-out of 2.5 s do not fit into 5 s"):
        FileSettings(fade_in=3, fade_out=2.5).check_duration(5)
