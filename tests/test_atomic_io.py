"""Files and folders are there whole or not at all."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

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


@pytest.fixture
def steps(monkeypatch, tmp_path):
    """What is flushed, renamed and deleted, in order."""
    found: list[str] = []
    opened: dict[int, str] = {}
    real_open, real_rmtree = os.open, shutil.rmtree

    def name(path) -> str:
        return str(Path(path).relative_to(tmp_path))

    def open_(path, *arguments, **more):
        descriptor = real_open(path, *arguments, **more)
        opened[descriptor] = str(path)
        return descriptor

    def rmtree(path, **more):
        if Path(path).exists():
            found.append(f"delete {name(path)}")
        real_rmtree(path, **more)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", lambda descriptor: found.append(f"flush {name(opened[descriptor])}"))
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    for rename in ("rename", "replace"):
        real = getattr(Path, rename)

        def renamed(self, to, real=real):
            found.append(f"rename {name(self)} {name(to)}")
            return real(self, to)

        monkeypatch.setattr(Path, rename, renamed)
    return found


def test_a_file_is_on_the_disk_before_it_has_its_name_and_then_its_name_is(tmp_path, steps):
    with atomic_file(tmp_path / "x.json") as temporary:
        temporary.write_text("1")
    part = f".x.{os.getpid()}.part.json"
    assert steps == [f"flush {part}", f"rename {part} x.json", "flush ."]


def test_the_older_folder_is_deleted_only_after_the_new_one_is_on_the_disk(tmp_path, steps):
    for _ in range(2):
        steps.clear()
        with atomic_folder(tmp_path / "model") as folder:
            (folder / "unet").mkdir()
            (folder / "unet" / "weights").write_text("1")
            (folder / "index").write_text("1")
    part, old = (f".model.{os.getpid()}.{role}" for role in ("part", "old"))
    flushed = {f"flush {part}", f"flush {part}/index", f"flush {part}/unet", f"flush {part}/unet/weights"}
    assert set(steps[:4]) == flushed
    assert steps[4:] == [f"rename model {old}", f"rename {part} model", "flush .", f"delete {old}"]


def test_a_disk_that_turns_out_to_be_full_when_flushed_leaves_the_older_version(tmp_path, monkeypatch):
    (tmp_path / "x.json").write_text("old")
    (tmp_path / "model").mkdir()

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"), atomic_file(tmp_path / "x.json") as temporary:
        temporary.write_text("new")
    with pytest.raises(OSError, match="No space left"), atomic_folder(tmp_path / "model") as folder:
        (folder / "a").write_text("new")
    assert (tmp_path / "x.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["model", "x.json"]
