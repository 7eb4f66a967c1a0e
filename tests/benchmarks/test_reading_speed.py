"""How fast training batches are read from a warm cache, and that memory does not hold the corpus.

Run with `uv run pytest tests/benchmarks/test_reading_speed.py -m benchmark -s`. A row is a clip of 10 s at 128 channels
and 25 Hz with four embeddings of 512; of each, 5 s and one embedding are drawn.
"""

import os
import resource
import time

import numpy as np
import pytest
import torch

from diffaudio.corpus import latent_shards, store
from diffaudio.corpus.datasets.clip_order import ClipOrder
from diffaudio.corpus.datasets.latents import LatentDataset, draw_batch
from diffaudio.seeding import BatchDraws

PARTS, ROWS_PER_PART = 125, 64
CHANNELS, FRAMES, DIM, PICTURES, CROP = 128, 250, 512, 4, 125


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    random = np.random.default_rng(0)
    latents = random.standard_normal((ROWS_PER_PART, CHANNELS * FRAMES)).astype(np.float16)
    embeddings = random.standard_normal((ROWS_PER_PART, PICTURES, DIM)).astype(np.float16)
    for part in range(PARTS):
        rows = [
            {
                "id": f"{part}-{row}", "source": f"{part}-{row}.mp4", "start_s": 0.0, "duration_s": 10.0, "copy": 0,
                "num_latent_frames": FRAMES, "num_pictures": PICTURES,
                "latents": latents[row], "embeddings": list(embeddings[row]),
            }
            for row in range(ROWS_PER_PART)
        ]  # fmt: skip
        latent_shards.write_part(store.part_path(folder, "latents", part), rows, {})
    made_by = {"name": "made up", "latent_channels": CHANNELS, "latent_rate": 25.0}
    manifest = {"format": "diffaudio-latents", "version": 3, "autoencoder": made_by, "finished": True}
    store.write_manifest(folder, manifest | {"clip": {"name": "made up", "embedding_dim": DIM}})
    return folder


def resident_mb() -> float:
    """Memory of this process alone, without the files' pages that it shares with the system's cache."""
    with open("/proc/self/statm") as file:
        _, resident, shared, *_ = map(int, file.read().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.benchmark
@pytest.mark.parametrize("batch_size", [32, 256])
def test_twenty_thousand_rows_a_second_come_from_a_warm_cache_on_one_core(folder, batch_size):
    torch.set_num_threads(1)
    size_mb = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    for path in store.part_files(folder, "latents"):
        path.read_bytes()  # into the cache
    before_mb, begin = resident_mb(), time.perf_counter()
    dataset = LatentDataset(folder)
    open_s = time.perf_counter() - begin
    order, steps, rates = ClipOrder(dataset.sizes), 20_000 // batch_size, []
    for repeat in range(6):
        begin, used = time.perf_counter(), time.process_time()
        for step in range(repeat * steps, (repeat + 1) * steps):
            clips = order.clips(step * batch_size, batch_size)
            latents, embeddings = draw_batch(dataset, clips, num_frames=CROP, draws=BatchDraws(0, step, len(clips)))
        elapsed_s, used_s = time.perf_counter() - begin, time.process_time() - used
        rates.append((steps * batch_size / elapsed_s, steps * batch_size / used_s))
    assert latents.shape == (batch_size, CHANNELS, CROP) and latents.dtype == torch.float32
    assert embeddings.shape == (batch_size, DIM)
    (best, per_core), grown_mb = (max(of) for of in zip(*rates, strict=True)), resident_mb() - before_mb
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"\n{len(dataset)} clips, {size_mb:.0f} MB in {PARTS} parts, opened in {open_s:.2f} s")
    print(f"  batches of {batch_size}: {best:,.0f} rows/s, {per_core:,.0f} for each second of computing")
    print(f"  memory grew by {grown_mb:.0f} MB; its peak with the files' pages was {peak_mb:.0f} MB")
    assert per_core >= 20_000  # one thread, which waits for nothing: by its own clock, other programs aside
    assert grown_mb < 0.3 * size_mb
