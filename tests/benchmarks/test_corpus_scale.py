"""A corpus of 100,000 small clips from media files to batches: what a row takes, in time and memory, stays flat.

Run with `uv run pytest tests/benchmarks/test_corpus_scale.py -m benchmark -s`; ROWS=1000 in the environment tries it.
Fifty tiny files stand under all the names, as hard links, so that they cost no space; finding duplicates, which would
leave fifty clips, has its own measurement.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from fakes import FakeAutoencoder, FakeClip
from media import noise, numbered_pictures, write_media

from diffaudio.corpus import latent_shards, store
from diffaudio.corpus.datasets.clip_order import ClipOrder
from diffaudio.corpus.datasets.latents import LatentDataset, draw_batch
from diffaudio.corpus.encode.run import encode
from diffaudio.corpus.prepare.run import prepare
from diffaudio.corpus.prepare.settings import PrepareSettings
from diffaudio.seeding import BatchDraws

ROWS = int(os.environ.get("ROWS", "100000"))
SETTINGS = PrepareSettings(
    clip_s=0.5, min_clip_s=0.4, sample_rate=8000, frames_per_clip=1, max_duplicate_distance=None
)  # fmt: skip


def private_mb(process: psutil.Process) -> float:
    """Memory of a process without the pages of files, which the system may take back."""
    try:
        memory = process.memory_info()
        return (memory.rss - memory.shared) / 1e6
    except psutil.Error:
        return 0.0


def computed_s(process: psutil.Process) -> float:
    """Seconds that a process and its children, those that ended too, have computed."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            times = one.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
        total += times.children_user + times.children_system if one == process else 0.0
    return total


class Watch:
    """What each tenth of a run took for a row in time and computing, and the memory of its largest processes."""

    def __init__(self, name: str) -> None:
        self.name, self.tenths, self._process = name, list[tuple[float, ...]](), psutil.Process()
        self._rows, self._child_mb, self._begin = 0, 0.0, self._now()

    def _now(self) -> tuple[float, float]:
        return time.perf_counter(), computed_s(self._process)

    def see(self, rows: int) -> None:
        self._child_mb = max([self._child_mb, *map(private_mb, self._process.children(recursive=True))])
        if rows >= (len(self.tenths) + 1) * ROWS / 10:
            now = self._now()
            spent = [1e3 * (end - begin) / (rows - self._rows) for begin, end in zip(self._begin, now, strict=True)]
            self.tenths.append((*spent, private_mb(self._process), self._child_mb))
            self._begin, self._rows, self._child_mb = now, rows, 0.0

    def report(self) -> None:
        print(f"\n{self.name}, each tenth")
        names = ("ms a row", "ms of computing", "MB of the process", "MB of its largest child")
        for name, values in zip(names, zip(*self.tenths, strict=True), strict=True):
            print(f"  {name:24}" + " ".join(f"{value:7.2f}" for value in values))
        _, computed, own, child = (np.array(of) for of in zip(*self.tenths, strict=True))
        assert np.median(computed[-3:]) < 1.5 * np.median(computed[:3])
        for memory in (own, child):
            assert memory[-3:].mean() < memory[:3].mean() + 100


@contextmanager
def watched(name: str, out: Path, kind: str) -> Iterator[None]:
    """Looks twice a second how many rows of `out` are finished."""
    watch, done = Watch(name), threading.Event()

    def look() -> None:
        counted: dict[Path, int] = {}
        while not done.wait(0.5):
            for part in store.part_files(out, kind):
                if part not in counted:
                    counted[part] = (latent_shards if kind == "latents" else store).count_rows(part)[0]
            watch.see(sum(counted.values()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    watch.see(ROWS)
    watch.report()


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(50):
        sound = noise(0.5, 8000, seed=number)
        write_media(folder / f"{number:06d}.mkv", sound=sound, pictures=numbered_pictures(0.5, size=(32, 32)))
    for number in range(50, ROWS):
        target = folder / f"{number // 1000:03d}/{number:06d}.mkv"
        target.parent.mkdir(exist_ok=True)
        os.link(folder / f"{number % 50:06d}.mkv", target)
    return folder


@pytest.mark.benchmark
def test_time_and_memory_of_a_row_stay_flat_over_a_hundred_thousand(videos, tmp_path):
    torch.set_num_threads(1)
    with watched("prepare", tmp_path / "clips", "clips"):
        report = prepare([videos], tmp_path / "clips", SETTINGS, num_workers=os.cpu_count() or 1, progress=False)
    assert report.clips == ROWS
    begin = time.perf_counter()
    prepare([videos], tmp_path / "clips", SETTINGS, progress=False)
    print(f"\nprepare once more, with nothing to do: {time.perf_counter() - begin:.1f} s")
    with watched("encode", tmp_path / "latents", "latents"):
        encode(tmp_path / "clips", tmp_path / "latents", autoencoder=FakeAutoencoder(), clip=FakeClip(), progress=False)

    begin, before_mb = time.perf_counter(), private_mb(psutil.Process())
    dataset = LatentDataset(tmp_path / "latents", held_out=0.01)
    grown_mb = private_mb(psutil.Process()) - before_mb
    print(f"\nopening {len(dataset)} clips: {time.perf_counter() - begin:.1f} s, {grown_mb:.0f} MB")
    order, watch = ClipOrder((len(dataset),)), Watch("reading")
    for place in range(0, ROWS, 100):
        draw_batch(dataset, order.clips(place, 100), num_frames=40, draws=BatchDraws(0, place, 100))
        watch.see(place + 100)
    watch.report()
    sizes_mb = {n: sum(p.stat().st_size for p in (tmp_path / n).iterdir()) / 1e6 for n in ("clips", "latents")}
    print(f"\nfiles: {len(store.part_files(tmp_path / 'clips', 'clips'))} parts; MB: {sizes_mb}")
