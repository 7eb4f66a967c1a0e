"""What a process knows of those it was launched with."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from scripts import REPO

from diffaudio import distributed
from diffaudio.errors import UserError

LAUNCHER = """
import subprocess, sys, time
waits = "distributed.end_with_launcher(); print('begun', flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", f"import time; from diffaudio import distributed; {waits}"])
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """Six CPUs, no cgroup, no launcher, and nothing in the environment."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    monkeypatch.setattr(distributed, "CGROUPS", tmp_path)
    monkeypatch.setattr(distributed, "OWN_CGROUP", tmp_path / "own")
    for name in (
        "LOCAL_WORLD_SIZE", "WORLD_SIZE", "OMP_NUM_THREADS", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION",
        "TORCHELASTIC_RUN_ID", "ACCELERATE_USE_CPU",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


def test_the_cores_are_shared_out_among_the_processes_of_a_machine(monkeypatch):
    for processes, share in ((None, 6), (1, 6), (4, 1), (8, 1), (2, 3)):
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        if processes:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert distributed.share_of_cores() == share


@pytest.mark.parametrize(
    ("files", "own", "cpus"),
    [
        ({"cpu.max": "max 100000"}, "0::/", 6),
        ({"cpu.max": "200000 100000"}, "0::/", 2),
        ({"cpu.max": "250000 100000"}, "0::/", 2),
        ({"cpu.max": "50000 100000"}, "0::/", 1),
        ({"cpu.max": "900000 100000"}, "0::/", 6),
        ({"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b", 4),
        ({"a/cpu.max": "400000 100000", "a/b/cpu.max": "300000 100000"}, "0::/a/b", 3),
        ({"cpu.max": "200000 100000"}, "0::/outside/of/the/container", 2),
        ({"cpu,cpuacct/a/cpu.cfs_quota_us": "300000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
         "5:memory:/a\n4:cpu,cpuacct:/a", 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/", 6),
        ({"cpu.max": "nonsense"}, "0::/", 6),
    ],
)  # fmt: skip
def test_no_more_cpus_are_used_than_the_cgroup_may_use(tmp_path, files, own, cpus):
    (tmp_path / "own").write_text(own + "\n")
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    assert distributed.available_cpus() == cpus


@pytest.fixture
def threads():
    """How many threads a process computes with after it has joined the others."""
    before = torch.get_num_threads()

    def join(num_threads=None):
        distributed.join_processes(num_threads, on_cpu=True)
        return torch.get_num_threads()

    yield join
    torch.set_num_threads(before)


def test_threads_follow_affinity_cgroup_and_omp_num_threads(monkeypatch, tmp_path, threads):
    assert threads() == 6
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert threads() == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    assert threads() == 6
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    assert threads() == 1
    assert threads(5) == 5  # as the user says
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    (tmp_path / "own").write_text("0::/\n")
    (tmp_path / "cpu.max").write_text("200000 100000")
    assert threads() == 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows the environment of the launcher")
def test_the_one_thread_that_a_launcher_sets_is_not_taken_for_the_user_s_wish(monkeypatch, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for launcher, expected in ((None, 6), ("1", 1)):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        environment |= {"OMP_NUM_THREADS": launcher} if launcher else {}
        process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environment)
        try:
            with monkeypatch.context() as patch:
                patch.setattr(os, "getppid", lambda process=process: process.pid)
                assert threads() == expected
        finally:
            process.communicate(b"\n")


def test_a_launcher_that_starts_one_process_instead_of_several_is_noticed(monkeypatch, threads):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # as `accelerate launch` does
    assert threads()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # as it does for several processes
    with pytest.raises(UserError, match="asked for several processes and started only this one.*torchrun"):
        distributed.join_processes(on_cpu=True)


def test_waiting_threads_sleep_unless_the_user_wants_it_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    distributed.let_waiting_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    distributed.let_waiting_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


SCRIPTS = sorted(str(path.relative_to(REPO)) for folder in ("train", "sample") for path in (REPO / folder).glob("*.py"))
OBSERVE = """
import builtins, os, runpy, sys
original = builtins.__import__
def observe(name, *arguments, **more):
    if name.split(".")[0] == "torch":
        print("policy", os.environ.get("OMP_WAIT_POLICY"))
        os._exit(0)
    return original(name, *arguments, **more)
builtins.__import__ = observe
sys.argv = ["script", "samplers"]
sys.path.insert(0, os.path.dirname({path!r}))
try:
    runpy.run_path({path!r}, run_name="__main__")
except SystemExit:  # it wants more arguments first
    print("policy", os.environ.get("OMP_WAIT_POLICY"))
"""


@pytest.mark.parametrize("path", ["diffaudio/__main__.py", *SCRIPTS])
def test_every_entry_sets_the_policy_before_torch_is_loaded(monkeypatch, path):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    code = OBSERVE.format(path=str(REPO / path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=REPO)
    assert done.stdout.splitlines()[:1] == ["policy PASSIVE"], done.stderr


def test_a_second_ctrl_c_ends_at_once_but_not_the_one_that_a_launcher_passes_on(monkeypatch):
    now = 100.0
    monkeypatch.setattr(distributed.time, "monotonic", lambda: now)
    with distributed.StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        now += 0.5
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        now += 5
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_several_processes_know_that_they_are(monkeypatch):
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
