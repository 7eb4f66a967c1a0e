"""How long finding duplicates takes a clip, and what it holds in memory, as a corpus grows.

uv run pytest tests/benchmarks/test_duplicates_speed.py -m benchmark -s
DIFFAUDIO_CLIPS=1000000 uv run pytest tests/benchmarks/test_duplicates_speed.py -m benchmark -s
"""

import os
import resource
import time

import numpy as np
import pytest

from diffaudio.corpus.prepare.fingerprints import VERSION, find_duplicates, fingerprint

pytestmark = pytest.mark.benchmark

CLIPS = int(os.environ.get("DIFFAUDIO_CLIPS", "50000"))
STEPS = 237  # of 10 s
COPIES = 0.05


def made(num_clips):
    """Fingerprints of 10 s that change every 160 ms and have half their bits sure; some are damaged copies."""
    rng = np.random.default_rng(0)
    prints, copy_of = [], {}
    for clip in range(num_clips):
        if clip > 100 and rng.random() < COPIES:
            copy_of[clip] = int(rng.integers(100))
            words = np.frombuffer(prints[copy_of[clip]], "<u4", offset=1)
            words = words ^ ((rng.random((STEPS, 16)) < 0.05) @ (1 << np.arange(16))).astype("<u4")
        else:
            words = np.repeat(rng.integers(0, 1 << 32, STEPS // 4 + 1, dtype="<u4"), 4)[:STEPS]
        prints.append(VERSION + words.tobytes())
    return prints, copy_of


def test_time_for_a_clip_stays_flat_as_the_corpus_grows():
    prints, copy_of = made(CLIPS)
    took = []
    for count in (CLIPS // 5, CLIPS):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        found = find_duplicates(prints[:count], list(map(str, range(count))))
        took.append((time.process_time() - start) / count)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{count} clips: {took[-1] * 1e6:.0f} us of CPU and {(peak - before) / count:.1f} kB a clip "
            f"({took[-1] * count:.0f} s, {peak / 1e6:.2f} GB with the fingerprints)"
        )
    assert took[1] < 2 * took[0]
    assert [clip for clip, other in enumerate(found) if other is not None] == list(copy_of)


def test_a_fingerprint_costs_little_beside_decoding():
    x = np.random.default_rng(0).standard_normal(240000).astype(np.float32)
    start = time.process_time()
    for _ in range(20):
        fingerprint(x, 24000)
    print(f"fingerprint of 10 s at 24 kHz: {(time.process_time() - start) / 20 * 1e3:.1f} ms")
