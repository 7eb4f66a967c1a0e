"""Processes: start and end of a script or command, alone or under `accelerate launch` or `torchrun`.

This is the one module that reads and sets environment variables, sets threads, installs signal handlers and exits.
The library never calls it; the scripts in train/ and sample/ and the commands do. It imports torch only
in `join_processes`.

Number of threads per process on a CPU: the CPUs allowed by its affinity and its cgroup's quota, divided among the
processes launched on the machine, and at most OMP_NUM_THREADS, if the user has set it.
"""

import ctypes
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from diffaudio.errors import UserError, report_errors

if TYPE_CHECKING:
    from accelerate import PartialState

__all__ = [
    "PATIENCE",
    "StopRequest",
    "available_cpus",
    "end_with_launcher",
    "is_launched_as_several",
    "join_processes",
    "let_waiting_threads_sleep",
    "run_script",
    "share_of_cores",
]

T = TypeVar("T")

PATIENCE = timedelta(hours=12)  # while the main process alone decodes, validates or generates
PR_SET_PDEATHSIG = 1  # of Linux's prctl
CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
IMPATIENCE_S = 2.0  # launchers forward a Ctrl-C that the process has already received itself


def run_script(main: Callable[[T], None], settings: type[T]) -> None:
    """Call `main` with the settings from the command line, and exit with the status that `report_errors` returns."""
    from diffaudio.config import parse

    sys.exit(report_errors(lambda: main(parse(settings)), program=Path(sys.argv[0]).name))


def let_waiting_threads_sleep() -> None:
    """Make OpenMP threads sleep while they wait, unless the user has set a policy; call this before torch is imported.

    By default they spin, which takes CPU time from other processes, and from the threads that they wait for.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def is_launched_as_several() -> bool:
    """Whether this process is one of several that `accelerate launch` or `torchrun` started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def available_cpus() -> int:
    """The number of CPUs this process may use: its affinity, or its cgroup's quota if that is less; at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cpus, _cgroup_quota())))


def share_of_cores() -> int:
    """This process's share of the available CPUs, where several processes were launched on the machine."""
    return max(1, available_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _cgroup_quota() -> float:
    """The CPU quota of this process's cgroups, in CPU seconds per second; infinity without a limit."""
    try:
        entries = [line.split(":", 2) for line in OWN_CGROUP.read_text().splitlines()]
    except OSError:
        entries = []
    quotas = [math.inf]
    for _, controllers, path in entries:
        root = CGROUPS if not controllers else CGROUPS / controllers if "cpu" in controllers.split(",") else None
        if root is None:
            continue
        # A container sees its own cgroup as the root, whatever path /proc gives for it on the host.
        for folder in [root, *(root.joinpath(*Path(path).parts[1 : n + 1]) for n in range(1, len(Path(path).parts)))]:
            quotas.append(_quota_of(folder))
    return min(quotas)


def _quota_of(cgroup: Path) -> float:
    try:
        if (cgroup / "cpu.max").is_file():  # version 2
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota = (cgroup / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu.cfs_period_us").read_text()
        return math.inf if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def _omp_num_threads() -> int | None:
    """The value of OMP_NUM_THREADS set by the user; None if it is unset or was set only by the launcher.

    `torchrun` and `accelerate launch` set it to 1 if it is unset. On Linux, the launcher's own environment shows
    whether the user set it; elsewhere a 1 is attributed to the launcher.
    """
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if not text.isdecimal() or int(text) < 1:
        return None
    launched = "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
    if text == "1" and launched:
        try:
            of_launcher = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
        except OSError:
            return None
        if not any(entry.startswith(b"OMP_NUM_THREADS=") for entry in of_launcher):
            return None
    return int(text)


def end_with_launcher() -> None:
    """End this process when its launcher is killed, instead of waiting for the others for days (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def join_processes(
    num_threads: int | None = None, *, patience: timedelta | None = None, on_cpu: bool | None = None
) -> "PartialState":
    """Join the processes that were launched together, and set this one's number of threads on a CPU.

    Accelerate joins several processes on CPUs only if CPU use is requested explicitly.

    Args:
        num_threads: threads per process on a CPU, instead of its share; see the module docstring.
        patience: timeout for waiting for the others; None is torch's default, intended for processes in lockstep.
        on_cpu: whether to compute on CPUs; None does so if there is no accelerator or accelerate is configured to.

    Raises:
        ValueError: several processes were requested, but the launcher started only one.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    if on_cpu is None:
        on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu, **({} if patience is None else {"timeout": patience}))
    if state.num_processes == 1:
        _check_launcher()
    if on_cpu:
        torch.set_num_threads(num_threads or min(share_of_cores(), _omp_num_threads() or sys.maxsize))
    return state


def _check_launcher() -> None:
    """Raise an error if this is the only process although `accelerate launch` was asked for several.

    On CPUs, and for more processes than GPUs, it starts one, and sets the rendezvous address (MASTER_ADDR) but not the
    number of processes (WORLD_SIZE).
    """
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise UserError(
            "accelerate launch was asked for several processes and started only this one, as it does on CPUs; "
            "start them by `torchrun --nproc_per_node N`, or give --num_processes 1"
        )


class StopRequest:
    """Ctrl-C as a request, so that the current step is finished and saved; a second one over 2 s later ends at once.

    with StopRequest() as stop: … if stop.requested: …
    """

    def __init__(self) -> None:
        self._since: float | None = None

    @property
    def requested(self) -> bool:
        return self._since is not None

    def __enter__(self) -> "StopRequest":
        self._before = signal.signal(signal.SIGINT, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._since is not None and now > self._since + IMPATIENCE_S:
            raise KeyboardInterrupt
        self._since = self._since or now
