"""Both forms of a corpus, read by what others read Parquet with."""

import io

import duckdb
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from fakes import FakeAutoencoder, FakeClip
from media import noise, numbered_pictures, write_media
from PIL import Image

from diffaudio.corpus import store
from diffaudio.corpus.datasets.latents import LatentDataset
from diffaudio.corpus.encode.run import encode
from diffaudio.corpus.prepare.run import PrepareSettings, prepare


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


@pytest.fixture(scope="module")
def load_dataset(tmp_path_factory):
    import datasets

    cache = str(tmp_path_factory.mktemp("cache"))
    return lambda folder: datasets.load_dataset(str(folder), split="train", cache_dir=cache)


def test_duckdb_counts_and_reads_clips(corpora):
    clips = f"'{corpora}/clips/*.parquet'"
    assert duckdb.sql(f"select count(*), sum(duration_s) from {clips}").fetchall() == [(3, pytest.approx(3, abs=0.1))]
    ((sound, rate, picture),) = duckdb.sql(
        f"select audio, sample_rate, frames[1].image from {clips} where source like '%b.mp4'"
    ).fetchall()
    samples, read_rate = soundfile.read(io.BytesIO(sound))
    assert read_rate == rate == 8000 and len(samples) == pytest.approx(8000, abs=800)
    assert Image.open(io.BytesIO(picture)).size == (64, 48)


def test_duckdb_reads_latents_and_embeddings_as_lists(corpora):
    latents = f"'{corpora}/latents/*.parquet'"
    rows = duckdb.sql(
        f"select num_latent_frames, num_pictures, len(latents), len(embeddings), latents, embeddings[2] from {latents} "
        "order by source, start_s"
    ).fetchall()
    dataset = LatentDataset(corpora / "latents")
    assert len(rows) == len(dataset) == 3
    for clip, (num_frames, num_pictures, num_values, num_embeddings, values, embedding) in enumerate(rows):
        assert (num_values, num_embeddings) == (100 * num_frames, num_pictures)
        assert torch.equal(torch.tensor(values).view(100, -1), dataset[clip]["latents"])
        assert torch.equal(torch.tensor(embedding), dataset[clip]["embeddings"][1])


def test_pandas_reads_both(corpora):
    clips, latents = (pd.concat(map(pd.read_parquet, store.part_files(corpora / n, n))) for n in ("clips", "latents"))
    assert clips["id"].tolist() == latents["id"].tolist()
    assert clips["frames"].iloc[0][0]["image"][:2] == b"\xff\xd8"
    assert latents["latents"].iloc[0].dtype == np.float16


def test_datasets_loads_clips_from_the_folder_with_sound_that_it_knows_as_such(corpora, load_dataset):
    from datasets import Audio

    clips = load_dataset(corpora / "clips")
    assert clips.num_rows == 3 and clips["source"] == ["a.mp4", "a.mp4", "b.mp4"]
    sound = clips.cast_column("audio", Audio(decode=False))[0]["audio"]
    assert soundfile.info(io.BytesIO(sound["bytes"])).samplerate == 8000


def test_datasets_loads_latents_from_the_folder(corpora, load_dataset):
    latents, dataset = load_dataset(corpora / "latents"), LatentDataset(corpora / "latents")
    assert latents.num_rows == 3
    with_torch = latents.with_format("torch")[2]
    assert torch.equal(with_torch["latents"].view(100, -1).float(), dataset[2]["latents"])
    assert torch.equal(with_torch["embeddings"].float(), dataset[2]["embeddings"])


def test_the_card_says_what_the_columns_are(corpora):
    for kind, schema in store.SCHEMAS.items():
        card = (corpora / kind / "README.md").read_text(encoding="utf-8")
        rows = " ".join(line.split("|")[1] for line in card.splitlines() if line.startswith("|")).replace(",", "")
        assert set(schema.names) <= set(rows.split())
        assert f"path: {kind}-*.parquet" in card
