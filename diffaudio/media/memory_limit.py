"""A limit on the memory of a process that decodes files, and who is to blame when an allocation fails.

A file that needs more than the limit always will. A machine that refuses memory below the limit (`ulimit -v`, strict
overcommitment) says nothing about the file.
"""

import mmap
import sys
from pathlib import Path

__all__ = ["is_machine_short_of_memory", "limit_memory"]

STATUS = Path("/proc/self/status")
MARGIN_BYTES = 8 << 20  # for what is allocated on the way to the answer

_requested_bytes: int | None = None  # the limit of this process, where it has one


def limit_memory(max_memory_mb: int) -> None:
    """Let allocations of this process fail beyond the limit. Linux counts all private memory; others need not."""
    global _requested_bytes
    if sys.platform == "linux":
        import resource

        _requested_bytes = max_memory_mb << 20
        limit, hard = max_memory_mb << 20, resource.getrlimit(resource.RLIMIT_DATA)[1]
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def is_machine_short_of_memory() -> bool:
    """After an allocation failed: whether the machine refuses what is left of this process's limit.

    Returns:
        False also where the process has no limit, since it is not known then how much it may have.
    """
    if _requested_bytes is None:
        return False
    import resource

    limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
    if limit < _requested_bytes:
        return True
    rest = limit - _used_bytes() - MARGIN_BYTES
    if rest <= 0:
        return False
    try:
        mmap.mmap(-1, rest, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return True
    return False


def _used_bytes() -> int:
    """What the limit counts."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return int(lines["VmData"].split()[0]) << 10
