import json

import pyarrow.parquet as pq
import pytest
import torch
from fakes import FakeAutoencoder, FakeClip, write_clips

from diffaudio.audio import scale_to_peak
from diffaudio.corpus import store
from diffaudio.corpus.encode import EncodeSettings, encode

RED, GREEN, BLUE, GREY = (250, 0, 0), (0, 250, 0), (0, 0, 250), (120, 120, 120)
COLOURS = [[RED, GREEN], [BLUE], [GREY, RED, BLUE], [GREEN], [GREY]]
NUM_SAMPLES = (800, 1250, 800, 300, 800)


def waveforms() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(0.02 * torch.randn(1, n, generator=generator)).clamp(-0.5, 0.5) for n in NUM_SAMPLES]


@pytest.fixture
def clips(tmp_path):
    return write_clips(tmp_path / "clips", waveforms(), COLOURS)


def run(clips, out, **settings):
    models = {"autoencoder": FakeAutoencoder(), "clip": FakeClip()}
    return encode(clips, out, **(models | {"progress": False} | settings))


def rows_of(folder):
    return [row for part in store.part_files(folder, "latents") for group in store.read_groups(part) for row in group]


def test_a_row_holds_the_latents_of_the_scaled_sound_and_the_embedding_of_each_picture(clips, tmp_path):
    run(clips, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert [row["id"] for row in rows] == [f"clip{i}" for i in range(5)]
    autoencoder = FakeAutoencoder()
    for row, waveform, colours in zip(rows, waveforms(), COLOURS, strict=True):
        expected = autoencoder.encode(scale_to_peak(waveform, 0.7)[None])[0]
        latents = torch.tensor(row["latents"]).view(100, row["num_latent_frames"])
        assert latents.shape == expected.shape
        assert torch.allclose(latents, expected, atol=2e-3)  # 16-bit sound, scaled up
        embeddings = torch.tensor(row["embeddings"])
        wanted = torch.nn.functional.normalize(torch.tensor(colours).float(), dim=-1)
        assert embeddings.shape == (len(colours), 3) and torch.allclose(embeddings, wanted, atol=0.02)
        assert row["duration_s"] == waveform.shape[1] / 8000


def test_the_manifest_names_the_makers(clips, tmp_path):
    returned = run(clips, tmp_path / "out").manifest
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest == returned
    assert (manifest["format"], manifest["version"], manifest["finished"]) == ("diffaudio-latents", 2, True)
    weights = manifest["autoencoder"].pop("weights")
    assert manifest["autoencoder"] == {
        "name": "fake",
        "sample_rate": 8000,
        "audio_channels": 1,
        "latent_channels": 100,
        "latent_rate": 80.0,
    }
    assert len(weights) == 16 and manifest["clip"]["weights"] != weights
    assert (manifest["clip"]["name"], manifest["clip"]["embedding_dim"]) == ("colours", 3)
    assert manifest["settings"] == {
        "peak": 0.7, "crop_s": None, "pad": False, "copies": 0, "augment": None, "seed": 0,
    }  # fmt: skip
    assert manifest["clips"] == 5 and manifest["seconds"] == pytest.approx(sum(NUM_SAMPLES) / 8000, abs=1e-3)


def test_parts_follow_the_clips_parts_and_are_stored_in_half_precision(clips, tmp_path):
    run(clips, tmp_path / "out")
    parts = store.part_files(tmp_path / "out", "latents")
    assert [part.name for part in parts] == [f"latents-0000{i}.parquet" for i in range(3)]
    assert pq.read_schema(parts[0]).remove_metadata() == store.LATENT_SCHEMA
    assert str(store.LATENT_SCHEMA.field("latents").type.value_type) == "halffloat"


def test_only_clips_of_equal_length_share_a_batch(tmp_path):
    clips = write_clips(tmp_path / "clips", waveforms(), COLOURS, clips_per_part=5)
    autoencoder, clip = FakeAutoencoder(), FakeClip()
    run(clips, tmp_path / "out", autoencoder=autoencoder, clip=clip, batch_size=2)
    assert sorted(autoencoder.batches) == [(1, 1, 300), (1, 1, 800), (1, 1, 1250), (2, 1, 800)]
    assert clip.batches == [2, 2, 2, 1, 1]
    run(clips, tmp_path / "one", batch_size=1)
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "out")


def test_sound_is_resampled_and_mixed_for_the_autoencoder(tmp_path):
    t = torch.arange(16000) / 16000
    stereo = torch.stack([torch.sin(2 * torch.pi * 200 * t)] * 2) * 0.1
    clips = write_clips(tmp_path / "clips", [stereo], [[RED]], sample_rate=16000)
    autoencoder = FakeAutoencoder()
    run(clips, tmp_path / "out", autoencoder=autoencoder)
    assert autoencoder.batches == [(1, 1, 8000)]
    (row,) = rows_of(tmp_path / "out")
    samples = torch.tensor(row["latents"]).view(100, -1).T.flatten()
    expected = 0.7 * torch.sin(2 * torch.pi * 200 * torch.arange(8000) / 8000)
    assert torch.allclose(samples[200:-200], expected[200:-200], atol=0.01)


def test_running_again_does_only_what_is_missing(clips, tmp_path):
    out = tmp_path / "out"
    run(clips, out)
    before = rows_of(out)
    (out / "latents-00001.parquet").unlink()
    autoencoder = FakeAutoencoder()
    run(clips, out, autoencoder=autoencoder)
    assert len(autoencoder.batches) == 2 and rows_of(out) == before
    autoencoder.batches.clear()
    run(clips, out, autoencoder=autoencoder)
    assert autoencoder.batches == []


def test_a_run_that_stops_keeps_its_parts_and_says_that_it_is_not_finished(clips, tmp_path):
    class Failing(FakeAutoencoder):
        def encode(self, waveform):
            if waveform.shape[-1] == 300:
                raise KeyboardInterrupt
            return super().encode(waveform)

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(clips, out, autoencoder=Failing())
    assert sorted(path.name for path in out.iterdir()) == ["latents-00000.parquet", "manifest.json"]
    assert store.read_manifest(out, "diffaudio-latents", 2)["finished"] is False
    run(clips, out)
    run(clips, tmp_path / "whole")
    assert rows_of(out) == rows_of(tmp_path / "whole")


def test_latents_of_different_makers_are_not_mixed(clips, tmp_path):
    out = tmp_path / "out"
    run(clips, out)
    with pytest.raises(ValueError, match=r"was encoded with settings \{'peak': 0.7\}, now it is \{'peak': 0.5\}"):
        run(clips, out, settings=EncodeSettings(peak=0.5))
    other = FakeAutoencoder()
    other.name = "other"
    with pytest.raises(ValueError, match="was encoded with autoencoder .*'fake'.*'other'.*write to another folder"):
        run(clips, out, autoencoder=other)
    trained_again = FakeClip()
    trained_again.steps += 1
    with pytest.raises(ValueError, match="was encoded with clip"):
        run(clips, out, clip=trained_again)


def test_what_is_no_finished_corpus_of_clips_is_refused(clips, tmp_path):
    with pytest.raises(ValueError, match=r"manifest.json is missing; make one with `diffaudio prepare`"):
        run(tmp_path / "nowhere", tmp_path / "out")
    run(clips, tmp_path / "out")
    with pytest.raises(ValueError, match="format 'diffaudio-latents', wanted is 'diffaudio-clips'"):
        run(tmp_path / "out", tmp_path / "again")
    begun = write_clips(tmp_path / "begun", waveforms(), COLOURS, finished=False)
    with pytest.raises(ValueError, match="is not finished; run `diffaudio prepare` on it again"):
        run(begun, tmp_path / "again")
    with pytest.raises(ValueError, match="format 'diffaudio-clips', wanted is 'diffaudio-latents'"):
        run(clips, clips)
    assert not (tmp_path / "again").exists()
