"""train/tagger.py: learns from labels or from what CLIP sees, goes on where it was stopped, and measures honestly."""

import csv
import json
import math

import pytest
import torch
from fakes import FakeClip, write_clips
from safetensors.torch import load_file
from scripts import REPO, load_script
from tiny_model import write_tiny_clip

from diffaudio.config import parse
from diffaudio.corpus.datasets.labelled import (
    OUTLIER_KIND,
    label_by_clip,
    read_labelled_clips,
    read_labels,
    split_by_source,
    with_outliers,
)
from diffaudio.errors import UserError
from diffaudio.media.audio import write_audio
from diffaudio.models.tagger import load_tagger
from diffaudio.training.tagger_batches import BatchSettings, Pools, draw_batch, mix_up

script = load_script("train/tagger.py")
KINDS = {"low": 300.0, "high": 3000.0}
COLOURS = {"low": (250, 0, 0), "high": (0, 0, 250)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """corpus/ of 24 tones, low and high, under red and blue pictures, with labels.csv"""
    folder = tmp_path_factory.mktemp("tagger")
    labels = ["low", "high"] * 12
    generator = torch.Generator().manual_seed(0)
    time_s = torch.arange(16000) / 16000
    waveforms = []
    for label in labels:
        pitch = KINDS[label] * (1 + 0.2 * float(torch.rand((), generator=generator)))
        waveforms.append(0.5 * torch.sin(2 * math.pi * pitch * time_s)[None])
    write_clips(folder / "corpus", waveforms, [[COLOURS[label]] for label in labels], sample_rate=16000)
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *((f"{i}.mp4", label) for i, label in enumerate(labels))])
    return folder


def train(folder, out, steps, **more):
    arguments = {
        "data": folder / "corpus", "out": out, "train.steps": steps, "train.batch_size": 8, "train.duration_s": 0.5,
        "train.warmup_steps": 2, "train.save_every": 3, "train.log_every": 1, "train.threads": 1,
        "tagger.width": 4, "tagger.embedding_dim": 8, "tagger.num_mels": 20, "labels": folder / "labels.csv", **more,
    }  # fmt: skip
    given = [f"--{name}={value}" for name, value in arguments.items() if value is not None]
    script.main(parse(script.Config, given))
    return out


def test_training_learns_audible_kinds_and_reports_held_out_accuracy(folder, tmp_path):
    out = train(folder, tmp_path / "run", 40, **{"train.lr": 5e-3})
    report = json.loads((out / "held_out.json").read_text())
    assert report["accuracy"] == 1.0
    assert 0 < report["n"] < 12 and len(report["held_out"]) == report["n"]
    assert report["interval"][0] < 1.0  # a few recordings prove little
    assert load_tagger(out / "model").labels == ["high", "low"]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(folder, tmp_path, monkeypatch, precision):
    settings = {"train.precision": precision}
    train(folder, tmp_path / "whole", 8, **settings)

    class Killed(BaseException):
        pass

    batch, calls = script.draw_batch, []

    def batch_until_killed(*arguments):
        calls.append(1)
        if len(calls) == 6:  # two steps after a save
            raise Killed
        return batch(*arguments)

    monkeypatch.setattr(script, "draw_batch", batch_until_killed)
    with pytest.raises(Killed):
        train(folder, tmp_path / "stopped", 8, **settings)
    assert [path.name for path in (tmp_path / "stopped/state").iterdir()] == ["step_00000003"]
    monkeypatch.setattr(script, "draw_batch", batch)
    train(folder, tmp_path / "stopped", 8, **settings)
    for name in ("tagger", "optimizer"):
        whole, stopped = (
            load_file(tmp_path / run / f"state/step_00000008/{name}.safetensors") for run in ("whole", "stopped")
        )
        assert whole.keys() == stopped.keys()
        assert all(torch.equal(whole[key], stopped[key]) for key in whole)
    train(folder, tmp_path / "other", 8, **settings, **{"train.seed": 1})
    assert lines(tmp_path / "other") != lines(tmp_path / "whole") == lines(tmp_path / "stopped")


def lines(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_without_labels_the_targets_are_what_clip_sees_on_the_frames(folder):
    class Colours(FakeClip):
        def encode_text(self, texts):
            return torch.eye(3)[[{"red": 0, "green": 1, "blue": 2}[text] for text in texts]]

    clips = label_by_clip(folder / "corpus", Colours(), ["red", "green", "blue"], sample_rate=8000, temperature=0.1)
    truth = read_labels(folder / "labels.csv")
    assert len(clips) == 24 and len(clips.waveforms[0]) == 8000
    for source, target in zip(clips.sources, clips.targets, strict=True):
        assert clips.kinds[int(target.argmax())] == {"low": "red", "high": "blue"}[truth[source]]
        assert float(target.sum()) == pytest.approx(1)


def test_the_script_trains_from_clip_alone(folder, tmp_path):
    clip = write_tiny_clip(tmp_path / "clip")
    more = {"labels": None, "clip": clip, "kinds": '["a dog", "rain"]'}
    out = train(folder, tmp_path / "run", 2, **more)
    assert "what CLIP" in json.loads((out / "held_out.json").read_text())["against"]
    assert load_tagger(out / "model").labels == ["a dog", "rain"]


def test_no_source_is_on_both_sides_and_others_do_not_move_it(folder):
    clips = read_labelled_clips(folder / "corpus", read_labels(folder / "labels.csv"), sample_rate=16000)
    clips.sources = [source for source in clips.sources for _ in range(2)][:24]  # two clips of each source
    kept, held_out = split_by_source(clips, 0.4)
    assert kept.sources and held_out.sources and not set(kept.sources) & set(held_out.sources)
    assert sorted(kept.sources + held_out.sources) == sorted(clips.sources)
    some = clips.subset([i for i, source in enumerate(clips.sources) if source != held_out.sources[0]])
    assert set(split_by_source(some, 0.4)[1].sources) == set(held_out.sources) - {held_out.sources[0]}
    assert split_by_source(clips, 0.0)[1].sources == []


def test_with_nothing_held_out_nothing_is_measured(folder, tmp_path, capsys):
    out = train(folder, tmp_path / "run", 1, **{"train.held_out": 0})
    assert json.loads((out / "held_out.json").read_text()) == {"n": 0, "held_out": [], "against": "labels"}
    assert "accuracy" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def outliers(tmp_path_factory):
    """A folder of clicks, which are neither low nor high."""
    folder = tmp_path_factory.mktemp("outliers") / "more"
    folder.mkdir()
    for index in range(12):
        clicks = torch.zeros(1, 16000)
        clicks[:, :: 800 + 100 * index] = 0.5
        write_audio(folder / f"{index}.wav", clicks, 16000)
    return folder.parent


def test_a_tagger_that_was_shown_outliers_says_so_of_others(folder, outliers, tmp_path):
    out = train(folder, tmp_path / "run", 60, **{"train.lr": 5e-3, "outliers": outliers, "train.outlier_share": 0.5})
    report = json.loads((out / "held_out.json").read_text())
    assert load_tagger(out / "model").labels == ["high", "low", OUTLIER_KIND]
    found, total = map(int, report["outliers"]["recordings"].split(" of "))
    assert found == total > 0
    assert set(report["outliers"]) == {"recordings", "noise", "tones"}  # steady tones are not reversed
    assert report["n"] + total == len(report["held_out"]) and report["by_kind"].keys() == {"high", "low"}
    wrong = int(report["taken_for_none"].split(" of ")[0])
    assert report["accuracy"] <= 1 - wrong / report["n"] + 1e-4


def test_outliers_come_as_often_as_asked_for_and_always_as_none(folder, outliers):
    clips = read_labelled_clips(folder / "corpus", read_labels(folder / "labels.csv"), sample_rate=16000)
    settings = BatchSettings(duration_s=0.1, mixup=0, outlier_share=0.25)
    assert len(Pools.of(clips, 0.5).outliers) == 0
    batch = draw_batch(clips, Pools.of(clips, 0.5), settings, torch.Generator().manual_seed(0), 8)
    clips = with_outliers(clips, outliers)
    pools = Pools.of(clips, 0.5)
    assert (len(pools.clips), len(pools.outliers), pools.changing) == (24, 12, [])
    _, targets = draw_batch(clips, pools, settings, torch.Generator().manual_seed(0), 800)
    assert torch.equal(targets.sum(dim=1), torch.ones(800)) and targets.unique().tolist() == [0, 1]
    assert 0.2 < float(targets[:, 2].mean()) < 0.3
    assert batch[1].shape == (8, 2)


def test_folders_that_hold_no_outliers_are_refused(folder, tmp_path):
    clips = read_labelled_clips(folder / "corpus", read_labels(folder / "labels.csv"), sample_rate=16000)
    with pytest.raises(UserError, match="nowhere: there is no such folder of outliers"):
        with_outliers(clips, tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no sound; looked for .aac"):
        with_outliers(clips, tmp_path)
    clips.kinds[0] = OUTLIER_KIND
    with pytest.raises(UserError, match="'none of these' is the name of the kind for outliers"):
        with_outliers(clips, tmp_path)


def test_a_mixed_sound_is_of_both_kinds():
    x, targets = torch.eye(4), torch.eye(4)
    mixed, both = mix_up(x, targets, 0.5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixed, both)
    torch.testing.assert_close(both.sum(dim=1), torch.ones(4))
    assert not torch.equal(both, targets)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"labels": None}, "nothing to learn from: give --labels, or --clip and --kinds"),
        ({"kinds": "[dog]"}, "--kinds has no effect without --clip"),
        ({"clip": "somewhere"}, "--clip takes the place of --labels"),
        ({"labels": "missing.csv"}, "missing.csv: there is no such list of labels"),
        ({"tagger.front_end": "mel"}, "front end 'mel' is unknown"),
    ],
)
def test_bad_settings_are_refused(folder, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        train(folder, tmp_path / "run", 1, **more)


def test_bad_lists_of_labels_are_refused(folder, tmp_path):
    file = tmp_path / "labels.csv"
    for content, message in (
        ("file,kind\na.mp4,dog\n", "column 'label' is missing"),
        ("file,label\na.mp4,dog\na.mp4,cat\n", "'a.mp4' is there more than once"),
        ("file,label\nz.mp4,dog\n", "none of the labelled files .such as z.mp4. is a source"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            train(folder, tmp_path / "run", 1, labels=file)


def test_the_configuration_that_is_shipped_is_valid():
    given = ["--config", str(REPO / "configs/mini/tagger.yaml"), "--data", "a", "--labels", "b", "--out", "c"]
    assert parse(script.Config, given).tagger.name == "tagger_45_kinds"


def test_what_is_not_finite_ends_the_run_with_the_last_good_save_in_place(folder, tmp_path, monkeypatch):
    batch, calls = script.draw_batch, []

    def damaged_at_the_fourth_step(*arguments):
        calls.append(1)
        waveforms, targets = batch(*arguments)
        return waveforms * (float("nan") if len(calls) == 4 else 1), targets

    monkeypatch.setattr(script, "draw_batch", damaged_at_the_fourth_step)
    with pytest.raises(UserError, match=r"stopped: step 4: loss is nan; \S+/step_00000003 and the model beside it"):
        train(folder, tmp_path / "run", 5)
    assert [path.name for path in (tmp_path / "run/state").iterdir()] == ["step_00000003"]
    weights = load_file(tmp_path / "run/state/step_00000003/tagger.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    monkeypatch.undo()
    train(folder, tmp_path / "run", 5)
    assert len(lines(tmp_path / "run")) == 5
