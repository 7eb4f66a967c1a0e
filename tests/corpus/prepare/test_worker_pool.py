"""Child processes that cut, and what becomes of those that a file kills."""

import errno
import os
import shutil
import subprocess
import sys
import time
import zipfile
from multiprocessing import resource_tracker
from pathlib import Path

import deadly
import psutil
import pytest
from damage import damaged
from media import CODECS, noise, numbered_pictures, write_huge_picture, write_media

from diffaudio.corpus.prepare.fragments import Fragment, remove_fragment
from diffaudio.corpus.prepare.settings import PrepareSettings
from diffaudio.corpus.prepare.sources import Media
from diffaudio.corpus.prepare.worker_pool import WorkerLimits, cut_in_workers
from diffaudio.media.audio import decode_flac

SMALL = PrepareSettings(clip_s=1.0, min_clip_s=0.5, sample_rate=8000, frames_per_clip=1, max_duplicate_distance=None)
NUM_DAMAGED = int(os.environ.get("DAMAGED", "36"))


def cut_all(
    media: list[Media], folder: Path, *, num_workers: int = 1, limits: WorkerLimits | None = None
) -> list[tuple[Media, list[dict], list[dict], str | None]]:
    """Each file with its rows, what was dropped, and why it could not be read now."""
    found = []
    for item, path, unavailable in cut_in_workers(media, SMALL, num_workers=num_workers, folder=folder, limits=limits):
        rows, dropped = [], []
        if unavailable is None:
            fragment = Fragment.read(path)
            rows, dropped = fragment.clips.to_pylist(), fragment.dropped.to_pylist()
        found.append((item, rows, dropped, unavailable))
        remove_fragment(path)
    assert list(folder.iterdir()) == []
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two seconds each, in every container."""
    folder = tmp_path_factory.mktemp("workers")
    for suffix, (_, _, rate) in CODECS.items():
        write_media(folder / f"film{suffix}", sound=noise(2, rate), pictures=numbered_pictures(2))
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def cut(files, tmp_path_factory):
    """By two workers, with files among them that end their worker or have too many pixels for it."""
    folder = tmp_path_factory.mktemp("cut")
    huge = write_huge_picture(folder / "huge.mkv")
    media = [Media(path.name, str(path)) for path in files]
    (folder / "list.txt").touch()  # a folder that is empty looks like a share that is not mounted
    once = shutil.copy(files[0], folder / "once.mkv")
    media[2:2] = [
        Media("crash", deadly.Crash("crash")),
        Media("huge", str(huge)),
        Media("none", str(folder / "none"), existed=False),
        Media("killed", deadly.Killed("killed")),
        Media("once", deadly.KilledOnce(once)),
    ]
    limits = WorkerLimits(max_memory_mb=300)
    return media, cut_all(media, folder / "work", num_workers=2, limits=limits)


def test_files_come_in_the_order_given_whatever_becomes_of_their_workers(cut):
    media, found = cut
    assert [item.name for item, *_ in found] == [item.name for item in media]


def test_a_file_that_ends_its_worker_costs_itself_alone(cut, files):
    dropped = {item.name: rows for item, _, rows, _ in cut[1] if rows}
    assert {name: (row["reason"], row["detail"]) for name, (row,) in dropped.items()} == {
        "crash": ("crashed", "the decoder ended the worker (SIGABRT)"),
        "huge": ("out_of_memory", dropped["huge"][0]["detail"]),
        "none": ("unreadable", "there is no such file"),
    }
    names = {path.name for path in files} | {"once"}
    assert all(len(rows) == 2 for item, rows, *_ in cut[1] if item.name in names)


def test_nothing_is_recorded_of_a_file_that_the_place_failed_and_not_the_file(cut):
    unavailable = {item.name: why for item, _, _, why in cut[1] if why}
    assert unavailable == {
        "killed": "the system killed its worker twice; if memory is short, use fewer workers",
    }
    assert all(rows == dropped == [] for _, rows, dropped, why in cut[1] if why)


def test_memory_that_the_machine_refuses_is_no_failure_of_the_file(tmp_path):
    huge = write_huge_picture(tmp_path / "huge.mkv")
    media = [Media("starved", deadly.Starved(huge))]
    ((_, rows, dropped, why),) = cut_all(media, tmp_path / "work")
    assert rows == dropped == []
    assert why and why.startswith("the machine refuses memory that a worker may have; free some, or use fewer workers")
    ((_, rows, dropped, why),) = cut_all([Media("huge", str(huge))], tmp_path / "work")
    assert why is None and "out_of_memory" not in {row["reason"] for row in dropped}


def test_rows_do_not_depend_on_which_worker_makes_them(cut, files, tmp_path):
    here = cut_all([Media(path.name, str(path)) for path in files], tmp_path / "work")
    there = [found for found in cut[1] if found[0].path in {str(path) for path in files}]
    assert here == there


def test_a_remote_file_without_an_end_is_given_up(tmp_path):
    """Nobody writes into this pipe."""
    os.mkfifo(tmp_path / "endless.mp4")
    media = [Media("endless", f"file://{tmp_path}/endless.mp4")]
    began = time.monotonic()
    ((_, rows, dropped, why),) = cut_all(media, tmp_path / "work", limits=WorkerLimits(idle_timeout_s=2.0))
    assert rows == dropped == [] and why == "nothing came of it for 2 s; is what it lies on out of reach?"
    assert time.monotonic() - began < 120


def test_a_decoder_without_an_end_costs_the_file_and_a_share_that_does_not_answer_is_tried_again(tmp_path):
    (tmp_path / "list.txt").touch()
    limits = WorkerLimits(timeout_s=0.5, idle_timeout_s=300)
    ((_, _, (row,), why),) = cut_all([Media("a", deadly.Endless("a"))], tmp_path / "work", limits=limits)
    assert why is None and row["reason"] == "timeout"
    assert row["detail"] == "took 0.5 s of processor time without progress, or too long for its size"
    limits = WorkerLimits(timeout_s=300, idle_timeout_s=2.0)
    ((_, _, dropped, why),) = cut_all([Media("a", deadly.Waiting("a"))], tmp_path / "work", limits=limits)
    assert dropped == [] and why == "nothing came of it for 2 s; is what it lies on out of reach?"


def test_a_disk_that_is_full_ends_the_run_and_drops_no_file(files, tmp_path):
    media = [Media("a", str(files[0])), Media("full", deadly.Full(files[1])), Media("c", str(files[2]))]
    found = []
    with pytest.raises(OSError, match="No space left on device") as raised:
        found.extend(cut_in_workers(media, SMALL, num_workers=1, folder=tmp_path / "work"))
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "work"))
    assert [one.unavailable for one in found] == [None]


def test_a_worker_that_dies_without_a_file_is_replaced(files, tmp_path):
    media = [Media(f"{index}-{path.name}", str(path)) for index in range(20) for path in files]
    names = []
    for one in cut_in_workers(media, SMALL, num_workers=1, folder=tmp_path / "work"):
        names.append(one.media.name)
        if len(names) in (10, 20):  # with files under way, and others finished
            workers_of(os.getpid())[0].kill()
    assert names == [one.name for one in media]


def test_remote_files_are_fetched_cut_and_forgotten(files, tmp_path):
    with zipfile.ZipFile(tmp_path / "films.zip", "w") as archive:
        archive.write(files[0], "film.mkv")
        archive.writestr("large.mkv", bytes(3 << 20))
    address = f"zip://film.mkv::{tmp_path}/films.zip"
    missing, large = address.replace("film.mkv", "none.mkv"), address.replace("film.mkv", "large.mkv")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "films.zip").read_bytes()[:-100])
    media = [
        Media("a", address),
        Media("listed", missing, existed=False),
        Media("found", missing),
        Media("damaged", f"zip://film.mkv::{tmp_path}/cut.zip"),
        Media("large", large),
    ]
    found = cut_all(media, tmp_path / "work", limits=WorkerLimits(max_remote_mb=2))
    assert len(found[0][1]) == 2, found[0][2]
    dropped = {item.name: (rows[0]["reason"], rows[0]["detail"]) for item, _, rows, _ in found if rows}
    assert {name: reason for name, (reason, _) in dropped.items()} == {
        "listed": "unreadable",
        "damaged": "unreadable",
        "large": "too_large",
    }
    assert "cannot be read" in dropped["listed"][1] and "not a zip file" in dropped["damaged"][1]
    assert dropped["large"][1] == "has more than the 2 MB that a remote file may have"
    assert [(item.name, bool(why)) for item, *_, why in found if why] == [("found", True)]


def test_damaged_files_neither_crash_nor_hang_a_worker(files, tmp_path):
    """DAMAGED=700 in the environment takes some minutes."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    whole = [path.read_bytes() for path in files]
    media = []
    for seed in range(NUM_DAMAGED):
        path = folder / f"{seed:04d}{files[seed % len(files)].suffix}"
        path.write_bytes(damaged(whole[seed % len(files)], whole[seed // len(files) % len(files)], seed))
        media.append(Media(path.name, str(path)))
    found = cut_all(media, tmp_path / "work", limits=WorkerLimits(timeout_s=60))
    assert all(why is None for *_, why in found)
    dropped = [row for _, _, rows, _ in found for row in rows]
    assert {row["reason"] for row in dropped}.isdisjoint({"crashed", "timeout"})
    assert len(dropped) > NUM_DAMAGED / 10  # much of it is damaged indeed
    rows = [row for _, some, *_ in found for row in some]
    assert len(rows) > NUM_DAMAGED / 4
    for row in rows:
        waveform, rate = decode_flac(row["audio"])
        assert rate == 8000 and waveform.shape == (1, round(row["duration_s"] * 8000))


ORPHANS = """
import sys
from pathlib import Path
from diffaudio.corpus.prepare.sources import Media
from diffaudio.corpus.prepare.settings import PrepareSettings
from diffaudio.corpus.prepare.worker_pool import cut_in_workers
media = [Media(str(index), f"file://{sys.argv[1]}") for index in range(2)]
list(cut_in_workers(media, PrepareSettings(), num_workers=2, folder=Path(sys.argv[2])))
"""


def workers_of(process: int) -> list[psutil.Process]:
    """Its children but for the one that `multiprocessing` keeps for itself."""
    return [
        child for child in psutil.Process(process).children() if "resource_tracker" not in " ".join(child.cmdline())
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
def test_workers_end_with_their_parent_whatever_they_are_doing(tmp_path):
    os.mkfifo(tmp_path / "endless.mp4")
    command = [sys.executable, "-c", ORPHANS, str(tmp_path / "endless.mp4"), str(tmp_path / "work")]
    parent = subprocess.Popen(command)
    try:
        children: list[psutil.Process] = []
        deadline = time.monotonic() + 120
        while len(children) < 2:
            assert parent.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
            children = workers_of(parent.pid)
    finally:
        parent.kill()
        parent.wait()
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert len(gone) == 2 and alive == []


def test_no_worker_is_left_when_nobody_takes_the_rest(files, tmp_path):
    media = [Media(path.name, str(path)) for path in files] * 20
    before = set(workers_of(os.getpid()))
    cut = cut_in_workers(media, SMALL, num_workers=1, folder=tmp_path / "work")
    assert next(cut)[0].name == media[0].name
    assert set(workers_of(os.getpid())) - before
    cut.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert set(workers_of(os.getpid())) - before == set()


WORKER = """
import os, pickle, sys
from diffaudio.corpus.prepare.worker import WorkerLimits, start_worker
assert "numpy" not in sys.modules  # which reads the number of threads when it is loaded
settings = pickle.dumps(())
start_worker(os.getppid(), settings, WorkerLimits(max_memory_mb=700))
loaded = sorted({"torch", "pandas", "matplotlib"} & set(sys.modules))
os.write(2, repr((os.environ["OMP_NUM_THREADS"], loaded)).encode())
"""


def test_a_worker_loads_neither_torch_nor_pandas_and_has_one_thread():
    done = subprocess.run([sys.executable, "-c", WORKER], capture_output=True, text=True, check=True)
    assert done.stderr == "('1', [])"


def test_limits_out_of_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match="timeout_s is 0; it must be above 0"):
        WorkerLimits(timeout_s=0)
    with pytest.raises(ValueError, match="max_memory_mb is 100; a worker needs at least 256"):
        WorkerLimits(max_memory_mb=100)
    with pytest.raises(ValueError, match="num_workers is 0; it must be at least 1"):
        next(iter(cut_in_workers([], SMALL, num_workers=0, folder=tmp_path)))


def test_workers_that_cannot_start_are_an_error_and_no_file_is_dropped(files, tmp_path, monkeypatch):
    resource_tracker.ensure_running()  # which is a process of the same program
    monkeypatch.setattr("multiprocessing.spawn._python_exe", b"/bin/false")
    with pytest.raises(RuntimeError, match="a worker of `diffaudio prepare` does not start"):
        cut_all([Media("a", str(files[0]))], tmp_path / "work")
