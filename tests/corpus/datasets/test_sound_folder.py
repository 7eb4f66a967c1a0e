"""Folders of sound files, without pictures, for the autoencoder."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scripts import REPO, load_script

from diffaudio.config import parse
from diffaudio.corpus.datasets.sound_folder import is_sound_folder, read_windows, sound_files
from diffaudio.corpus.datasets.waveforms import WaveformDataset, decode_corpus
from diffaudio.errors import UserError

RATE = 8000


def write(path: Path, duration_s: float, channels: int = 1, gain: float = 0.5, seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = gain * np.random.default_rng(seed).uniform(-1, 1, (round(duration_s * RATE), channels))
    soundfile.write(path, samples, RATE)
    return samples


def test_sounds_of_all_folders_are_found_but_for_hidden_ones_and_a_corpus_is_none(tmp_path):
    for name in ("b.wav", "a/c.flac", ".hidden.wav", ".cache/x.wav"):
        write(tmp_path / name, 0.5)
    (tmp_path / "notes.txt").write_text("x")
    assert [path.relative_to(tmp_path).as_posix() for path in sound_files(tmp_path)] == ["a/c.flac", "b.wav"]
    assert is_sound_folder(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    assert not is_sound_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no sound"):
        sound_files(tmp_path / "empty")


def test_long_files_are_cut_into_windows_of_ten_seconds_that_are_the_file_again(tmp_path):
    samples = write(tmp_path / "long.wav", 23.2, channels=2)
    windows = list(read_windows(tmp_path / "long.wav"))
    assert [start_s for start_s, _, _ in windows] == [0, 10, 20]
    joined = torch.cat([waveform for _, waveform, _ in windows], dim=1)
    assert joined.shape == (2, len(samples))
    assert np.abs(joined.numpy().T - samples).max() < 1e-4


def test_silence_and_short_ends_are_passed_over_and_damage_is_warned_about(tmp_path, caplog):
    write(tmp_path / "silent.wav", 2.0, gain=0.0)
    write(tmp_path / "end.wav", 10.3)
    (tmp_path / "damaged.wav").write_bytes(b"RIFF" + b"x" * 50)
    assert list(read_windows(tmp_path / "silent.wav")) == []
    assert len(list(read_windows(tmp_path / "end.wav"))) == 1
    assert list(read_windows(tmp_path / "damaged.wav")) == []
    assert "damaged.wav: is left out from 0.0 s on" in caplog.text


def test_a_folder_of_sounds_becomes_the_same_waveforms_once(tmp_path):
    samples = write(tmp_path / "sounds/one.wav", 1.5)
    write(tmp_path / "sounds/two/three.wav", 12.0, seed=1)
    settings = {"sample_rate": RATE, "audio_channels": 1, "peak": 0.7}
    decode_corpus(tmp_path / "sounds", tmp_path / "out", **settings)
    dataset = WaveformDataset(tmp_path / "out")
    assert dataset.sources == ["one.wav", "two/three.wav", "two/three.wav"]
    assert dataset.ids == ["one.wav@0", "two/three.wav@0", "two/three.wav@10"]
    expected = torch.from_numpy(samples[:, 0] / np.abs(samples).max() * 0.7).float()
    torch.testing.assert_close(dataset[0][0], expected, atol=2e-4, rtol=0)
    noted = (tmp_path / "out/made_from.json").stat().st_mtime_ns
    decode_corpus(tmp_path / "sounds", tmp_path / "out", **settings)
    assert (tmp_path / "out/made_from.json").stat().st_mtime_ns == noted  # nothing was decoded again
    write(tmp_path / "sounds/one.wav", 1.5, seed=9)
    decode_corpus(tmp_path / "sounds", tmp_path / "out", **settings)
    assert (tmp_path / "out/made_from.json").stat().st_mtime_ns != noted


def test_an_autoencoder_is_trained_on_a_folder_of_sounds(tmp_path):
    for index in range(3):
        write(tmp_path / f"sounds/{index}.wav", 2.0, seed=index)
    script = load_script("train/autoencoder.py")
    arguments = ["--config", REPO / "configs/tiny/autoencoder.yaml", "--data", tmp_path / "sounds"]
    arguments += ["--out", tmp_path / "run", "--train.threads", "1", "--train.steps", "2"]
    script.main(parse(script.Config, [str(argument) for argument in arguments]))
    assert json.loads((tmp_path / "run/model/config.json").read_text())["_class_name"] == "OobleckAutoencoder"
    (tmp_path / "empty").mkdir()
    arguments[3] = tmp_path / "empty"
    with pytest.raises(UserError, match="empty"):
        script.main(parse(script.Config, [str(argument) for argument in arguments]))
