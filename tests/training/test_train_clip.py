import dataclasses
import io
import json
import os
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scripts import load_script
from tiny_model import sentence_encoder, write_tiny_clip

from diffaudio.errors import UserError
from diffaudio.models.clip import Clip
from diffaudio.training.clip.captioned_images import load_photographs
from diffaudio.training.clip.training_set import build_training_set
from diffaudio.training.resume import latest_state

COLOURS = {"a dog": (200, 30, 30), "rain": (30, 30, 200), "the roof": (30, 200, 30), "barking": (220, 220, 40)}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("train/clip.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ with a colour a caption, and text/, a sentence encoder"""
    folder = tmp_path_factory.mktemp("train-clip")
    rows = []
    for caption, colour in COLOURS.items():
        for shade in range(3):
            data = io.BytesIO()
            Image.new("RGB", (24, 20), tuple(c + 5 * shade for c in colour)).save(data, "JPEG")
            rows.append({"image": data.getvalue(), "captions": [caption]})
    (folder / "images").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "images" / "images.parquet")
    (folder / "texts.txt").write_text("\n".join(COLOURS))
    sentence_encoder(folder / "text", write_tiny_clip(folder / "clip"))
    return folder


def train(script: ModuleType, folder: Path, out: Path, steps: int, **more: Any) -> Path:
    """Run the script in this process; the model's folder. `more` may hold settings of the section `train`."""
    settings: dict[str, Any] = {
        "images": folder / "images", "text_model": folder / "text", "vocabulary_texts": [folder / "texts.txt"],
        "vocabulary_size": 150, "image_size": 16, "crop_size": 16, "image_model": "test_resnet", "batch_size": 4,
        "warmup_steps": 2, "lr": 3e-3, "log_every": 1, "precision": "no", "steps": steps, "threads": 1,
    } | more  # fmt: skip
    of_training = {field.name for field in dataclasses.fields(script.TrainSettings)}
    section = script.TrainSettings(**{name: settings.pop(name) for name in of_training & settings.keys()})
    script.main(script.Config(out=out, train=section, **settings))
    return out / "model"


def test_the_image_tower_learns_the_captions_and_the_text_tower_stays(script: ModuleType, folder: Path, tmp_path: Path):
    clip = Clip.from_pretrained(train(script, folder, tmp_path / "run", 40))
    pictures = [Image.new("RGB", (30, 30), colour) for colour in COLOURS.values()]
    similarity = clip.encode_image(pictures) @ clip.encode_text(list(COLOURS)).T
    assert similarity.argmax(dim=1).tolist() == [0, 1, 2, 3]
    before = load_file(tmp_path / "run" / "initial" / "open_clip_model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "open_clip_model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("visual.") or name == "logit_scale" for name in changed)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert lines[-1]["tower/caption_loss"] < lines[0]["tower/caption_loss"]


def test_a_resumed_run_equals_an_uninterrupted_one(script: ModuleType, folder: Path, tmp_path: Path):
    constant = {"lr": 1e-3, "warmup_steps": 1000}  # the cosine ends at the last step, wherever that is
    train(script, folder, tmp_path / "parts", 2, **constant)
    models = [train(script, folder, tmp_path / out, 4, **constant) for out in ("whole", "parts")]
    whole, parts = (load_file(model / "open_clip_model.safetensors") for model in models)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_training_can_start_from_a_trained_model(script: ModuleType, folder: Path, tmp_path: Path):
    first = train(script, folder, tmp_path / "first", 2)
    second = train(script, folder, tmp_path / "second", 1, start_from=first)
    name = "open_clip_model.safetensors"
    started, ended = load_file(tmp_path / "second" / "initial" / name), load_file(first / name)
    assert all(torch.equal(started[key], ended[key]) for key in ended)
    assert (second / name).is_file()


def test_a_folder_without_pictures_is_refused(script: ModuleType, folder: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no Parquet file with pictures; expected columns 'image'"):
        train(script, folder, tmp_path / "run", 1, images=tmp_path / "empty")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier's weights, as timm names them."""
    path = tmp_path_factory.mktemp("classifier") / "model.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


def test_only_the_projection_is_trained_in_the_first_phase(
    script: ModuleType, folder: Path, classifier: Path, tmp_path: Path
):
    model = train(script, folder, tmp_path, 0, image_weights=str(classifier), projection_steps=3)
    before, after = (load_file(f / "open_clip_model.safetensors") for f in (tmp_path / "initial", model))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"visual.head.proj.weight", "logit_scale"}
    pretrained = load_file(classifier)
    assert torch.equal(after["visual.trunk.conv1.0.weight"], pretrained["conv1.0.weight"].half())


def test_frozen_parts_and_batch_statistics_of_a_pretrained_tower_stay(
    script: ModuleType, folder: Path, classifier: Path, tmp_path: Path
):
    model = train(script, folder, tmp_path, 3, image_weights=str(classifier), frozen_parts=("conv1", "bn1"), lr=0.1)
    before, after = (load_file(f / "open_clip_model.safetensors") for f in (tmp_path / "initial", model))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("visual.trunk.layer4") for name in changed)
    assert not any(name.startswith(("visual.trunk.conv1", "visual.trunk.bn1")) for name in changed)
    assert not any("running" in name for name in changed)


@pytest.mark.parametrize("stopped_at", [2, 4])
def test_a_run_stopped_by_ctrl_c_in_either_phase_resumes_as_if_uninterrupted(
    script: ModuleType, folder: Path, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int
):
    settings: dict[str, Any] = {"image_weights": str(classifier), "projection_steps": 3, "distillation_weight": 0.5}
    whole = train(script, folder, tmp_path / "whole", 3, **settings)
    real, steps = script.TrainingSet.losses, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == stopped_at:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(script.TrainingSet, "losses", interrupted)
    with pytest.raises(KeyboardInterrupt, match=f"step {stopped_at} is saved; the same command goes on from there"):
        train(script, folder, tmp_path / "parts", 3, **settings)
    monkeypatch.undo()
    assert latest_state(tmp_path / "parts" / "state") == tmp_path / "parts" / "state" / f"step_0000000{stopped_at}"
    assert (tmp_path / "parts" / "model" / "open_clip_config.json").is_file()
    parts = train(script, folder, tmp_path / "parts", 3, **settings)
    one, other = (load_file(model / "open_clip_model.safetensors") for model in (whole, parts))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    measured = [json.loads((tmp_path / run / "measures.json").read_text()) for run in ("parts", "whole")]
    assert measured[0] == measured[1] and measured[0].keys() == {"projection", "tower"}


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_training_reports_device_data_progress_and_where_the_model_is(
    script: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train(script, folder, tmp_path / "run", 2)
    said = capsys.readouterr().err
    for line in (
        "device: cpu (1 threads), float32",
        "data: 12 pictures, 0 held out; batches of 4",
        f"done: the model is in {tmp_path / 'run/model'}",
    ):
        assert f"{line}\n" in said
    assert "step/s" in said and "loss=" in said


def test_a_crop_depends_on_its_place_in_the_batch_and_not_on_the_process(script: ModuleType, folder: Path):
    clip = Clip.from_pretrained(folder / "clip")
    data = build_training_set(load_photographs(folder / "images"), clip, ["{}"], sounding_weight=1.0)
    settings, chosen = script.TrainSettings(crop_size=8, seed=3), torch.tensor([0, 3, 3, 7])
    whole = data.crops(chosen, settings, 5, 0)
    assert torch.equal(
        whole, torch.cat([data.crops(chosen[:2], settings, 5, 0), data.crops(chosen[2:], settings, 5, 2)])
    )
    assert not torch.equal(whole[1], whole[2])  # the same picture at two places
    assert not torch.equal(whole, data.crops(chosen, settings, 6, 0))


def test_changed_settings_are_refused_when_a_run_resumes(script: ModuleType, folder: Path, tmp_path: Path):
    train(script, folder, tmp_path / "run", 2)
    with pytest.raises(ValueError, match=r"run: the run was begun with train.sounding_weight 4\.0, not 9\.0"):
        train(script, folder, tmp_path / "run", 3, sounding_weight=9.0)


def test_held_out_measures_are_printed_and_kept(
    script: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "kinds.yaml").write_text("dog barking: [a dog, barking]\nrain: [rain]\n")
    (tmp_path / "paraphrases.csv").write_text("prompt,label\nthe rain,rain\n")
    train(
        script, folder, tmp_path / "run", 1, hold_out_sources=1, hold_out_pictures=2, kinds=tmp_path / "kinds.yaml",
        paraphrases=tmp_path / "paraphrases.csv", images=mixed_sources(folder, tmp_path / "images"),
    )  # fmt: skip
    measures = json.loads((tmp_path / "run" / "measures.json").read_text())["tower"]
    assert {"image_to_caption_recall_1", "caption_to_image_recall_5", "kind_zero_shot", "word_test"} <= measures.keys()
    assert "kind_zero_shot" in capsys.readouterr().out


def mixed_sources(folder: Path, target: Path) -> Path:
    """The pictures, most of them from one large source and the others from a small one."""
    rows = pq.read_table(folder / "images" / "images.parquet").to_pylist()
    for index in range(24):
        rows.append(rows[index % 12] | {"image": rows[index % 12]["image"] + bytes([index])})
    rows = [row | {"source": "site" if index < 4 else "large"} for index, row in enumerate(rows)]
    target.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), target / "images.parquet")
    return target


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text_model": Path("gone")}, r"text_model: gone is not the folder of a sentence encoder, config.json is"),
        ({"start_from": Path("gone")}, r"start_from: gone is not a CLIP folder, open_clip_config.json is missing"),
        ({"image_weights": "gone.safetensors"}, r"image_weights: gone.safetensors is missing; give a safetensors file"),
        ({"image_model": "resnet_9000"}, r"image_model 'resnet_9000' is not a model of timm's"),
        ({"distillation_weight": 0.5}, r"train.distillation_weight needs a pretrained classifier"),
        ({"class_sounds": Path("sounds.yaml")}, r"class_sounds has no effect where train.distillation_weight is 0"),
        ({"projection_steps": 3}, r"train.projection_steps would train on a random tower's features"),
        ({"frozen_parts": ("stem",)}, r"train.frozen_parts: 'stem' is not a part of the image model; its parts: conv1"),
        ({"vocabulary_texts": [Path("gone.txt")]}, r"vocabulary_texts: gone.txt cannot be read"),
        ({"kinds": Path("gone.yaml")}, r"kinds: gone.yaml cannot be read"),
    ],
)
def test_each_wrong_setting_is_one_line(
    script: ModuleType, folder: Path, tmp_path: Path, settings: dict[str, Any], message: str
):
    with pytest.raises(UserError, match=message):
        train(script, folder, tmp_path / "run", 1, **settings)


def test_weights_of_another_model_are_refused(script: ModuleType, folder: Path, classifier: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"does not hold the weights of timm's test_vit"):
        train(script, folder, tmp_path / "run", 1, image_model="test_vit", image_weights=str(classifier))
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"broken.safetensors cannot be read as safetensors"):
        train(script, folder, tmp_path / "run", 1, image_weights=str(tmp_path / "broken.safetensors"))
