import json
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import datasets
import pyarrow as pa
import pytest
import torch
from corpora import read_rows, write_clips_part
from fakes import FakeAutoencoder, FakeClip, write_clips

from diffaudio.corpus import store
from diffaudio.corpus.augment import AugmentSettings
from diffaudio.corpus.datasets.latents import LatentDataset
from diffaudio.corpus.encode import rows as encode_rows
from diffaudio.corpus.encode import run as encode_run
from diffaudio.corpus.encode.run import EncodeSettings, encode
from diffaudio.corpus.latent_shards import LATENT_SCHEMA
from diffaudio.corpus.snapshot import open_corpus
from diffaudio.errors import UserError
from diffaudio.folder_lock import locked_folder
from diffaudio.media.audio import scale_to_peak

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


def test_a_row_holds_the_latents_of_the_scaled_sound_and_the_embedding_of_each_picture(clips, tmp_path):
    run(clips, tmp_path / "out")
    rows = read_rows(tmp_path / "out")
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
    assert (manifest["format"], manifest["version"], manifest["finished"]) == ("diffaudio-latents", 3, True)
    weights, half_weights = (manifest["autoencoder"].pop(name) for name in ("weights", "half_weights"))
    assert manifest["autoencoder"] == {
        "name": "fake",
        "sample_rate": 8000,
        "audio_channels": 1,
        "latent_channels": 100,
        "latent_rate": 80.0,
    }
    assert len(weights) == len(half_weights) == 16 and manifest["clip"]["weights"] != weights
    assert (manifest["clip"]["name"], manifest["clip"]["embedding_dim"]) == ("colours", 3)
    assert manifest["settings"] == {
        "peak": 0.7, "crop_s": None, "pad": False, "copies": 0, "augment": None, "seed": 0,
    }  # fmt: skip
    assert manifest["clips"] == 5 and manifest["seconds"] == pytest.approx(sum(NUM_SAMPLES) / 8000, abs=1e-3)


def test_parts_follow_the_clips_parts_and_are_stored_in_half_precision(clips, tmp_path):
    run(clips, tmp_path / "out")
    parts = store.part_files(tmp_path / "out", "latents")
    assert [part.name for part in parts] == [f"latents-0000{i}.arrow" for i in range(3)]
    assert pa.ipc.open_stream(parts[0]).schema.remove_metadata() == LATENT_SCHEMA
    assert str(LATENT_SCHEMA.field("latents").type.value_type) == "halffloat"


def test_only_clips_of_equal_length_share_a_batch(tmp_path):
    clips = write_clips(tmp_path / "clips", waveforms(), COLOURS, clips_per_part=5)
    autoencoder, clip = FakeAutoencoder(), FakeClip()
    run(clips, tmp_path / "out", autoencoder=autoencoder, clip=clip, batch_size=2)
    assert sorted(autoencoder.batches) == [(1, 1, 300), (1, 1, 800), (1, 1, 1250), (2, 1, 800)]
    assert clip.batches == [2, 2, 2, 1, 1]
    run(clips, tmp_path / "one", batch_size=1)
    assert read_rows(tmp_path / "one") == read_rows(tmp_path / "out")


def test_sound_is_resampled_and_mixed_for_the_autoencoder(tmp_path):
    t = torch.arange(16000) / 16000
    stereo = torch.stack([torch.sin(2 * torch.pi * 200 * t)] * 2) * 0.1
    clips = write_clips(tmp_path / "clips", [stereo], [[RED]], sample_rate=16000)
    autoencoder = FakeAutoencoder()
    run(clips, tmp_path / "out", autoencoder=autoencoder)
    assert autoencoder.batches == [(1, 1, 8000)]
    (row,) = read_rows(tmp_path / "out")
    samples = torch.tensor(row["latents"]).view(100, -1).T.flatten()
    expected = 0.7 * torch.sin(2 * torch.pi * 200 * torch.arange(8000) / 8000)
    assert torch.allclose(samples[200:-200], expected[200:-200], atol=0.01)


def test_running_again_does_only_what_is_missing(clips, tmp_path):
    out = tmp_path / "out"
    run(clips, out)
    before = read_rows(out)
    (out / "latents-00001.arrow").unlink()
    autoencoder = FakeAutoencoder()
    run(clips, out, autoencoder=autoencoder)
    assert len(autoencoder.batches) == 2 and read_rows(out) == before
    autoencoder.batches.clear()
    run(clips, out, autoencoder=autoencoder)
    assert autoencoder.batches == []


def test_a_part_whose_clips_have_changed_is_encoded_again(clips, tmp_path):
    out = tmp_path / "out"
    run(clips, out)
    part = store.part_files(clips, "clips")[1]
    rows = [row for group in store.read_groups(part) for row in group]
    write_clips_part(part, rows[:1], {"sources": []})
    autoencoder = FakeAutoencoder()
    assert run(clips, out, autoencoder=autoencoder).manifest["clips"] == 4
    assert [row["id"] for row in read_rows(out)] == ["clip0", "clip1", "clip2", "clip4"]
    assert autoencoder.batches == [(1, 1, 800)]


def test_a_part_of_other_clips_and_the_same_size_is_encoded_again(clips, tmp_path):
    out = tmp_path / "out"
    run(clips, out)
    part, size = (found := store.part_files(clips, "clips")[2]), found.stat().st_size
    stat = part.stat()
    part.write_bytes(part.read_bytes().replace(b"clip4", b"CLIP4"))
    os.utime(part, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert part.stat().st_size == size
    autoencoder = FakeAutoencoder()
    run(clips, out, autoencoder=autoencoder)
    assert [row["id"] for row in read_rows(out)] == ["clip0", "clip1", "clip2", "clip3", "CLIP4"]
    assert autoencoder.batches == [(1, 1, 800)]


def test_clips_that_are_no_longer_in_the_corpus_lose_their_latents(clips, tmp_path):
    out = tmp_path / "out"
    run(clips, out)
    store.part_files(clips, "clips")[1].unlink()
    autoencoder = FakeAutoencoder()
    report = run(clips, out, autoencoder=autoencoder)
    assert [row["id"] for row in read_rows(out)] == ["clip0", "clip1", "clip4"]
    assert autoencoder.batches == [] and report.manifest["clips"] == 3
    assert len(LatentDataset(out)) == 3 == datasets.load_from_disk(str(out)).num_rows


def test_after_any_change_the_corpus_equals_one_encoded_from_scratch(clips, tmp_path):
    out = tmp_path / "out"
    run(clips, out)
    parts = store.part_files(clips, "clips")
    parts[0].write_bytes(parts[2].read_bytes())
    parts[2].unlink()
    run(clips, out)
    run(clips, tmp_path / "anew")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "anew").iterdir()
    }


def test_a_damaged_part_of_clips_is_named_in_one_line(clips, tmp_path):
    part = store.part_files(clips, "clips")[1]
    data = part.read_bytes()
    for damaged in (data[:-100], data[:40] + data[60:], data[:-200] + bytes(150) + data[-50:], b""):
        part.write_bytes(damaged)
        with pytest.raises(UserError, match=r"clips-00001.parquet: is damaged \([^\n]*$"):
            run(clips, tmp_path / "out")


def test_an_encoded_part_that_is_damaged_is_named(clips, tmp_path):
    run(clips, tmp_path / "out")
    part = tmp_path / "out/latents-00001.arrow"
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"latents-00001.arrow: is damaged .*; delete it and run the command that made"):
        run(clips, tmp_path / "out")
    part.unlink()
    assert run(clips, tmp_path / "out").manifest["clips"] == 5


def test_a_second_run_into_the_same_folder_is_refused_and_names_the_first(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(encode_run, "LOCK_PATIENCE_S", 0.0)
    with (
        locked_folder(tmp_path / "out", "diffaudio encode"),
        pytest.raises(UserError, match="diffaudio encode.*process"),
    ):
        run(clips, tmp_path / "out")
    assert run(clips, tmp_path / "out").manifest["finished"]


class NotFinite(FakeAutoencoder):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def encode(self, waveform):
        latents = super().encode(waveform)
        if waveform.shape[-1] == 300:
            latents[0, 7, 1] = self.value
        return latents


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 70000.0])
def test_latents_that_are_not_finite_are_refused_with_the_clip_s_name(clips, tmp_path, value):
    message = r"clip clip3 of 3.mp4: 1 of 300 values of its latents, by fake, are not finite or above 65504; check"
    with pytest.raises(UserError, match=message):
        run(clips, tmp_path / "out", autoencoder=NotFinite(value))
    assert [path.name for path in store.part_files(tmp_path / "out", "latents")] == ["latents-00000.arrow"]


def test_embeddings_that_are_not_finite_are_refused_with_the_clip_s_name(clips, tmp_path):
    class Broken(FakeClip):
        def encode_pixels(self, pixels):
            embeddings = super().encode_pixels(pixels)
            embeddings[(pixels - torch.tensor(GREY)).abs().amax(dim=1) < 5] = float("nan")
            return embeddings

    with pytest.raises(UserError, match=r"clip clip2 of 2.mp4: 3 of 9 values of its embeddings, by colours, are not"):
        run(clips, tmp_path / "out", clip=Broken())


@pytest.mark.parametrize("copies", [0, 1])
def test_long_clips_are_held_and_encoded_a_few_at_a_time(tmp_path, monkeypatch, copies):
    """Bounded by samples: the same rows, with no more sound in memory than the bounds and one clip beyond each."""
    sounds = [0.1 * torch.ones(1, 4000)] * 12
    clips = write_clips(tmp_path / "clips", sounds, [[RED]] * 12, clips_per_part=12)
    settings = copies_of(1) if copies else EncodeSettings()
    run(clips, tmp_path / "free", batch_size=16, settings=settings)
    monkeypatch.setattr(encode_rows, "MAX_HELD_SAMPLES", 20_000)
    monkeypatch.setattr(encode_rows, "MAX_BATCH_SAMPLES", 8_000)
    alive, most, real = set(), 0, encode_rows._items

    def watched(*arguments):
        nonlocal most
        items = real(*arguments)
        for item in items:
            alive.add(id(item))
            weakref.finalize(item, alive.discard, id(item))
        most = max(most, len(alive))
        return items

    monkeypatch.setattr(encode_rows, "_items", watched)
    autoencoder = FakeAutoencoder()
    run(clips, tmp_path / "bounded", batch_size=16, autoencoder=autoencoder, settings=settings)
    assert read_rows(tmp_path / "bounded") == read_rows(tmp_path / "free")
    assert max(batch[0] for batch in autoencoder.batches) == 2
    assert most <= 3 * 6  # of 24: what is encoded, what was encoded last, what is read ahead; 5 items and one more each


def test_the_bar_counts_whole_seconds(clips, tmp_path, capsys):
    run(clips, tmp_path / "out", progress=True)
    shown = capsys.readouterr().err
    assert "| 0/0 s [" in shown and "0.4" not in shown.replace("s/s", "")


def test_a_run_that_stops_keeps_its_parts_and_says_that_it_is_not_finished(clips, tmp_path):
    class Failing(FakeAutoencoder):
        def encode(self, waveform):
            if waveform.shape[-1] == 300:
                raise KeyboardInterrupt
            return super().encode(waveform)

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(clips, out, autoencoder=Failing())
    assert sorted(path.name for path in out.iterdir()) == [".lock", "latents-00000.arrow", "manifest.json"]
    assert store.read_manifest(out, "diffaudio-latents", 3)["finished"] is False
    run(clips, out)
    run(clips, tmp_path / "whole")
    assert read_rows(out) == read_rows(tmp_path / "whole")


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


def test_rows_that_a_filter_rejected_are_left_out(tmp_path):
    clips = write_clips(tmp_path / "clips", waveforms(), COLOURS, clips_per_part=5)
    (part,) = store.part_files(clips, "clips")
    rows = [row for group in store.read_groups(part) for row in group]
    for row, reason in zip(rows, (None, "silent", None, "black", None), strict=True):
        row["reason"] = reason
    write_clips_part(part, rows, {"sources": []})
    report = run(clips, tmp_path / "out")
    assert [row["id"] for row in read_rows(tmp_path / "out")] == ["clip0", "clip2", "clip4"]
    assert report.manifest["clips"] == 3


@pytest.mark.parametrize("damage", [{"audio": b"noise"}, {"frames": [{"time_s": 0.0, "image": b"noise"}]}])
def test_a_clip_that_cannot_be_decoded_is_named(clips, tmp_path, damage):
    part = store.part_files(clips, "clips")[1]
    rows = [row for group in store.read_groups(part) for row in group]
    write_clips_part(part, [rows[0], rows[1] | damage], {"sources": []})
    with pytest.raises(ValueError, match=r"clip clip3 of 3.mp4: its sound or pictures are damaged \(.*validate`"):
        run(clips, tmp_path / "out")


def test_the_report_tells_the_seconds_of_this_run(clips, tmp_path):
    report = run(clips, tmp_path / "out", settings=copies_of(2))
    assert report.clips_s == pytest.approx(sum(NUM_SAMPLES) / 8000) and report.took_s > 0
    assert run(clips, tmp_path / "out", settings=copies_of(2)).clips_s == 0


def copies_of(count, **changes):
    return EncodeSettings(copies=count, augment=AugmentSettings(probability=1.0, **changes or {"filter_db": 12.0}))


def test_each_recording_is_followed_by_its_copies_which_differ_in_sound(clips, tmp_path):
    report = run(clips, tmp_path / "out", settings=copies_of(2))
    rows = read_rows(tmp_path / "out")
    assert [(row["id"], row["copy"]) for row in rows] == [(f"clip{i}", copy) for i in range(5) for copy in range(3)]
    assert report.manifest["clips"] == 15
    run(clips, tmp_path / "plain")
    assert [row for row in rows if row["copy"] == 0] == read_rows(tmp_path / "plain")
    for recording, *others in (rows[first : first + 3] for first in range(0, 15, 3)):
        assert len({str(row["latents"]) for row in (recording, *others)}) == 3
        assert all(row["embeddings"] == recording["embeddings"] for row in others)


def test_copies_depend_on_seed_id_and_number_alone(clips, tmp_path):
    run(clips, tmp_path / "out", settings=copies_of(2))
    first = read_rows(tmp_path / "out")
    other_order = write_clips(tmp_path / "alone", waveforms(), COLOURS, clips_per_part=5)
    run(other_order, tmp_path / "again", settings=copies_of(2), batch_size=1, num_threads=3)
    assert read_rows(tmp_path / "again") == first
    run(clips, tmp_path / "more", settings=copies_of(3))
    assert [row for row in read_rows(tmp_path / "more") if row["copy"] < 3] == first
    run(clips, tmp_path / "other", settings=replace(copies_of(2), seed=1))
    assert all((a == b) == (a["copy"] == 0) for a, b in zip(first, read_rows(tmp_path / "other"), strict=True))


def test_pictures_are_encoded_again_only_where_copies_change_them(clips, tmp_path):
    for changes, times in (({"filter_db": 6.0}, 1), ({"picture_flip": True}, 3)):
        clip = FakeClip()
        run(clips, tmp_path / str(times), clip=clip, settings=copies_of(2, **changes))
        assert sum(clip.batches) == times * sum(map(len, COLOURS))


def test_a_copy_tells_how_long_it_is(clips, tmp_path):
    run(clips, tmp_path / "out", settings=copies_of(1, crop=0.5))
    for row in read_rows(tmp_path / "out"):
        assert row["num_latent_frames"] == -(-round(row["duration_s"] * 8000) // 100)
    assert len({row["duration_s"] for row in read_rows(tmp_path / "out")}) == 8


def test_crops_lie_end_to_end_with_the_pictures_of_their_time(tmp_path):
    sound = 0.5 * torch.sin(torch.arange(2_900.0))[None]  # three crops of 800 samples and a rest
    clips = write_clips(tmp_path / "clips", [sound], [[RED, GREEN, BLUE]])
    (part,) = store.part_files(clips, "clips")
    (row,) = [row for group in store.read_groups(part) for row in group]
    row["start_s"] = 2.0
    for frame, time_s in zip(row["frames"], (2.01, 2.06, 2.25), strict=True):
        frame["time_s"] = time_s
    write_clips_part(part, [row], {"sources": []})
    run(clips, tmp_path / "whole")
    run(clips, tmp_path / "out", settings=EncodeSettings(crop_s=0.1))
    crops = read_rows(tmp_path / "out")
    assert [(c["id"], c["duration_s"]) for c in crops] == [("clip0-0", 0.1), ("clip0-1", 0.1), ("clip0-2", 0.1)]
    assert [c["start_s"] for c in crops] == pytest.approx([2.0, 2.1, 2.2])
    assert [c["num_pictures"] for c in crops] == [2, 1, 1]
    pictures = read_rows(tmp_path / "whole")[0]["embeddings"]
    # nothing was seen during the second; 2.06 s is nearest to its middle
    assert [c["embeddings"] for c in crops] == [pictures[:2], pictures[1:2], pictures[2:]]
    whole = torch.tensor(read_rows(tmp_path / "whole")[0]["latents"]).view(100, -1)
    for index, crop in enumerate(crops):
        assert torch.equal(torch.tensor(crop["latents"]).view(100, -1), whole[:, 8 * index : 8 * index + 8])


@pytest.mark.parametrize("pad", [False, True])
def test_a_clip_shorter_than_the_crop_is_repeated_or_followed_by_silence(tmp_path, pad):
    clips = write_clips(tmp_path / "clips", [0.1 * torch.ones(1, 700), 0.1 * torch.ones(1, 1550)], [[RED], [RED]])
    run(clips, tmp_path / "out", settings=EncodeSettings(crop_s=0.1, pad=pad))
    rows = read_rows(tmp_path / "out")
    assert [row["id"] for row in rows] == ["clip0-0", "clip1-0", "clip1-1"]  # the last lacks less than a latent frame
    for row, available in zip(rows, (700, 800, 750), strict=True):
        samples = torch.tensor(row["latents"]).view(100, 8).T.flatten()
        assert (samples[:available] > 0.69).all()
        assert (samples[available:] == 0).all() if pad else (samples[available:] > 0.69).all()


def test_copies_of_crops_have_their_length(clips, tmp_path):
    settings = replace(copies_of(2, speed=0.06, crop=0.3), crop_s=0.05)
    run(clips, tmp_path / "out", settings=settings)
    assert {(row["num_latent_frames"], row["duration_s"]) for row in read_rows(tmp_path / "out")} == {(4, 0.05)}


class Processes:
    """What `distributed.join_processes` gives, for threads."""

    def __init__(self, barrier: threading.Barrier, process_index: int) -> None:
        self.process_index, self.num_processes = process_index, barrier.parties
        self.wait_for_everyone = barrier.wait


def test_several_processes_share_the_parts_and_make_the_same_corpus(clips, tmp_path):
    run(clips, tmp_path / "one", settings=copies_of(1))
    barrier, makers = threading.Barrier(2), [FakeAutoencoder(), FakeAutoencoder()]
    with ThreadPoolExecutor(2) as pool:
        shares = [
            pool.submit(
                run, clips, tmp_path / "two", settings=copies_of(1), state=Processes(barrier, i), autoencoder=makers[i]
            )
            for i in range(2)
        ]
        reports = [share.result() for share in shares]
    assert [sum(batch[0] for batch in maker.batches) for maker in makers] == [6, 4]  # two parts, and one
    assert sum(report.clips_s for report in reports) == pytest.approx(sum(NUM_SAMPLES) / 8000)
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two and len(store.part_files(tmp_path / "two", "latents")) == 3


def test_what_comes_next_is_read_while_the_device_computes(tmp_path):
    clips = write_clips(tmp_path / "clips", [torch.ones(1, 100)] * 6, [[RED]] * 6, clips_per_part=6)
    read, seen = [], []
    enough = threading.Event()

    class Reading(FakeClip):
        def preprocess(self, pictures):
            read.append(pictures)
            if len(read) > 2:
                enough.set()
            return super().preprocess(pictures)

    class Computing(FakeAutoencoder):
        def encode(self, waveform):
            seen.append(enough.wait(10))
            return super().encode(waveform)

    run(clips, tmp_path / "out", autoencoder=Computing(), clip=Reading(), batch_size=1)
    assert seen[0] and len(read) == 6


def test_latents_of_an_older_diffaudio_are_refused_with_the_command_that_encodes_them_again(clips, tmp_path):
    out = tmp_path / "out"
    manifest = run(clips, out).manifest
    store.write_manifest(out, manifest | {"version": 2})
    message = (
        r"out: was encoded by an older diffaudio, as Parquet \(version 2\).*Arrow files now \(version 3\): make it "
        r"anew with `diffaudio encode CLIPS -o NEW_FOLDER`, where CLIPS is the corpus it was encoded from"
    )
    for read in (lambda: run(clips, out), lambda: LatentDataset(out), lambda: open_corpus(out)):
        with pytest.raises(UserError, match=message):
            read()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peak": 1.5}, "peak is 1.5; it must lie above 0 and be at most 1"),
        ({"crop_s": -1.0}, "crop_s is -1.0; it must be above 0, or None for whole clips"),
        ({"pad": True}, "pad has no effect without crop_s: clips stay whole"),
        ({"copies": -1}, "copies is -1; it must be 0 or more"),
        ({"copies": 2}, "2 copies would be the recording again: augment changes nothing"),
        ({"copies": 2, "augment": AugmentSettings()}, "2 copies would be the recording again"),
        ({"augment": AugmentSettings(gain_db=3.0)}, "augment and seed have no effect without copies"),
        ({"seed": 1}, "augment and seed have no effect without copies"),
    ],
)
def test_settings_out_of_range_or_without_effect_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EncodeSettings(**settings)
