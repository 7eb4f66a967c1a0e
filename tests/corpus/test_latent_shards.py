"""Parts of an encoded corpus: what is written is read, and what is damaged is refused by name."""

import contextlib
import random

import numpy as np
import pyarrow as pa
import pytest
from corpora import latent_row

from diffaudio.corpus import latent_shards
from diffaudio.corpus.datasets.shard_index import index_part
from diffaudio.corpus.latent_shards import count_rows, read_batches, read_note, write_part
from diffaudio.errors import UserError


@pytest.fixture
def part(tmp_path):
    path = tmp_path / "latents-00000.arrow"
    write_part(path, (latent_row("a", copy) for copy in range(5)), {"clips": "clips-00000.parquet"}, rows_per_batch=2)
    return path


def test_rows_and_note_are_read_as_they_were_written(part):
    assert read_note(part) == {"clips": "clips-00000.parquet"}
    batches = list(read_batches(part))
    assert [batch.num_rows for batch in batches] == [2, 2, 1]
    for copy, row in enumerate(row for batch in batches for row in batch.to_pylist()):
        expected = latent_row("a", copy)
        assert row["latents"] == expected["latents"].tolist()
        assert {**row, "latents": 0, "embeddings": 0} == {**expected, "latents": 0, "embeddings": 0}
    assert count_rows(part) == (5, 5.0)
    assert [batch.schema.names for batch in read_batches(part, ["id"])] == [["id"]] * 3


def test_long_clips_are_written_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(latent_shards, "MAX_BATCH_BYTES", 1000)
    rows = [
        latent_row("a", latents=np.zeros(values, np.float16)) for values in (400, 100, 400, 100, 100, 100, 100, 100)
    ]
    write_part(tmp_path / "a.arrow", rows, {}, rows_per_batch=4)
    assert [batch.num_rows for batch in read_batches(tmp_path / "a.arrow")] == [2, 2, 4]


def everything(path):
    read_note(path)
    for batch in read_batches(path):
        batch.to_pylist()
    index_part(path, 4, 3)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 100])
def test_a_part_that_is_cut_off_is_refused_by_name(part, size):
    part.write_bytes(part.read_bytes()[:size])
    with pytest.raises(UserError, match="latents-00000.arrow: is damaged .*; delete it and run the command that made"):
        read_note(part)


def test_a_part_cut_off_between_two_batches_is_not_taken_for_a_shorter_one(part):
    data = part.read_bytes()
    with pa.ipc.open_stream(data) as reader:
        reader.read_next_batch()
    second = data.index(b"\xff\xff\xff\xff", data.index(b"\xff\xff\xff\xff", 8) + 8)
    part.write_bytes(data[:second])
    assert pa.ipc.open_stream(part.read_bytes()).read_all().num_rows < 5  # pyarrow itself does not notice
    with pytest.raises(UserError, match="the end of the file is missing"):
        list(read_batches(part))


def test_whatever_bytes_are_damaged_reading_ends_with_the_part_s_name_or_other_values(part):
    data, rng = part.read_bytes(), random.Random(0)
    refused = 0
    for trial in range(400):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 4, 32))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        if trial % 4 == 0:
            del damaged[rng.randrange(len(damaged)) :]
        part.write_bytes(damaged)
        with contextlib.suppress(UserError):
            everything(part)
            continue
        refused += 1
        with pytest.raises(UserError, match=r"latents-00000.arrow: [^\n]*$"):
            everything(part)
    assert refused > 200
