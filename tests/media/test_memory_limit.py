"""Who is to blame when memory runs out, found out in a process of its own."""

import subprocess
import sys

ALLOCATIONS = """
import resource, sys
from diffaudio.media.memory_limit import is_machine_short_of_memory, limit_memory

def outcome(num_mb):
    try:
        return len(bytearray(num_mb << 20))
    except MemoryError:
        return "the machine" if is_machine_short_of_memory() else "the file"

print(is_machine_short_of_memory())  # there is no limit yet
{before}
limit_memory(400)
print(outcome(2000))
{after}
print(outcome(2000))
held = []
try:
    while True:
        held.append(bytearray(20 << 20))
except MemoryError:
    print("the machine" if is_machine_short_of_memory() else "the file")
"""


def outcomes(before: str = "", after: str = "") -> list[str]:
    command = [sys.executable, "-c", ALLOCATIONS.format(before=before, after=after)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:4]


def test_a_file_that_needs_more_than_the_limit_is_to_blame_at_once_or_bit_by_bit():
    assert outcomes() == ["False", "the file", "the file", "the file"]


def test_a_machine_that_refuses_what_the_limit_allows_is_to_blame():
    short = "resource.setrlimit(resource.RLIMIT_AS, (200 << 20, 200 << 20))"
    assert outcomes(after=short) == ["False", "the file", "the machine", "the machine"]


def test_a_limit_that_was_set_below_ours_is_the_machine_s():
    lower = "resource.setrlimit(resource.RLIMIT_DATA, (100 << 20, 100 << 20))"
    assert outcomes(before=lower) == ["False", "the machine", "the machine", "the machine"]
