"""Where `diffaudio generate` writes: names that are free, and nothing overwritten unless asked."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from diffaudio.errors import UserError
from diffaudio.file_names import shorten
from diffaudio.generation.output_paths import output_paths


def names(*arguments, **settings):
    return [path.name for path in output_paths(*arguments, **settings)]


def test_sounds_in_a_folder_are_named_after_their_prompts_and_numbered_where_names_meet(tmp_path):
    prompts = ["A dog, barking!", "rain", "rain", "Rain 2", "rain"]
    assert names(prompts, tmp_path) == ["a-dog-barking.wav", "rain.wav", "rain-2.wav", "rain-2-2.wav", "rain-3.wav"]


@pytest.mark.parametrize("taken", ["rain.wav", "rain.flac", "rain.json", "RAIN.json"])
def test_an_unnamed_sound_gets_a_name_that_no_file_has(tmp_path, taken):
    (tmp_path / taken).touch()
    assert names(["rain", "sea"], tmp_path) == ["rain-2.wav", "sea.wav"]
    (tmp_path / "rain-2.wav").touch()
    assert names(["rain"], tmp_path) == ["rain-3.wav"]
    assert names(["rain"], tmp_path, overwrite=True) == ["rain.wav"]


def test_a_picture_is_in_the_way_of_a_sound_with_a_spectrogram_alone(tmp_path):
    (tmp_path / "rain.png").touch()
    assert names(["rain"], tmp_path) == ["rain.wav"]
    assert names(["rain"], tmp_path, plot=True) == ["rain-2.wav"]


@pytest.mark.parametrize("taken", ["out.wav", "out.json", "out.png"])
def test_a_named_sound_replaces_no_file_of_its_name_or_its_companions(tmp_path, taken):
    (tmp_path / taken).touch()
    with pytest.raises(UserError, match=rf"{taken}: exists; add --overwrite to replace it, or choose another name"):
        output_paths(["rain"], tmp_path / "out.wav", plot=True)
    assert names(["rain"], tmp_path / "out.wav", plot=True, overwrite=True) == ["out.wav"]


def test_several_sounds_of_a_named_file_are_numbered_or_have_their_prompts_in_the_name(tmp_path):
    assert names(["rain"] * 3, tmp_path / "out.flac") == ["out.flac", "out-2.flac", "out-3.flac"]
    assert names(["rain", "sea", "rain"], tmp_path / "out.wav") == ["out-rain.wav", "out-sea.wav", "out-rain-2.wav"]
    (tmp_path / "out-2.json").touch()
    with pytest.raises(UserError, match="out-2.json: exists"):
        output_paths(["rain"] * 2, tmp_path / "out.wav")


@pytest.mark.parametrize("output", ["new", "a/b/c", "a/b/out.wav"])
def test_missing_folders_are_made(tmp_path, output):
    (path,) = output_paths(["rain"], tmp_path / output)
    assert path.parent.is_dir()


def read_only(**_):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_place_that_cannot_hold_sounds_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file.txt").touch()
    with pytest.raises(UserError, match=r"out.aac: cannot write .aac; choose .wav, .flac, .ogg, .opus or .mp3"):
        output_paths(["rain"], tmp_path / "out.aac")
    for output in ("file.txt/out.wav", "file.txt/a/out.wav"):
        with pytest.raises(UserError, match="is no folder; choose another place"):
            output_paths(["rain"], tmp_path / output)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", read_only)
    with pytest.raises(UserError, match=r"this folder cannot be written to \(Read-only file system\)"):
        output_paths(["rain"], tmp_path)


def test_choosing_names_needs_no_torch():
    assert "diffaudio.generation.output_paths" in sys.modules

    program = (
        "import sys, diffaudio.generation.output_paths, diffaudio.diffusion.settings; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_long_text_is_shortened_to_a_line():
    assert shorten("rain\non a  roof") == "rain on a roof"
    assert shorten("x" * 80) == "x" * 80
    for text in ("x" * 81, "x " * 5000, " " * 5000 + "x"):
        assert len(shorten(text)) <= 80
        assert shorten(text).endswith("…")


def test_the_working_folder_is_a_folder_like_any_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert output_paths(["rain"], Path(".")) == [Path("rain.wav")]
