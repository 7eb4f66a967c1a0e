"""Both forms of a corpus, Parquet and Arrow, read by `datasets`, pandas and DuckDB."""

import io

import datasets
import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import soundfile
import torch
from fakes import FakeAutoencoder, FakeClip
from media import noise, numbered_pictures, write_media
from PIL import Image

from diffaudio.corpus import store
from diffaudio.corpus.datasets.latents import LatentDataset
from diffaudio.corpus.encode.run import encode
from diffaudio.corpus.latent_shards import LATENT_SCHEMA
from diffaudio.corpus.prepare.run import prepare
from diffaudio.corpus.prepare.settings import PrepareSettings


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """`clips` and `latents` of three seconds of noise in clips of one, in two parts, and one file without sound."""
    base = tmp_path_factory.mktemp("corpora")
    (base / "videos").mkdir()
    for name, seconds in (("a", 2.0), ("b", 1.0)):
        sound = noise(seconds, 44100, seed=ord(name))
        write_media(base / f"videos/{name}.mp4", sound=sound, pictures=numbered_pictures(seconds))
    write_media(base / "videos/c.mp4", pictures=numbered_pictures(1.0))
    settings = PrepareSettings(clip_s=1.0, min_clip_s=0.5, sample_rate=8000, frames_per_clip=2, sources_per_part=1)
    prepare([base / "videos"], base / "clips", settings, progress=False)
    encode(base / "clips", base / "latents", autoencoder=FakeAutoencoder(), clip=FakeClip(), progress=False)
    return base


def map_table(part):
    """A part of latents as the card says to read it."""
    return pa.ipc.open_stream(pa.memory_map(str(part))).read_all()


def test_duckdb_counts_and_reads_clips(corpora):
    clips = f"'{corpora}/clips/clips-*.parquet'"
    assert duckdb.sql(f"select count(*), sum(duration_s) from {clips}").fetchall() == [(3, pytest.approx(3, abs=0.1))]
    ((sound, rate, picture),) = duckdb.sql(
        f"select audio, sample_rate, frames[1].image from {clips} where source like '%b.mp4'"
    ).fetchall()
    samples, read_rate = soundfile.read(io.BytesIO(sound))
    assert read_rate == rate == 8000 and len(samples) == pytest.approx(8000, abs=800)
    assert Image.open(io.BytesIO(picture)).size == (64, 48)


def test_duckdb_reads_latents_through_pyarrow(corpora):
    """It knows no half precision, so the vectors are cast."""
    parts = store.part_files(corpora / "latents", "latents")
    halves = pa.concat_tables(map(map_table, parts))
    types = {"latents": pa.list_(pa.float32()), "embeddings": pa.list_(pa.list_(pa.float32()))}
    fields = [field.with_type(types.get(field.name, field.type)) for field in halves.schema]
    floats = halves.cast(pa.schema(fields))
    assert floats.num_rows == 3
    rows = duckdb.sql(
        "select num_latent_frames, num_pictures, len(latents), len(embeddings), latents, embeddings[2] from floats "
        "order by source, start_s"
    ).fetchall()
    dataset = LatentDataset(corpora / "latents")
    assert len(rows) == len(dataset) == 3
    for clip, (num_frames, num_pictures, num_values, num_embeddings, values, embedding) in enumerate(rows):
        assert (num_values, num_embeddings) == (100 * num_frames, num_pictures)
        assert torch.equal(torch.tensor(values).view(100, -1), dataset[clip]["latents"])
        assert torch.equal(torch.tensor(embedding), dataset[clip]["embeddings"][1])
    others = halves.drop_columns(["latents", "embeddings"])
    assert others.num_rows == 3
    counts = duckdb.sql("select source, count(*) from others group by source order by source").fetchall()
    assert counts == [("a.mp4", 2), ("b.mp4", 1)]


def test_pandas_reads_both(corpora):
    clips = pd.concat(map(pd.read_parquet, store.part_files(corpora / "clips", "clips")))
    latents = pd.concat(map_table(part).to_pandas() for part in store.part_files(corpora / "latents", "latents"))
    assert clips["id"].tolist() == latents["id"].tolist()
    assert clips["frames"].iloc[0][0]["image"][:2] == b"\xff\xd8"
    assert latents["latents"].iloc[0].dtype == np.float16


def test_datasets_loads_clips_from_the_folder_with_sound_that_it_knows_as_such(corpora, tmp_path):
    clips = datasets.load_dataset(str(corpora / "clips"), split="train", cache_dir=str(tmp_path))
    assert clips.num_rows == 3 and clips["source"] == ["a.mp4", "a.mp4", "b.mp4"]
    sound = clips.cast_column("audio", datasets.Audio(decode=False))[0]["audio"]
    assert soundfile.info(io.BytesIO(sound["bytes"])).samplerate == 8000


def test_datasets_maps_the_folder_of_latents_and_each_part_without_a_copy(corpora):
    dataset = LatentDataset(corpora / "latents")
    parts = store.part_files(corpora / "latents", "latents")
    whole = datasets.load_from_disk(str(corpora / "latents"))
    assert [file["filename"] for file in whole.cache_files] == list(map(str, parts))  # no file of its own
    alone = datasets.concatenate_datasets([datasets.Dataset.from_file(str(part)) for part in parts])
    for loaded in (whole, alone):
        assert loaded.num_rows == 3
        row = loaded.with_format("torch")[2]
        assert torch.equal(row["latents"].view(100, -1).float(), dataset[2]["latents"])
        assert torch.equal(row["embeddings"].float(), dataset[2]["embeddings"])


def test_load_dataset_reads_parts_of_latents(corpora, tmp_path):
    files = list(map(str, store.part_files(corpora / "latents", "latents")))
    loaded = datasets.load_dataset("arrow", data_files=files, split="train", cache_dir=str(tmp_path))
    assert loaded["source"] == ["a.mp4", "a.mp4", "b.mp4"]


def test_the_card_says_what_the_columns_are(corpora):
    for kind, schema in (("clips", store.CLIP_SCHEMA), ("latents", LATENT_SCHEMA)):
        card = (corpora / kind / "README.md").read_text(encoding="utf-8")
        rows = " ".join(line.split("|")[1] for line in card.splitlines() if line.startswith("|")).replace(",", "")
        assert set(schema.names) <= set(rows.split())
        assert f"path: {kind}-*{store.SUFFIXES[kind]}" in card
