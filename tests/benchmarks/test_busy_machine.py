"""How much slower a command and a training step are beside other work.

    uv run pytest tests/benchmarks/test_busy_machine.py -m benchmark -s

Waiting threads sleep (`OMP_WAIT_POLICY=PASSIVE`), so that other work takes its share of the CPUs and no more. Beside as
many busy processes as there are CPUs, a fair share is half of them. The policy ACTIVE is measured for comparison.
"""

import os
import subprocess
import sys
import time

import pytest
from scripts import REPO

from diffaudio.distributed import available_cpus

BUSY = "while True: pass"
STEPS = """
import time, torch
from diffaudio.distributed import join_processes
from diffaudio.models.unet import UNet1D
join_processes()
unet = UNet1D(128, 64, channels=(128, 192), attention_levels=(0,), condition_dim=128)
optimizer = torch.optim.AdamW(unet.parameters())
times = []
for step in range(14):
    begin = time.perf_counter()
    unet(torch.randn(8, 128, 125), torch.rand(8), torch.randn(8, 64)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    times.append(time.perf_counter() - begin)
print(sorted(times)[len(times) // 2])
"""
COMMANDS = {
    "a training step": ["-c", STEPS],
    "the first command": ["-m", "diffaudio", "generate", "rain", "--steps", "10", "--duration", "3", "-o"],
}


def seconds(command: str, policy: str, busy: int, out: str) -> float:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    arguments = [sys.executable, *COMMANDS[command], *([out] if command == "the first command" else [])]
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
    try:
        begin = time.perf_counter()
        environment["OMP_WAIT_POLICY"] = policy
        done = subprocess.run(arguments, env=environment, cwd=REPO, capture_output=True, text=True, check=True)
        return float(done.stdout) if command == "a training step" else time.perf_counter() - begin
    finally:
        for other in others:
            other.kill()
            other.wait()


@pytest.mark.benchmark
@pytest.mark.parametrize("command", COMMANDS)
def test_other_work_takes_its_share_and_no_more(tmp_path, command):
    print(f"\n{command}, {available_cpus()} CPUs, load {os.getloadavg()[0]:.1f} before")
    for policy in ("PASSIVE", "ACTIVE"):
        times = [seconds(command, policy, busy, str(tmp_path / f"{policy}{busy}.wav")) for busy in (0, 1, 2)]
        print(f"{policy:8}", *(f"beside {busy}: {s:7.2f} s ({s / times[0]:.2f})" for busy, s in enumerate(times)))
        if policy == "PASSIVE":
            assert max(times) < 2.5 * times[0]
