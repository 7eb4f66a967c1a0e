import numpy as np
import pytest
import torch
from fakes import FakeAutoencoder, FakeClip, write_clips

from diffaudio.corpus import store
from diffaudio.corpus.dataset import LatentDataset, draw_batch
from diffaudio.corpus.encode import encode

FRAMES = (30, 4, 12)  # of the three clips
COLOURS = [[(250, 0, 0), (0, 250, 0)], [(0, 0, 250)], [(120, 120, 120), (250, 250, 0), (0, 250, 250)]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Latents of clip k at frame f are (f + 1) / 100 in channel 0 and (k + 1) / 10 in channel 1."""
    waveforms = []
    for clip, num_frames in enumerate(FRAMES):
        waveform = torch.zeros(num_frames, 100)
        waveform[:, 0] = (torch.arange(num_frames) + 1) / 100
        waveform[:, 1] = (clip + 1) / 10
        waveform[0, 2] = 0.7  # the peak, so that scaling changes nothing
        waveforms.append(waveform.view(1, -1))
    base = tmp_path_factory.mktemp("dataset")
    clips = write_clips(base / "clips", waveforms, COLOURS)
    encode(clips, base / "latents", autoencoder=FakeAutoencoder(), clip=FakeClip(), progress=False)
    return base / "latents"


@pytest.fixture(scope="module")
def dataset(folder):
    return LatentDataset(folder)


def draw(dataset, seed=0, batch_size=64, num_frames=8, tile=True):
    generator = torch.Generator().manual_seed(seed)
    clips = np.arange(batch_size) % len(dataset)
    return draw_batch(dataset, clips, num_frames=num_frames, generator=generator, tile=tile)


def positions(latents):
    """[batch, frames] which frame of its clip each frame is, and [batch] which clip."""
    return (latents[:, 0] * 100).round().long() - 1, (latents[:, 1, 0] * 10).round().long() - 1


def test_items_are_the_clips(dataset):
    assert len(dataset) == 3
    assert (dataset.latent_rate, dataset.latent_channels, dataset.embedding_dim) == (80.0, 100, 3)
    assert dataset.autoencoder["name"] == "fake" and dataset.clip["name"] == "colours"
    for index, num_frames in enumerate(FRAMES):
        item = dataset[index]
        assert dataset.describe(index)["id"] == f"clip{index}"
        assert item["latents"].shape == (100, num_frames) and item["latents"].dtype == torch.float32
        assert torch.allclose(item["latents"][0], (torch.arange(num_frames) + 1) / 100, atol=1e-3)
        assert item["embeddings"].shape == (len(COLOURS[index]), 3) and item["embeddings"].dtype == torch.float32
        assert torch.allclose(item["embeddings"].norm(dim=-1), torch.ones(()), atol=1e-3)


def test_all_embeddings_are_those_of_every_picture(dataset):
    everything = dataset.pictures()
    assert torch.equal(everything, torch.cat([dataset[index]["embeddings"] for index in range(3)]))


def test_a_batch_is_a_function_of_its_generator(dataset):
    first, again, other = draw(dataset), draw(dataset), draw(dataset, seed=1)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_longer_clips_are_cut_anywhere(dataset):
    latents, embeddings = draw(dataset, batch_size=600)
    assert latents.shape == (600, 100, 8) and embeddings.shape == (600, 3)
    frames, clips = positions(latents)
    long = frames[clips == 0]
    assert ((long[:, 1:] - long[:, :-1]) == 1).all()
    assert set(long[:, 0].tolist()) == set(range(30 - 8 + 1))


def test_shorter_clips_are_repeated_from_any_phase(dataset):
    frames, clips = positions(draw(dataset, batch_size=300)[0])
    short = frames[clips == 1]
    assert ((short[:, 1:] - short[:, :-1]) % 4 == 1).all()
    assert set(short[:, 0].tolist()) == {0, 1, 2, 3}


def test_shorter_clips_end_in_zeros_where_they_are_not_repeated(dataset):
    latents, _ = draw(dataset, batch_size=50, tile=False)
    frames, clips = positions(latents)
    assert (frames[clips == 1][:, :4] == torch.arange(4)).all()
    assert not latents[clips == 1][:, :, 4:].any()


def test_every_clip_and_each_of_its_pictures_is_drawn_and_they_belong_together(dataset):
    latents, embeddings = draw(dataset, batch_size=300)
    _, clips = positions(latents)
    for clip in range(3):
        known = dataset[clip]["embeddings"]
        drawn = embeddings[clips == clip]
        matches = (drawn[:, None] == known[None]).all(dim=-1)
        assert (matches.sum(dim=1) == 1).all() and matches.any(dim=0).all()
        assert 60 < len(drawn) < 140


def test_batches_of_nothing_are_refused(dataset):
    with pytest.raises(ValueError, match="0 clips of 8 frames are no batch; both must be at least 1"):
        draw(dataset, batch_size=0)


def test_what_is_no_finished_encoded_corpus_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="manifest.json is missing; make one with `diffaudio encode`"):
        LatentDataset(tmp_path)
    with pytest.raises(ValueError, match="format 'diffaudio-clips', wanted is 'diffaudio-latents'"):
        LatentDataset(folder.parent / "clips")
    manifest = store.read_manifest(folder, "diffaudio-latents", 2)
    store.write_manifest(tmp_path, manifest | {"finished": False})
    with pytest.raises(ValueError, match="is not finished; run `diffaudio encode` on it again"):
        LatentDataset(tmp_path)
    store.write_manifest(tmp_path, manifest)
    with pytest.raises(ValueError, match="holds no clips"):
        LatentDataset(tmp_path)
    (tmp_path / "latents-00000.parquet").write_bytes((folder / "latents-00000.parquet").read_bytes())
    store.write_manifest(tmp_path, manifest | {"autoencoder": manifest["autoencoder"] | {"latent_channels": 99}})
    with pytest.raises(ValueError, match="sizes do not agree with manifest.json; encode the corpus again"):
        LatentDataset(tmp_path)
