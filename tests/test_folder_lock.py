"""One writer a folder: the second is refused and told who holds the lock, and the lock cannot be held twice."""

import errno
import os
import re
import socket
import subprocess
import sys
import threading
import time

import pytest

from diffaudio import folder_lock
from diffaudio.errors import UserError
from diffaudio.folder_lock import FolderLockedError, locked_folder

HOLD = """
import sys, time
from pathlib import Path
from diffaudio.folder_lock import locked_folder
with locked_folder(Path(sys.argv[1]), "diffaudio prepare"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""
COUNT = """
import sys, time
from pathlib import Path
from diffaudio.folder_lock import locked_folder
folder = Path(sys.argv[1])
for _ in range(40):
    with locked_folder(folder, "counting", patience_s=60):
        inside = folder / "inside"
        inside.touch(exist_ok=False)  # fails if another process is inside too
        number = int((folder / "count").read_text())
        time.sleep(0.001)
        (folder / "count").write_text(str(number + 1))
        inside.unlink()
"""


def start_holder(folder, seconds: float) -> subprocess.Popen[str]:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, folder, str(seconds)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def test_the_second_process_learns_who_holds_the_lock(tmp_path):
    holder = start_holder(tmp_path, 60)
    try:
        with pytest.raises(FolderLockedError) as raised, locked_folder(tmp_path, "diffaudio prepare"):
            pass
    finally:
        holder.kill()
        holder.wait()
    told = rf"{tmp_path}: `diffaudio prepare`, process {holder.pid} on {re.escape(socket.gethostname())}, started \d"
    assert re.match(told, str(raised.value))
    assert "is writing to this folder; wait until it has ended, end it, or name another folder" in str(raised.value)
    assert isinstance(raised.value, UserError)


def test_the_lock_is_released_when_its_holder_is_killed(tmp_path):
    holder = start_holder(tmp_path, 60)
    holder.kill()
    holder.wait()
    with locked_folder(tmp_path, "diffaudio encode"):
        assert b"diffaudio encode" in (tmp_path / ".lock").read_bytes()
    assert (tmp_path / ".lock").read_bytes() == b""


def test_one_who_is_patient_gets_the_lock_when_it_is_released(tmp_path):
    holder = start_holder(tmp_path, 0.5)
    with locked_folder(tmp_path, "diffaudio prepare", patience_s=60):
        pass
    holder.wait()


def test_the_file_is_never_removed_so_that_no_two_locks_exist(tmp_path):
    with locked_folder(tmp_path / "new", "first"):
        before = os.stat(tmp_path / "new" / ".lock").st_ino
    with locked_folder(tmp_path / "new", "second"):
        assert os.stat(tmp_path / "new" / ".lock").st_ino == before


def test_of_many_waiting_processes_only_one_is_inside_at_a_time(tmp_path):
    (tmp_path / "count").write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", COUNT, tmp_path]) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert (tmp_path / "count").read_text() == "160"


def test_two_threads_of_one_process_exclude_each_other(tmp_path):
    entered = []

    def enter() -> None:
        with locked_folder(tmp_path, "thread", patience_s=60):
            entered.append(time.monotonic())

    with locked_folder(tmp_path, "main"):
        thread = threading.Thread(target=enter)
        thread.start()
        time.sleep(0.3)
        assert entered == []
    thread.join()
    assert len(entered) == 1


def test_a_forked_child_that_lives_on_does_not_keep_the_lock(tmp_path):
    ready, wait = os.pipe()
    with locked_folder(tmp_path, "parent"):
        child = os.fork()
        if child == 0:
            os.read(ready, 1)
            os._exit(0)
    try:
        with locked_folder(tmp_path, "next"):
            pass
    finally:
        os.write(wait, b"x")
        os.waitpid(child, 0)


def test_a_symbolic_link_in_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError), locked_folder(tmp_path / "out", "diffaudio prepare"):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_file_system_without_locks_is_written_to_all_the_same_and_any_other_failure_is_raised(tmp_path, monkeypatch):
    def fail(code: int):
        def flock(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        return flock

    monkeypatch.setattr(folder_lock.fcntl, "flock", fail(errno.ENOLCK))
    with locked_folder(tmp_path, "diffaudio prepare"):
        pass
    monkeypatch.setattr(folder_lock.fcntl, "flock", fail(errno.EIO))
    with pytest.raises(OSError), locked_folder(tmp_path, "diffaudio prepare"):
        pass
