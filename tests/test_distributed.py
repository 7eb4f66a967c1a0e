"""What a process knows of those it was launched with."""

import os
import signal
import subprocess
import sys

import pytest

from diffaudio import distributed

LAUNCHER = """
import subprocess, sys, time
waits = "distributed.end_with_launcher(); print('begun', flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", f"import time; from diffaudio import distributed; {waits}"])
time.sleep(600)
"""


def test_the_cores_are_shared_out_among_the_processes_of_a_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    for processes, share in ((None, 6), (1, 6), (4, 1), (8, 1), (2, 3)):
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        if processes:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert distributed.share_of_cores() == share


def test_several_processes_know_that_they_are(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not distributed.is_launched_as_several()
    for processes in (1, 2):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        assert distributed.is_launched_as_several() is (processes == 2)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_a_process_ends_with_its_launcher_however_that_ends():
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout and launcher.stdout.readline() == "begun\n"
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    assert launcher.stdout.read() == ""  # the pipe ends when the last process that holds it does
