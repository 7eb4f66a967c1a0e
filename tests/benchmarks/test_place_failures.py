"""Disks that fill and shares that go away at random moments of every command: afterwards, running again ends the same.

    pytest tests/benchmarks/test_place_failures.py -m benchmark -s -n0

TIMES=20, SEED=0 and COMMANDS=prepare,encode,train,generate,sweep in the environment say how often, when and of what;
CONTENT=FOLDER keeps what the commands read, for runs in several pieces.
The small disk is a tmpfs and the share a bind mount, which only root may mount; elsewhere the test is skipped. A run
that is hit either ends with status 2 and one line, or was at its end; it never ends with a traceback. The commands are
forked from a process that has imported everything, so that failures fall into their work and not into their start.
"""

import contextlib
import errno
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from media import noise, numbered_pictures, write_media
from preloaded import start_preloaded
from scripts import REPO
from tiny_model import write_tiny_model

TIMES, SEED = int(os.environ.get("TIMES", "20")), int(os.environ.get("SEED", "0"))
COMMANDS = os.environ.get("COMMANDS", "prepare,encode,train,generate,sweep").split(",")
NUM_FILES, NUM_PROMPTS, DISK_MB = 12, 8, 64
TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Command:
    """A command that reads from a share and writes into a folder.

    Attributes:
        arguments: of the command, for the share and the folder.
        compared: patterns of the files that have to be those of an undisturbed run.
    """

    arguments: Callable[[Path, Path], list[str | Path]]
    compared: tuple[str, ...]


def train(share: Path, out: Path) -> list[str | Path]:
    model = ["--autoencoder", share / "model/autoencoder", "--clip", share / "model/clip"]
    settings = "--train.steps 12 --train.save_every 3 --train.batch_size 2 --train.precision no --train.threads 1"
    data = ["--config", REPO / "configs/tiny/diffusion.yaml", "--data", share / "encoded", "--out", out]
    texts = ["--bridge.texts", '["a dog"]', "--samples.prompts", "[]"]
    return [REPO / "train/diffusion.py", *data, *model, *settings.split(), *texts]


SMALL = ["--clip-s", "2", "--sample-rate", "8000", "--sources-per-part", "2", "--workers", "2"]
GRID = ["--samplers", "ddim,euler", "--steps", "2,3", "--duration", "1"]
KNOWN = {
    "prepare": Command(
        lambda share, out: ["diffaudio", "prepare", share / "videos", "-o", out, *SMALL], ("*.parquet", "*.csv")
    ),
    "encode": Command(
        lambda share, out: ["diffaudio", "encode", share / "clips", "-o", out, "--model", share / "model"],
        ("*.arrow",),
    ),
    "train": Command(train, ("model/**/*.safetensors",)),
    "generate": Command(
        lambda share, out: [
            *(REPO / "sample/generate.py", "--prompts", share / "prompts.txt", "--out", out),
            *("--model", share / "model", "--steps", "2", "--duration", "1"),
        ],
        ("*.wav",),
    ),
    "sweep": Command(
        lambda share, out: [
            *("diffaudio", "sweep", "--prompts", share / "prompts.txt", "--out", out, "--model", share / "model"),
            *GRID,
        ],
        ("**/*.wav",),
    ),
}


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


@pytest.fixture
def place(tmp_path, content) -> Iterator[Path]:
    """A folder with `share`, where `content` is mounted, and `disk`, which is small."""
    for name in ("share", "disk"):
        (tmp_path / name).mkdir()
    (tmp_path / "content").symlink_to(content)
    try:
        mount("--bind", content, tmp_path / "share")
        mount("-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", tmp_path / "disk")
    except (OSError, subprocess.CalledProcessError):
        unmount(tmp_path / "share")
        pytest.skip("only root may mount")
    yield tmp_path
    for name in ("share", "disk"):
        unmount(tmp_path / name)


@contextlib.contextmanager
def full(place: Path) -> Iterator[None]:
    """The disk is full while the block runs."""
    filler = place / "disk" / "filler"
    try:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        yield
    finally:
        filler.unlink(missing_ok=True)


@contextlib.contextmanager
def gone(place: Path) -> Iterator[None]:
    """Nothing is mounted at the share while the block runs."""
    unmount(place / "share")
    try:
        yield
    finally:
        mount("--bind", (place / "content").resolve(), place / "share")


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> Path:
    """videos/, clips/ and encoded/ made of them, model/ and prompts.txt"""
    content = Path(os.environ.get("CONTENT") or tmp_path_factory.mktemp("content"))
    if (content / "encoded" / "manifest.json").is_file():
        return content
    content.mkdir(exist_ok=True)
    (content / "videos").mkdir(exist_ok=True)
    for index in range(NUM_FILES):
        sound, pictures = noise(6, 8000, seed=index), numbered_pictures(6, first=100)
        write_media(content / "videos" / f"{index:02d}.mkv", sound=sound, pictures=pictures)
    write_tiny_model(content / "model")
    (content / "prompts.txt").write_text("\n".join(f"rain {index}|rain-{index}" for index in range(NUM_PROMPTS)))
    run_to_its_end(
        ["diffaudio", "prepare", content / "videos", "-o", content / "clips", *SMALL], content.parent / "log"
    )
    encode = ["diffaudio", "encode", content / "clips", "-o", content / "encoded", "--model", content / "model"]
    run_to_its_end(encode, content.parent / "log")
    return content


def wait(process: Any) -> int | None:
    """The exit status; None where it takes too long."""
    process.join(TIMEOUT_S)
    return process.exitcode


def run_to_its_end(command: list[str | Path], log: Path) -> float:
    """Seconds that it took; it has to end well."""
    began = time.monotonic()
    assert wait(start_preloaded(command, log)) == 0, log.read_text()[-5000:]
    return time.monotonic() - began


def compared(out: Path, command: Command) -> dict[str, bytes]:
    found = {path.relative_to(out).as_posix(): path for pattern in command.compared for path in out.glob(pattern)}
    assert found
    return {name: path.read_bytes() for name, path in found.items()}


def disturb(command: Command, place: Path, out: Path, failure, after_s: float, log: Path) -> int | None:
    """The status of a run in which a failure happens after some time, and lasts until it has ended."""
    log.write_bytes(b"")
    process = start_preloaded(command.arguments(place / "share", out), log)
    deadline = time.monotonic() + after_s
    while process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    with failure(place):
        status = wait(process)
    return status


@pytest.mark.benchmark
@pytest.mark.parametrize("failure", [full, gone], ids=["full disk", "share gone"])
@pytest.mark.parametrize("name", COMMANDS)
def test_after_a_failure_of_the_place_running_again_gives_the_undisturbed_result(place, name, failure):
    rng, log, command = random.Random(f"{SEED} {name} {failure.__name__}"), place / "log", KNOWN[name]
    took_s = run_to_its_end(command.arguments(place / "share", place / "undisturbed"), log)
    wanted = compared(place / "undisturbed", command)
    statuses: list[int | None] = []
    for index in range(TIMES):
        out, after_s = place / "disk" / f"out-{index}", rng.uniform(0, took_s)
        status = disturb(command, place, out, failure, after_s, log)
        said = log.read_text()
        print(f"{name}, {failure.__name__} after {after_s:.1f} s: status {status}; {said.strip()[-200:]}", flush=True)
        assert status in (0, 2) and "Traceback" not in said, said[-5000:]
        statuses.append(status)
        run_to_its_end(command.arguments(place / "share", out), log)
        assert compared(out, command) == wanted
        subprocess.run(["rm", "-rf", str(out)], check=True)
    print(f"{name}, {failure.__name__}: {len(statuses)} times, {statuses.count(2)} hit, undisturbed {took_s:.1f} s")


def test_a_disk_that_is_full_says_so(place):
    with full(place), pytest.raises(OSError) as raised:
        (place / "disk" / "more").write_bytes(bytes(1 << 16))
    assert raised.value.errno == errno.ENOSPC
