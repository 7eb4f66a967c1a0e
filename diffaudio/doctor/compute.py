"""Processors: what torch computes with, in which precision and with how many threads, and how much memory there is."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from diffaudio.distributed import available_cpus
from diffaudio.doctor.findings import Finding, gigabytes

__all__ = ["check_gpus", "check_matrix_products", "check_memory", "check_threads"]

MIN_MEMORY_BYTES = 4e9  # generation with the bundled model takes 1.5 GB, preparing a corpus 1.4 GB a worker
BUSY_SHARE = 0.5  # of the CPUs taken by others
NVIDIA_DEVICE = Path("/dev/nvidia0")


def check_gpus() -> Iterator[Finding]:
    """GPUs that torch sees, and one that it does not see."""
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            text = f"cuda:{index} is {properties.name} with {gigabytes(properties.total_memory)}"
            advice = "" if bf16 else "train with train.precision fp16"
            yield Finding("GPU", "ok" if bf16 else "note", text + ("" if bf16 else ", without bf16"), advice)
    elif torch.backends.mps.is_available():
        yield Finding("GPU", "ok", "Apple's GPU (mps)")
    elif NVIDIA_DEVICE.exists():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        yield Finding(
            "GPU", "slow", f"there is an NVIDIA GPU that torch {torch.__version__} ({built}) cannot use",
            "install a torch for the driver's version of CUDA, see pytorch.org, or update the driver",
        )  # fmt: skip
    else:
        yield Finding("GPU", "note", "none: 5 s of sound take some seconds on a CPU, training takes hours to days")


def check_threads() -> Iterator[Finding]:
    """CPUs that this process may use against those of the machine, threads, and how busy others keep them."""
    cpus, machine = available_cpus(), os.cpu_count() or 1
    text = f"{cpus} of {machine} may be used"
    if cpus < machine:
        yield Finding("CPUs", "note", f"{text}: an affinity or a cgroup's quota leaves no more")
    else:
        yield Finding("CPUs", "ok", text)
    threads = torch.get_num_threads()
    if threads > cpus:
        advice = f"set OMP_NUM_THREADS={cpus}; the commands here do so by themselves"
        yield Finding("threads", "slow", f"torch would use {threads} threads on {cpus} CPUs", advice)
    elif threads < cpus:
        advice = "unset OMP_NUM_THREADS, unless other work needs the CPUs"
        yield Finding("threads", "note", f"torch uses {threads} of {cpus} CPUs", advice)
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > BUSY_SHARE * machine:
        yield Finding("load", "slow", f"{busy:.1f} processes want {machine} CPUs", "wait, or stop other work")


def check_matrix_products(size: int = 1024, repeats: int = 4) -> Iterator[Finding]:
    """Speed of float32 and bf16 matrix products on a CPU, which is what the networks are made of."""
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(size, size, dtype=dtype)
        torch.matmul(x, x)
        begin = time.perf_counter()
        for _ in range(repeats):
            torch.matmul(x, x)
        rates[dtype] = 2 * size**3 * repeats / (time.perf_counter() - begin) / 1e9
    single, half = rates[torch.float32], rates[torch.bfloat16]
    names = {"AMX": torch.cpu._is_amx_tile_supported(), "AVX-512 bf16": torch.cpu._is_avx512_bf16_supported()}
    units = ", ".join(name for name, found in names.items() if found)
    text = f"matrix products: {single:.0f} GFLOP/s in float32, {half:.0f} in bf16 ({units or 'without bf16 units'})"
    if units and half < single:
        advice = "train with train.precision no; check the version of torch"
        yield Finding("CPU speed", "slow", text, advice)
    else:
        yield Finding("CPU speed", "ok" if units else "note", text)


def check_memory() -> Iterator[Finding]:
    """Memory of the machine that is free; a cgroup may leave less."""
    memory = psutil.virtual_memory()
    limit = _cgroup_limit()
    total, free = min(memory.total, limit), min(memory.available, limit)
    text = f"{gigabytes(free)} of {gigabytes(total)} are free"
    if free < MIN_MEMORY_BYTES:
        yield Finding("memory", "slow", text, "use --workers 1 and smaller batches, or close other programs")
    else:
        yield Finding("memory", "ok", text)


def _cgroup_limit() -> float:
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            return float(file.read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return float("inf")
