"""Exit statuses: a mistake of the user is one line and 2, a bug of ours a traceback and 1, Ctrl-C 130."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError

from diffaudio.errors import UserError, printable, report_errors


def status_of(error, capsys):
    def run():
        raise error

    status = report_errors(run, program="prog")
    return status, capsys.readouterr().err


def test_a_users_error_is_one_line_and_status_2(capsys):
    assert status_of(UserError("a.yaml: unknown\n  key"), capsys) == (2, "prog: error: a.yaml: unknown key\n")


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), RuntimeError("x"), AssertionError("x"), TypeError()])
def test_any_other_exception_is_a_bug_with_its_traceback_and_status_1(error, capsys):
    status, shown = status_of(error, capsys)
    assert status == 1
    assert shown.startswith("Traceback (most recent call last):\n")
    assert type(error).__name__ in shown
    assert shown.endswith("this is a bug in diffaudio; please report it with the lines above\n")


@pytest.mark.parametrize(
    "number",
    [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOENT, errno.EIO, errno.ESTALE, errno.EDQUOT, errno.EISDIR],
)
def test_a_failure_of_the_place_is_one_line_that_names_the_file(number, capsys):
    error = OSError(number, os.strerror(number), "out/dog.wav")
    assert status_of(error, capsys) == (2, f"prog: error: out/dog.wav: {os.strerror(number)}\n")
    assert status_of(OSError(number, os.strerror(number)), capsys) == (2, f"prog: error: {os.strerror(number)}\n")


@pytest.mark.parametrize("error", [OSError(errno.EBADF, "Bad file descriptor"), OSError("something")])
def test_an_operating_system_error_that_no_user_can_mend_is_a_bug(error, capsys):
    assert status_of(error, capsys)[0] == 1


def test_too_little_memory_is_one_line_on_gpu_and_cpu(capsys):
    gpu = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")
    cpu = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    for error in (MemoryError(), gpu, cpu):
        status, shown = status_of(error, capsys)
        assert (status, shown.count("\n")) == (2, 1)
        assert "not enough memory" in shown


def test_escape_sequences_of_names_do_not_reach_the_terminal(capsys):
    _, shown = status_of(UserError("\x1b[2Jdog\x07.wav \udcff\u202e: unknown"), capsys)
    assert shown == "prog: error: \\x1b[2Jdog\\x07.wav \\udcff\\u202e: unknown\n"
    assert printable("ein Bär\r\nim  Wald 日本") == "ein Bär im Wald 日本"


def program(tmp_path: Path, body: str) -> list[str]:
    file = tmp_path / "script.py"
    file.write_text(
        "import os, sys, time\nfrom dataclasses import dataclass\nfrom pathlib import Path\n"
        "from diffaudio.distributed import run_script\nfrom diffaudio.errors import UserError\n"
        "@dataclass\nclass Config:\n    steps: int = 1\n"
        f"def main(config):\n{textwrap.indent(body, '    ')}\n"
        "run_script(main, Config)\n"
    )
    return [sys.executable, str(file)]


@pytest.mark.parametrize(
    ("body", "status", "shown"),
    [
        ("pass", 0, ""),
        ("raise UserError('too small')", 2, "script.py: error: too small\n"),
        ("Path('nowhere/x').write_text('')", 2, "script.py: error: nowhere/x: No such file or directory\n"),
        ("Path('/dev/full').open('w', 1).write('x\\n')", 2, "script.py: error: No space left on device\n"),
        ("os.kill(os.getpid(), 2); time.sleep(5)", 130, "script.py: stopped\n"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
def test_a_script_ends_as_a_command_does(tmp_path, body, status, shown):
    done = subprocess.run(program(tmp_path, body), cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (status, shown)


def test_a_bug_in_a_script_shows_its_traceback(tmp_path):
    done = subprocess.run(program(tmp_path, "[][0]"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "IndexError: list index out of range" in done.stderr


def test_a_reader_that_goes_away_is_no_error():
    command = [str(Path(sys.executable).with_name("diffaudio")), "--help"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert done.stderr == ""


def test_a_command_stopped_by_ctrl_c_ends_in_a_line_with_130(tmp_path):
    body = "print('begun', flush=True); time.sleep(60)"
    running = subprocess.Popen(program(tmp_path, body), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout and running.stdout.readline() == "begun\n"
    time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, shown = running.communicate(timeout=30)
    assert (running.returncode, shown) == (130, "script.py: stopped\n")


def test_a_disk_that_is_full_while_weights_are_written_is_one_line(capsys):
    """safetensors wraps what the system says in an error of its own; its other errors are bugs of whoever calls it."""
    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert status_of(full, capsys) == (2, "prog: error: writing weights: No space left on device\n")
    assert status_of(SafetensorError("Error while deserializing header: invalid JSON"), capsys)[0] == 1
