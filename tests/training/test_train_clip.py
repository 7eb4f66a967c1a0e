import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scripts import load_script
from tiny_model import sentence_encoder, write_tiny_clip

from diffaudio.models.clip import Clip

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
    """Run the script in this process; the model's folder."""
    settings: dict[str, Any] = {
        "images": folder / "images", "text_model": folder / "text", "vocabulary_texts": [folder / "texts.txt"],
        "vocabulary_size": 150, "image_size": 16, "image_model": "test_resnet", "batch_size": 4, "warmup_steps": 2,
        "learning_rate": 3e-3, "log_every": 1,
    }  # fmt: skip
    script.main(script.Config(out=out, steps=steps, **settings | more))
    return out / "model"


def test_no_two_pictures_of_a_batch_could_bear_the_same_caption(script: ModuleType):
    groups = [(("a pug", "a dog"), [0, 1]), (("a poodle", "a dog"), [2]), (("rain",), [3, 4]), (("the sea",), [5])]
    for seed in range(50):
        pictures, captions = script.draw_batch(groups, 4, 20.0, torch.Generator().manual_seed(seed))
        assert len(pictures) == len(captions) == 3
        assert len({0, 1, 2} & set(pictures)) == 1


def test_a_crop_stays_inside_the_picture(script: ModuleType):
    pictures = torch.full((16, 3, 20, 20), 0.5)
    crops = script.augment(pictures, 0.3, 12, torch.Generator().manual_seed(0))
    assert crops.shape == (16, 3, 12, 12)
    assert crops.flatten(1).std(dim=1).max() < 1e-5  # padding would show as black


def test_the_image_tower_learns_the_captions_and_the_text_tower_stays(script: ModuleType, folder: Path, tmp_path: Path):
    clip = Clip.from_pretrained(train(script, folder, tmp_path / "run", 60))
    pictures = [Image.new("RGB", (30, 30), colour) for colour in COLOURS.values()]
    similarity = clip.encode_image(pictures) @ clip.encode_text(list(COLOURS)).T
    assert similarity.argmax(dim=1).tolist() == [0, 1, 2, 3]
    before = load_file(tmp_path / "run" / "initial" / "open_clip_model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "open_clip_model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("visual.") or name == "logit_scale" for name in changed)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_a_resumed_run_equals_an_uninterrupted_one(script: ModuleType, folder: Path, tmp_path: Path):
    constant = {"learning_rate": 1e-3, "warmup_steps": 1000}  # the cosine ends at the last step, wherever that is
    train(script, folder, tmp_path / "parts", 2, **constant)
    models = [train(script, folder, tmp_path / out, 4, **constant) for out in ("whole", "parts")]
    whole, parts = (load_file(model / "open_clip_model.safetensors") for model in models)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_a_trained_model_can_be_gone_on_from(script: ModuleType, folder: Path, tmp_path: Path):
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
