"""Files and folders are there whole or not at all."""

import os
import subprocess
import sys

import pytest

from diffaudio.atomic_io import atomic_file, atomic_folder


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new" / "model"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as folder:
        (folder / "a").write_text(str(1 / 0))
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    assert (target / "a").read_text() == "1"
    with atomic_folder(target) as folder:
        (folder / "b").write_text("3")
    assert [path.name for path in target.iterdir()] == ["b"]


def test_what_is_written_whole_within_another_such_block_leaves_one_hidden_file_at_most(tmp_path):
    target = tmp_path / "x.txt"
    with atomic_file(target) as temporary:
        with atomic_file(temporary) as inner:
            inner.write_text("all of it")
            assert len(list(tmp_path.iterdir())) == 1
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"] and target.read_text() == "all of it"


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "x.json"
    with atomic_file(target) as temporary:
        temporary.write_text("1")
        assert temporary.suffix == ".json"
        assert not target.exists()
    with pytest.raises(ZeroDivisionError), atomic_file(target) as temporary:
        temporary.write_text(str(1 / 0))
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert target.read_text() == "1"


def test_what_a_killed_process_left_is_cleared_away_and_a_living_one_keeps_its_own(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f".x.{dead.pid}.part.json", f".x.{os.getppid()}.part.json", f".y.{dead.pid}.part.json"):
        (tmp_path / name).write_text("half")
    (tmp_path / f".model.{dead.pid}.old").mkdir()  # killed between the two renames
    with atomic_file(tmp_path / "x.json") as temporary:
        temporary.write_text("1")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "model"):
        raise ZeroDivisionError
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted([f".x.{os.getppid()}.part.json", f".y.{dead.pid}.part.json", "model", "x.json"])
