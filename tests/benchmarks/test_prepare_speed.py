"""How fast `prepare` is against PyAV alone, and how much memory it takes.

    pytest tests/benchmarks/test_prepare_speed.py -m benchmark -s

VIDEOS=folder in the environment takes real videos instead of drawn ones, CLIPS=900 that many, CORES=2 that many cores.
Bare PyAV opens each file and decodes all of its sound and pictures, and does nothing with them: in one process with as
many threads as there are cores, and in a process a core with one thread each, which is faster for small files.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from media import noise, numbered_pictures, write_huge_picture, write_media
from PIL import Image

from diffaudio.corpus.prepare.fragments import Fragment
from diffaudio.corpus.prepare.run import prepare
from diffaudio.corpus.prepare.settings import PrepareSettings
from diffaudio.corpus.prepare.sources import Media
from diffaudio.corpus.prepare.worker_pool import cut_in_workers
from diffaudio.corpus.synthetic.run import synthesise_corpus

CORES, CLIPS = int(os.environ.get("CORES", "2")), int(os.environ.get("CLIPS", "300"))
ROUNDS = 3

pytestmark = pytest.mark.benchmark


def decode(path: str, num_threads: int = 1) -> float:
    """Seconds of media."""
    with av.open(path) as container:
        streams = [*container.streams.audio[:1], *container.streams.video[:1]]
        for stream in streams:
            stream.codec_context.thread_count = num_threads
            if num_threads > 1:
                stream.thread_type = "AUTO"
        for packet in container.demux(streams):
            packet.decode()
        return (container.duration or 0) / av.time_base


def fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest round: what else the machine does makes the others slower."""
    took = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return min(took)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    if given := os.environ.get("VIDEOS"):
        return sorted(str(path) for path in Path(given).rglob("*.mp4"))[:CLIPS]
    folder = tmp_path_factory.mktemp("drawn")
    synthesise_corpus(folder, CLIPS)
    return sorted(str(path) for path in folder.rglob("*.mp4"))


def test_prepare_has_most_of_the_speed_of_bare_decoding(videos, tmp_path):
    seconds = sum(map(decode, videos))
    threads_s = fastest(lambda: [decode(path, CORES) for path in videos])
    with ProcessPoolExecutor(CORES, get_context("spawn")) as pool:
        list(pool.map(decode, videos[:CORES]))
        processes_s = fastest(lambda: list(pool.map(decode, videos, chunksize=8)))
    folders = iter(range(ROUNDS))
    prepare_s = fastest(lambda: prepare(videos, tmp_path / str(next(folders)), num_workers=CORES, progress=False))
    print(f"\n{len(videos)} files, {seconds / 60:.1f} minutes, {CORES} cores; ms a file, times real time:")
    for name, took in (
        ("bare PyAV, threads", threads_s),
        ("bare PyAV, processes", processes_s),
        ("prepare", prepare_s),
    ):
        print(f"{name:22} {1000 * took / len(videos):7.2f} {seconds / took:7.0f}")
    print(
        f"prepare has {threads_s / prepare_s:.0%} of the speed of threads, {processes_s / prepare_s:.0%} of processes"
    )
    assert threads_s / prepare_s >= 0.7


def write_wide(path: Path) -> Path:
    """A minute of eight channels at 192 kHz."""
    film = write_media(path.with_suffix(".mp4"), pictures=numbered_pictures(60))
    with av.open(str(film)) as source, av.open(str(path), "w") as container:
        video = container.add_stream_from_template(source.streams.video[0])
        audio = container.add_stream("flac", rate=192000, layout="7.1")
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                container.mux(packet)
        for second in range(60):
            frame = av.AudioFrame.from_ndarray(
                (noise(1, 192000, channels=8).T.reshape(1, -1) * 32767).astype(np.int16), format="s16", layout="7.1"
            )
            frame.sample_rate, frame.pts, frame.time_base = 192000, second * 192000, Fraction(1, 192000)
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return path


def write_large(folder: Path) -> list[Path]:
    """Files that are large, each in its way: pixels a picture, hours, sample rate and channels."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (2160, 3840, 3), dtype=np.uint8))
    hours = {"sound": np.tile(noise(60, 8000), 180), "pictures": [Image.new("RGB", (64, 48), (90, 90, 90))] * 43200}
    return [
        write_media(folder / "4k.mp4", sound=noise(3, 44100), pictures=[picture] * 12),
        write_media(folder / "3_hours.mkv", **hours),
        write_huge_picture(folder / "huge_picture.mkv"),
        write_wide(folder / "192_khz.mkv"),
    ]


def test_memory_stays_below_its_bound_whatever_the_file(tmp_path):
    largest = [0]

    def watch(ended: threading.Event) -> None:
        while not ended.wait(0.01):
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.Error):
                    largest[0] = max(largest[0], child.memory_info().rss)

    ended = threading.Event()
    threading.Thread(target=watch, args=(ended,), daemon=True).start()
    for path in write_large(tmp_path):
        largest[0], began = 0, time.perf_counter()
        media = [Media(path.name, str(path))]
        (file,) = cut_in_workers(media, PrepareSettings(), num_workers=1, folder=tmp_path / "work")
        took_s = time.perf_counter() - began
        fragment = Fragment.read(file.fragment)
        table, reasons = fragment.clips, fragment.dropped["reason"].to_pylist()
        print(f"\n{path.name}: {table.num_rows} clips, {took_s:.1f} s, {largest[0] >> 20} MB, dropped: {reasons}")
        assert table.num_rows and reasons == []
        assert largest[0] < 1.5e9
    ended.set()
