"""Child processes that cut, and what becomes of those that a file kills."""

import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import psutil
import pytest
from damage import damaged
from media import CODECS, noise, numbered_pictures, write_huge_picture, write_media

from diffaudio.corpus.prepare.fragments import read_fragment
from diffaudio.corpus.prepare.settings import PrepareSettings
from diffaudio.corpus.prepare.sources import Media
from diffaudio.corpus.prepare.worker_pool import WorkerLimits, cut_in_workers
from diffaudio.media.audio import decode_flac

SMALL = PrepareSettings(clip_s=1.0, min_clip_s=0.5, sample_rate=8000, frames_per_clip=1, max_duplicate_distance=None)
NUM_DAMAGED = int(os.environ.get("DAMAGED", "36"))


class Deadly(str):
    """A path that ends the process which is told of it."""

    def __reduce__(self):
        return os.abort, ()


def cut_all(
    media: list[Media], folder: Path, *, num_workers: int = 1, limits: WorkerLimits | None = None
) -> list[tuple[Media, list[dict], list[dict]]]:
    """Each file with its rows, and what was dropped."""
    found = []
    for item, path in cut_in_workers(media, SMALL, num_workers=num_workers, folder=folder, limits=limits):
        table, note = read_fragment(path)
        assert note["sources"] == [item.name]
        found.append((item, table.to_pylist(), note["dropped"]))
        path.unlink()
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
    """By two workers, with a file among them that kills its worker and one that has too many pixels for it."""
    folder = tmp_path_factory.mktemp("cut")
    huge = write_huge_picture(folder / "huge.mkv")
    media = [Media(path.name, str(path)) for path in files]
    media[2:2] = [Media("deadly", Deadly("deadly")), Media("huge", str(huge)), Media("none", str(folder / "none"))]
    limits = WorkerLimits(max_memory_mb=300)
    return media, cut_all(media, folder / "work", num_workers=2, limits=limits)


def test_files_come_in_the_order_given_whatever_becomes_of_their_workers(cut):
    media, found = cut
    assert [item.name for item, _, _ in found] == [item.name for item in media]


def test_a_file_that_kills_its_worker_costs_itself_alone(cut, files):
    dropped = {item.name: reasons for item, _, reasons in cut[1] if reasons}
    assert {name: row["reason"] for name, (row,) in dropped.items()} == {
        "deadly": "crashed",
        "huge": "out_of_memory",
        "none": "unreadable",
    }
    assert dropped["deadly"][0]["detail"] == "the decoder ended the worker (SIGABRT)"
    assert all(len(rows) == 2 for item, rows, _ in cut[1] if item.name in {path.name for path in files})


def test_rows_do_not_depend_on_which_worker_makes_them(cut, files, tmp_path):
    here = cut_all([Media(path.name, str(path)) for path in files], tmp_path / "work")
    there = [(item, rows, dropped) for item, rows, dropped in cut[1] if Path(item.path) in files]
    assert here == there


def test_a_file_without_an_end_is_given_up(tmp_path):
    """Nobody writes into this pipe."""
    os.mkfifo(tmp_path / "endless.mp4")
    media = [Media("endless", f"file://{tmp_path}/endless.mp4")]
    began = time.monotonic()
    ((_, rows, (row,)),) = cut_all(media, tmp_path / "work", limits=WorkerLimits(timeout_s=1.0))
    assert rows == [] and row["reason"] == "timeout" and row["detail"] in ("gave up after 1 s", "gave up after 2 s")
    assert time.monotonic() - began < 120


def test_remote_files_are_fetched_cut_and_forgotten(files, tmp_path):
    with zipfile.ZipFile(tmp_path / "films.zip", "w") as archive:
        archive.write(files[0], "film.mkv")
    address = f"zip://film.mkv::{tmp_path}/films.zip"
    missing = address.replace("film.mkv", "none.mkv")
    found = cut_all([Media("a", address), Media("b", missing)], tmp_path / "work")
    assert len(found[0][1]) == 2, found[0][2]
    assert found[1][2][0]["reason"] == "unreadable"
    assert "cannot be read" in found[1][2][0]["detail"]


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
    dropped = [row for _, _, rows in found for row in rows]
    assert {row["reason"] for row in dropped}.isdisjoint({"crashed", "timeout"})
    assert len(dropped) > NUM_DAMAGED / 10  # much of it is damaged indeed
    rows = [row for _, some, _ in found for row in some]
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
            children = psutil.Process(parent.pid).children()
    finally:
        parent.kill()
        parent.wait()
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert len(gone) == 2 and alive == []


def test_no_worker_is_left_when_nobody_takes_the_rest(files, tmp_path):
    media = [Media(path.name, str(path)) for path in files] * 20
    before = set(psutil.Process().children())
    cut = cut_in_workers(media, SMALL, num_workers=1, folder=tmp_path / "work")
    assert next(cut)[0].name == media[0].name
    assert set(psutil.Process().children()) - before
    cut.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert set(psutil.Process().children()) - before == set()


def test_a_worker_loads_neither_torch_nor_pandas():
    program = "import sys, diffaudio.corpus.prepare.worker; print({'torch', 'pandas', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_limits_out_of_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match="timeout_s is 0; it must be above 0"):
        WorkerLimits(timeout_s=0)
    with pytest.raises(ValueError, match="max_memory_mb is 100; a worker needs at least 256"):
        WorkerLimits(max_memory_mb=100)
    with pytest.raises(ValueError, match="num_workers is 0; it must be at least 1"):
        next(iter(cut_in_workers([], SMALL, num_workers=0, folder=tmp_path)))


def test_workers_that_cannot_start_are_an_error_and_no_file_is_dropped(files, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="a worker of `diffaudio prepare` does not start"):
        cut_all([Media("a", str(files[0]))], tmp_path / "work")
