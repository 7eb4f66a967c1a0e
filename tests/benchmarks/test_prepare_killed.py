"""kill -9 at random moments of a run with two processes: the corpus at the end is that of an undisturbed run.

    pytest tests/benchmarks/test_prepare_killed.py -m benchmark -s

KILLS=20 and SEED=0 in the environment say how often, and when. Each time one of these dies: everything at once, the
launcher alone, one of the two processes, or a worker.
"""

import os
import random
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from killing import LAUNCHED, contents, everything, kill, start, wait_for
from media import noise, numbered_pictures, write_media

KILLS, SEED = int(os.environ.get("KILLS", "20")), int(os.environ.get("SEED", "0"))
NUM_FILES, NUM_PARTS = 47, 24
CHOICE = ["--sample-rate", "8000", "--clip-s", "2", "--sources-per-part", "2", "--workers", "1"]
PAUSE_S = 0.5  # after a part was seen; the last step, when all parts are there, takes about as long


def count_parts(out: Path) -> int:
    return len(list(out.glob("clips-*")))


def runs(out: Path) -> set[str]:
    """Names of the folders that runs work in, each of its own."""
    return {path.name for path in (out / ".work").glob("*")}


def processes(family: list[psutil.Process]) -> list[psutil.Process]:
    """The two that were launched, told apart from their workers."""
    return [one for one in family[1:] if one.ppid() == family[0].pid]


VICTIMS = {
    "everything": everything,
    "the launcher": lambda family: family[:1],
    "the first process": lambda family: processes(family)[:1],
    "the second process": lambda family: processes(family)[1:2],
    "a worker": lambda family: [one for one in family if one.ppid() in [p.pid for p in processes(family)]][:1],
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Every sixth file has the sound of another one, parts away."""
    folder = tmp_path_factory.mktemp("videos")
    for index in range(NUM_FILES):
        seed = index if index % 6 else (index + 31) % NUM_FILES
        duration_s = 20 + index % 4
        sound, pictures = noise(duration_s, 8000, seed=seed), numbered_pictures(duration_s, first=100)
        write_media(folder / f"{index:03d}.mkv", sound=sound, pictures=pictures)
    (folder / "damaged.mkv").write_bytes((folder / "001.mkv").read_bytes()[:3000])
    return folder


@pytest.mark.benchmark
def test_a_run_that_is_killed_again_and_again_ends_like_one_that_is_not(videos, tmp_path):
    rng, log = random.Random(SEED), tmp_path / "log"
    began, working = time.monotonic(), tmp_path / "undisturbed" / ".work"
    process = start([*LAUNCHED, "prepare", videos, "-o", tmp_path / "undisturbed", *CHOICE], log)
    assert wait_for(process, working.exists)
    starting_s = time.monotonic() - began
    assert process.wait() == 0, log.read_text()
    wanted = contents(tmp_path / "undisturbed")
    print(
        f"\nundisturbed: work begins after {starting_s:.1f} s and takes {time.monotonic() - began - starting_s:.1f} s"
    )

    kills, corpora = Counter[str](), 0
    while kills.total() < KILLS:
        out = tmp_path / f"killed-{corpora}"
        while not _run_and_kill(videos, out, rng, kills, starting_s, log):
            pass
        assert contents(out) == wanted
        corpora += 1
    print(f"{kills.total()} kills over {corpora} corpora, each equal to the undisturbed one: {dict(kills)}")


def _run_and_kill(
    videos: Path, out: Path, rng: random.Random, kills: Counter[str], starting_s: float, log: Path
) -> bool:
    """Whether the run came to its end before it was to be killed."""
    before = runs(out)
    process = start([*LAUNCHED, "prepare", videos, "-o", out, *CHOICE], log)
    if kills.total() < KILLS:
        victim, begun = rng.choice(list(VICTIMS)), time.monotonic()
        if rng.random() < 0.2:
            time.sleep(rng.uniform(0, starting_s))
        else:
            parts = rng.randint(count_parts(out), NUM_PARTS)
            wait_for(process, lambda: count_parts(out) >= parts and bool(runs(out) - before))
            time.sleep(rng.uniform(0, PAUSE_S))
        if process.poll() is None:
            at = f"{time.monotonic() - begun:.1f} s, with {count_parts(out)} of {NUM_PARTS} parts"
            if kill(process, VICTIMS[victim]):
                kills[victim] += 1
                print(f"kill {kills.total()}: {victim} after {at}", flush=True)
                return False
    assert process.wait() == 0, log.read_text()[-5000:]
    return True
