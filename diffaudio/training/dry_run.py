"""`dry_run`: what a run would need, measured in a few steps; nothing is written."""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn

from diffaudio.training.memory_estimate import TrainingEstimate

__all__ = ["Measured", "describe_plan", "measure_steps"]

WARMUP_STEPS, STEPS = 2, 5


@dataclass(frozen=True)
class Measured:
    """What a step takes.

    Attributes:
        step_s: seconds; the median of a few.
        peak_bytes: of the device's memory, or of the process on a CPU.
        memory_bytes: what the device, or the machine, has in all.
    """

    step_s: float
    peak_bytes: int
    memory_bytes: int


def measure_steps(step: Callable[[int], object], device: torch.device) -> Measured:
    """Time `step(number)` after a few that warm up."""
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    process, peak, times = psutil.Process(), 0, []
    for number in range(WARMUP_STEPS + STEPS):
        begin = time.perf_counter()
        step(number)
        if is_cuda:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
        peak = max(peak, process.memory_info().rss)
    memory = psutil.virtual_memory().total
    if is_cuda:
        peak, memory = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
    return Measured(sorted(times[WARMUP_STEPS:])[STEPS // 2], peak, memory)


def describe_plan(
    measured: Measured,
    modules: dict[str, nn.Module],
    *,
    steps: int,
    batch_shape: tuple[int, ...],
    num_clips: int,
    max_states: int,
    out: Path,
    estimate: TrainingEstimate | None = None,
) -> Iterator[str]:
    """What a run takes, line by line.

    Args:
        modules: the networks, by name; the first is trained.
        batch_shape: of the latents of a step of all processes, [clips, channels, frames].
        max_states: states that the run folder keeps.
        out: the run folder.
        estimate: of a process' step, where all weights are trained.
    """
    for name, module in modules.items():
        size, trained = _num_weights(module), _num_weights(module, trained=True)
        part = "" if trained == size else f", {trained / 1e6:.3g} M of them trained"
        yield f"{name}: {size / 1e6:.3g} M parameters{part}"
    batch_size = batch_shape[0]
    yield f"batches: {list(batch_shape)} latents; {steps} steps are {steps * batch_size / num_clips:.3g} epochs"
    share = measured.peak_bytes / measured.memory_bytes
    yield f"memory: {_gigabytes(measured.peak_bytes)} of {_gigabytes(measured.memory_bytes)} a process ({share:.0%})"
    if estimate:
        yield (
            f"computed for a GPU: {_gigabytes(estimate.total_bytes)} a process, of these "
            f"{_gigabytes(estimate.activation_bytes)} for activations; {estimate.flops / 1e12:.3g} TFLOP a step"
        )
    rate = batch_size / measured.step_s
    yield f"rate: {measured.step_s:.3g} s a step, {rate:.3g} clips a second"
    yield f"time: {_duration(steps * measured.step_s)} for {steps} steps, without validation and samples"
    network = next(iter(modules.values()))
    # the weights and their average, two moments for each that is trained; and the model in half precision
    state = 4 * (2 * _num_weights(network) + 2 * _num_weights(network, trained=True))
    model = 2 * sum(map(_num_weights, modules.values()))
    yield (
        f"disk: {_gigabytes(max_states * state)} for states, {_gigabytes(model)} for the model, and as much while they "
        f"are written; {_gigabytes(_free_bytes(out))} are free at {out}"
    )


def _num_weights(module: nn.Module, *, trained: bool = False) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad or not trained)


def _free_bytes(folder: Path) -> int:
    """Of the file system that a folder, which need not exist yet, would be on."""
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(existing).free


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def _duration(seconds: float) -> str:
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 86_400:.3g} days"
