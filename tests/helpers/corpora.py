"""Small corpora written row by row, right in every part, for tests that look at corpora or break them."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile
from PIL import Image

from diffaudio.corpus import latent_shards, store
from diffaudio.corpus.prepare.fingerprints import fingerprint

RATE = 8000
CLIP_SETTINGS = {
    "clip_s": 2.0,
    "sample_rate": RATE,
    "channels": 1,
    "frames_per_clip": 2,
    "frame_size": 32,
    "min_level_db": -60.0,
    "max_duplicate_distance": 0.2,
    "keep_dropped": True,
}
ENCODED_BY = {
    "autoencoder": {"name": "fake", "latent_channels": 4, "latent_rate": 10.0},
    "clip": {"name": "colours", "embedding_dim": 3},
    "settings": {"peak": 0.7},
}


def sine(frequency: float, gain: float = 0.5, duration_s: float = 1.0) -> np.ndarray:
    """[samples]"""
    return gain * np.sin(2 * np.pi * frequency * np.arange(round(duration_s * RATE)) / RATE)


def flac(samples: np.ndarray, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def jpeg(colour: tuple[int, int, int] = (200, 60, 20), size: tuple[int, int] = (32, 24)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG")
    return file.getvalue()


def clip_row(source: str, index: int = 0, samples: np.ndarray | None = None, **changes: Any) -> dict[str, Any]:
    """A row of clips: a second of `source`, the `index`-th."""
    samples = sine(440) if samples is None else samples
    start_s, duration_s = float(index), len(samples) / RATE
    row = {
        "id": f"{source}-{index}",
        "source": source,
        "start_s": start_s,
        "duration_s": duration_s,
        "caption": None,
        "sample_rate": RATE,
        "audio": flac(samples),
        "frames": [{"time_s": start_s + part * duration_s, "image": jpeg()} for part in (0.25, 0.75)],
        "fingerprint": fingerprint(samples, RATE),
        "reason": None,
    }
    return row | changes


def latent_row(source: str, copy: int = 0, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A row of latents: a second of noise in 4 channels, and two embeddings."""
    rng = np.random.default_rng(seed)
    embeddings = rng.standard_normal((2, 3))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    row = {
        "id": source,
        "source": source,
        "start_s": 0.0,
        "duration_s": 1.0,
        "caption": None,
        "copy": copy,
        "num_latent_frames": 10,
        "num_pictures": 2,
        "latents": rng.standard_normal(40).astype(np.float16),
        "embeddings": list(embeddings.astype(np.float16)),
    }
    return row | changes


def dropped_row(source: str, reason: str = "silent", detail: str = "loudest 0.1 s at -80 dB") -> dict[str, Any]:
    return {"source": source, "start_s": 0.0, "duration_s": 1.0, "reason": reason, "detail": detail}


def write_clips_part(path: Path, rows: list[dict[str, Any]], note: dict[str, Any], *, rows_per_group: int = 2) -> None:
    """Write a part of clips."""
    tables = [pa.Table.from_pylist(rows, schema=store.CLIP_SCHEMA)]
    store.write_tables(path, tables, note, rows_per_group=rows_per_group)


def read_rows(folder: Path, *, rejected: bool = False) -> list[dict[str, Any]]:
    """All rows of a corpus of either kind."""
    latents = [latent_shards.read_batches(part) for part in store.part_files(folder, "latents")]
    parts = store.part_files(folder, "clips")
    clips = [store.read_groups(part, rejected=rejected) for part in parts]
    rows = [row for of_part in latents for batch in of_part for row in batch.to_pylist()]
    return rows + [row for of_part in clips for group in of_part for row in group]


def write_clips_corpus(
    folder: Path, parts: list[list[dict[str, Any]]], dropped: list[dict[str, Any]] = (), *, finished: bool = True
) -> Path:
    """Write a corpus of clips; what was dropped is noted in the first part."""
    folder.mkdir(parents=True)
    for index, rows in enumerate(parts):
        of_part = list(dropped) if index == 0 else []
        sources = dict.fromkeys(row["source"] for row in [*rows, *of_part])
        part = store.part_path(folder, "clips", index)
        note = {"sources": [source for source in sources if source]}
        note["dropped"] = store.write_dropped(part, [pa.Table.from_pylist(of_part, store.DROPPED_SCHEMA)])
        write_clips_part(part, rows, note)
    rows = [row for part in parts for row in part]
    kept = [row for row in rows if row["reason"] is None]
    totals = {"clips": len(kept), "seconds": sum(row["duration_s"] for row in kept), "dropped": len(dropped)}
    store.write_dropped_csv(folder, store.part_files(folder, "clips"))
    head = {"format": "diffaudio-clips", "version": 3, "settings": CLIP_SETTINGS}
    store.write_manifest(folder, head | totals | {"rejected": len(rows) - len(kept), "finished": finished})
    return folder


def write_latents_corpus(folder: Path, parts: list[list[dict[str, Any]]]) -> Path:
    """Write an encoded corpus."""
    folder.mkdir(parents=True)
    for index, rows in enumerate(parts):
        note = {"clips": f"clips-{index:05d}.parquet"}
        latent_shards.write_part(store.part_path(folder, "latents", index), rows, note, rows_per_batch=2)
    rows = [row for part in parts for row in part]
    totals = {"clips": len(rows), "seconds": sum(row["duration_s"] for row in rows), "finished": True}
    store.write_manifest(folder, {"format": "diffaudio-latents", "version": 3} | ENCODED_BY | totals)
    return folder


def dies(*_: Any, **__: Any) -> None:
    """Ends the process that calls it, as a crash does."""
    os._exit(1)
