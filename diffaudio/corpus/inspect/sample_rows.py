"""A random sample of a corpus, drawn by row number before anything is read, and measures of each row."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diffaudio.corpus import latent_shards, store
from diffaudio.corpus.inspect import spectrum
from diffaudio.corpus.snapshot import Corpus
from diffaudio.errors import UserError
from diffaudio.media.audio import decode_flac
from diffaudio.metrics.audio_checks import loudness_lufs

__all__ = ["describe_clip", "describe_latents", "draw_rows", "embedding_statistics"]

ROW_COLUMNS = ("id", "source", "start_s", "duration_s", "caption", "reason", "copy")
MAX_EMBEDDINGS = 1000  # compared pairwise


def draw_rows(corpus: Corpus, number: int, *, seed: int = 0) -> Iterator[Mapping[str, Any]]:
    """A random sample of the rows without repetition, in the order of the corpus; all rows where there are fewer.

    Only row groups that hold one of them are read, one at a time.

    Returns:
        Rows whose latents and embeddings, in an encoded corpus, are arrays [values] and [pictures, dim] float32.

    Raises:
        ValueError: a part is damaged.
    """
    sizes = np.array([_num_rows(part, corpus.kind) for part in corpus.parts], np.int64)
    total = int(sizes.sum())
    drawn = np.sort(np.random.default_rng(seed).choice(total, min(number, total), replace=False)) if total else []
    for part, rows in _grouped(drawn, sizes):
        read = _latent_rows if corpus.kind == "latents" else _clip_rows
        yield from read(corpus.parts[part], rows)


def _num_rows(part: Path, kind: str) -> int:
    if kind == "latents":
        return sum(batch.num_rows for batch in latent_shards.read_batches(part))
    with store.name_damage(part):
        return pq.read_metadata(part).num_rows


def _clip_rows(part: Path, rows: list[int]) -> Iterator[Mapping[str, Any]]:
    with store.name_damage(part), pq.ParquetFile(part) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        for group, rows_of_group in _grouped(rows, sizes):
            table = file.read_row_group(group)
            yield from (table.slice(row, 1).to_pylist()[0] for row in rows_of_group)


def _latent_rows(part: Path, rows: list[int]) -> Iterator[Mapping[str, Any]]:
    batches = list(latent_shards.read_batches(part))
    for number, rows_of_batch in _grouped(rows, [batch.num_rows for batch in batches]):
        for index in rows_of_batch:
            row = batches[number].slice(index, 1)
            with store.name_damage(part):
                described = row.drop_columns(["latents", "embeddings"]).to_pylist()[0]
                described["latents"] = _flat(row["latents"])
                described["embeddings"] = _flat(row["embeddings"]).reshape(len(row["embeddings"][0]), -1)
            yield described


def _grouped(numbers: Iterable[int], sizes: Sequence[int] | np.ndarray) -> Iterator[tuple[int, list[int]]]:
    """Ascending row numbers as (group, row numbers within that group), for consecutive groups of these sizes."""
    ends = np.cumsum(sizes)
    for group, inside in groupby(numbers, key=lambda number: int(np.searchsorted(ends, number, side="right"))):
        yield group, [int(number - ends[group] + sizes[group]) for number in inside]


def _flat(values: pa.Array) -> np.ndarray:
    while pa.types.is_nested(values.type):
        values = values.flatten()  # pyright: ignore
    return values.to_numpy(zero_copy_only=False).astype(np.float32)


def describe_clip(row: Mapping[str, Any], third_octaves_hz: tuple[float, ...]) -> dict[str, Any]:
    """Level and spectrum of a clip, and the light columns of its row.

    Args:
        row: of `store.CLIP_SCHEMA`.
        third_octaves_hz: centre frequencies of third-octave bands.

    Returns:
        id, source, start_s, duration_s, caption and reason of the row; `pictures`, their number; `loudness_lufs`
        (ITU-R BS.1770-4; NaN where it is not defined); `peak_db`; `bandwidth_hz`; `octaves_db` [bands] and
        `third_octaves_db` [bands], the shares of the power.

    Raises:
        ValueError: the sound does not decode.
    """
    try:
        waveform, rate = decode_flac(row["audio"])
    except Exception as error:
        raise UserError(f"the sound of {row['id']} does not decode; run `diffaudio validate`") from error
    frequencies, power = spectrum.power_spectrum(waveform.numpy(), rate)
    return {key: row.get(key) for key in ROW_COLUMNS if key != "copy"} | {
        "pictures": len(row["frames"]),
        "loudness_lufs": loudness_lufs(waveform, rate),
        "peak_db": 20 * float(np.log10(max(float(waveform.abs().max()), 1e-6))),
        "bandwidth_hz": spectrum.bandwidth_hz(frequencies, power),
        "octaves_db": spectrum.octave_levels_db(frequencies, power),
        "third_octaves_db": spectrum.octave_levels_db(frequencies, power, third_octaves_hz, per_octave=3),
    }


def describe_latents(row: Mapping[str, Any]) -> dict[str, Any]:
    """The light columns of an encoded row; `pictures`, their number; `mean`, `std` and `largest` of its latents."""
    latents = row["latents"]
    return {key: row.get(key) for key in ROW_COLUMNS if key != "reason"} | {
        "pictures": len(row["embeddings"]),
        "mean": float(latents.mean()),
        "std": float(latents.std()),
        "largest": float(np.abs(latents).max()),
    }


def embedding_statistics(embeddings: Iterable[np.ndarray], sources: Sequence[str]) -> dict[str, float]:
    """How the embeddings of a sample are spread.

    Args:
        embeddings: [pictures, dim] of each row.
        sources: of the rows.

    Returns:
        `norm`, the mean; `mean_direction`, the length of the mean of all embeddings (0: in all directions, 1: all
        alike); the mean cosine of pictures of one row, `cosine_in_a_clip`, and of first pictures of rows of different
        sources, `cosine_of_different`; NaN where there are none.
    """
    rows = list(embeddings)
    every = np.concatenate(rows)
    within = [float((each @ each.T)[np.triu_indices(len(each), 1)].mean()) for each in rows if len(each) > 1]
    first = np.stack([each[0] for each in rows[:MAX_EMBEDDINGS]])
    names = np.array(list(sources)[:MAX_EMBEDDINGS])
    different = names[:, None] != names
    return {
        "norm": float(np.linalg.norm(every, axis=1).mean()),
        "mean_direction": float(np.linalg.norm(every.mean(axis=0))),
        "cosine_in_a_clip": float(np.mean(within)) if within else float("nan"),
        "cosine_of_different": float((first @ first.T)[different].mean()) if different.any() else float("nan"),
    }
