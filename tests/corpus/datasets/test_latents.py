import pickle

import numpy as np
import pytest
import torch
from fakes import FakeAutoencoder, FakeClip, write_clips

from diffaudio.corpus import latent_shards, store
from diffaudio.corpus.datasets.latents import LatentDataset, draw_batch
from diffaudio.corpus.datasets.splits import is_held_out
from diffaudio.corpus.encode.run import encode
from diffaudio.seeding import BatchDraws

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
    clips = np.arange(batch_size) % len(dataset)
    return draw_batch(dataset, clips, num_frames=num_frames, draws=BatchDraws(seed, 0, batch_size), tile=tile)


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
    everything = dataset.picture_embeddings()
    assert torch.equal(everything, torch.cat([dataset[index]["embeddings"] for index in range(3)]))


def test_a_batch_is_a_function_of_its_draws(dataset):
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


def write_latents(folder, clips, *, copies=0, first=0, **autoencoder):
    """All latents of row k, copies counted, are k + `first`, and its pictures k + `first` + picture / 8."""
    rows = []
    for clip in range(clips):
        for copy in range(1 + copies):
            value, frames, pictures = first + len(rows), 3 + clip % 5, 1 + clip % 4
            row = {"id": f"clip{clip}", "source": f"{clip // 2}.mp4", "copy": copy, "num_latent_frames": frames}
            embeddings = [np.full(2, value + picture / 8, np.float16) for picture in range(pictures)]
            row |= {"num_pictures": pictures, "start_s": 5.0 * (clip % 2), "duration_s": frames / 10}
            rows.append(row | {"latents": np.full(3 * frames, value, np.float16), "embeddings": embeddings})
    folder.mkdir()
    middle = clips // 2 * (1 + copies)
    for part, of_part in enumerate((rows[:middle], rows[middle:])):
        latent_shards.write_part(store.part_path(folder, "latents", part), of_part, {}, rows_per_batch=7)
    made_by = {"name": "fake", "latent_channels": 3, "latent_rate": 10.0, "weights": "aa"} | autoencoder
    manifest = {"format": "diffaudio-latents", "version": 3, "autoencoder": made_by, "finished": True}
    store.write_manifest(folder, manifest | {"clip": {"name": "colours", "embedding_dim": 2, "weights": "bb"}})
    return folder


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """40 clips of 20 sources, with two copies of each."""
    return write_latents(tmp_path_factory.mktemp("copied") / "latents", 40, copies=2)


def test_values_stay_on_disk_and_are_read_when_they_are_drawn(tmp_path):
    folder = write_latents(tmp_path / "latents", 4)
    dataset = LatentDataset(folder)
    path = store.part_path(folder, "latents", 0)
    content = path.read_bytes()
    old, new = (np.full(12, value, np.float16).tobytes() for value in (1, 77))
    assert content.count(old) == 1
    with path.open("r+b") as file:
        file.seek(content.index(old))
        file.write(new)
    assert (dataset[1]["latents"] == 77).all()


def test_another_process_draws_the_same(copied):
    dataset = LatentDataset(copied)
    batch = draw(dataset)
    assert all(torch.equal(*pair) for pair in zip(draw(pickle.loads(pickle.dumps(dataset))), batch, strict=True))


def test_a_clip_counts_once_and_is_drawn_as_recorded_or_as_one_of_its_copies(copied):
    dataset = LatentDataset(copied)
    assert len(dataset) == 40 and dataset.sizes == (40,)
    assert (dataset[7]["latents"] == 21).all() and dataset[7]["embeddings"][:, 0].tolist() == [
        21,
        21.125,
        21.25,
        21.375,
    ]
    assert (dataset[-1]["latents"] == 117).all()
    latents, embeddings = draw(dataset, batch_size=4000, num_frames=1)
    rows = latents[:, 0, 0].long()
    assert (rows // 3 == torch.arange(4000) % 40).all()
    assert torch.bincount(rows).tolist() == pytest.approx([4000 / 120] * 120, abs=25)
    assert (embeddings[:, 0].long() == rows).all()
    with pytest.raises(IndexError, match="there is no clip 40 among 40"):
        dataset[40]


def test_what_is_held_out_is_there_as_it_was_recorded_and_is_not_trained_on(copied):
    train, held_out = (LatentDataset(copied, held_out=0.3, split=split) for split in ("train", "held_out"))
    assert len(train) + len(held_out) == 40 and len(held_out) >= 4
    sources = [{dataset.describe(clip)["source"] for clip in range(len(dataset))} for dataset in (train, held_out)]
    assert not sources[0] & sources[1]
    assert all(is_held_out(source, 0.3) for source in sources[1])
    drawn = [set(draw(dataset, batch_size=2000, num_frames=1)[0][:, 0, 0].tolist()) for dataset in (train, held_out)]
    assert len(drawn[0]) == 3 * len(train) and len(drawn[1]) == len(held_out)
    assert all(row % 3 == 0 for row in drawn[1])
    assert not {row // 3 for row in drawn[0]} & {row // 3 for row in drawn[1]}


def test_several_corpora_stand_one_after_the_other(copied, tmp_path):
    second = write_latents(tmp_path / "second", 3, first=500)
    both = LatentDataset(copied, second)
    assert both.sizes == (40, 3) and len(both) == 43
    assert (both[39]["latents"] == 117).all() and (both[40]["latents"] == 500).all()
    assert both.describe(42) == {
        "id": "clip2", "source": "1.mp4", "start_s": 0.0, "duration_s": 0.5, "caption": None, "copy": 0,
        "num_latent_frames": 5, "num_pictures": 3,
    }  # fmt: skip


def test_corpora_of_different_models_are_not_mixed(copied, tmp_path):
    other = write_latents(tmp_path / "other", 3, weights="cc")
    wanted = (
        r"other: was encoded by autoencoder 'fake' \(weights cc\), .*latents by 'fake' \(weights aa\); "
        "what is trained on together must be encoded by the same"
    )
    with pytest.raises(ValueError, match=wanted):
        LatentDataset(copied, other)


def test_pictures_are_those_of_the_recordings_and_so_many_as_are_asked_for(copied):
    dataset = LatentDataset(copied)
    everything = dataset.picture_embeddings()
    assert torch.equal(everything, torch.cat([dataset[clip]["embeddings"] for clip in range(40)]))
    some = dataset.picture_embeddings(30)
    assert len(some) == 30 == len(some.unique(dim=0)) and set(some[:, 0].tolist()) < set(everything[:, 0].tolist())
    assert 20 < some[:, 0].mean() < 100
    assert torch.equal(dataset.picture_embeddings(1000), everything)


def test_batches_of_nothing_are_refused(dataset):
    with pytest.raises(ValueError, match="0 clips of 8 frames are no batch; both must be at least 1"):
        draw(dataset, batch_size=0)


def test_a_side_without_clips_is_refused(copied, tmp_path):
    with pytest.raises(ValueError, match="latents: held_out 1 leaves no clips to train on; lower it"):
        LatentDataset(copied, held_out=1)
    with pytest.raises(ValueError, match="held_out 1e-09 holds out no source of .*latents; raise it"):
        LatentDataset(copied, held_out=1e-9, split="held_out")
    with pytest.raises(ValueError, match="split 'test' is unknown; choose from train, held_out"):
        LatentDataset(copied, split="test")
    with pytest.raises(ValueError, match="no corpus was given; name at least one"):
        LatentDataset()


def test_what_is_no_finished_encoded_corpus_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="manifest.json is missing; make one with `diffaudio encode`"):
        LatentDataset(tmp_path)
    with pytest.raises(ValueError, match="format 'diffaudio-clips', wanted is 'diffaudio-latents'"):
        LatentDataset(folder.parent / "clips")
    manifest = store.read_manifest(folder, "diffaudio-latents", 3)
    store.write_manifest(tmp_path, manifest | {"finished": False})
    with pytest.raises(ValueError, match="is not finished; run `diffaudio encode` on it again"):
        LatentDataset(tmp_path)
    store.write_manifest(tmp_path, manifest)
    with pytest.raises(ValueError, match="holds no clips"):
        LatentDataset(tmp_path)
    (tmp_path / "latents-00000.arrow").write_bytes((folder / "latents-00000.arrow").read_bytes())
    store.write_manifest(tmp_path, manifest | {"autoencoder": manifest["autoencoder"] | {"latent_channels": 99}})
    with pytest.raises(ValueError, match="sizes do not agree with manifest.json; encode the corpus again"):
        LatentDataset(tmp_path)
