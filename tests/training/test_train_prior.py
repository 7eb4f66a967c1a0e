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
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from scripts import load_script
from tiny_encoded import write_encoded_corpus
from tiny_model import write_tiny_clip

from diffaudio.errors import UserError
from diffaudio.models.bridge.folder import load_bridge
from diffaudio.models.clip import Clip
from diffaudio.training.captions import CaptionSettings
from diffaudio.training.prior_pairs import Pairs, load_pairs


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("train/prior.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clip/, and images/ with two colours and their captions"""
    folder = tmp_path_factory.mktemp("train-prior")
    write_tiny_clip(folder / "clip")
    rows = []
    for caption, colour in (("a dog", (200, 30, 30)), ("rain", (30, 30, 200))):
        data = io.BytesIO()
        Image.new("RGB", (20, 20), colour).save(data, "PNG")
        rows.append({"image": data.getvalue(), "captions": [caption]})
    (folder / "images").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "images" / "images.parquet")
    return folder


def train(script: ModuleType, folder: Path, out: Path, steps: int, **more: Any) -> Path:
    """Run the script in this process; the bridge's folder. `more` may hold settings of the section `train`."""
    settings: dict[str, Any] = {
        "clip": str(folder / "clip"), "images": folder / "images", "num_layers": 1, "num_attention_heads": 2,
        "threads": 1, "attention_head_dim": 8, "batch_size": 16, "warmup_steps": 2, "lr": 3e-3, "log_every": 1,
        "steps": steps,
    } | more  # fmt: skip
    of_training = {field.name for field in dataclasses.fields(script.TrainSettings)}
    section = script.TrainSettings(**{name: settings.pop(name) for name in of_training & settings.keys()})
    script.main(script.Config(out=out, train=section, **settings))
    return out / "model"


def test_the_loss_falls_and_the_result_is_a_bridge_for_this_clip(script: ModuleType, folder: Path, tmp_path: Path):
    clip = Clip.from_pretrained(folder / "clip")
    bridge = load_bridge(train(script, folder, tmp_path / "run", 40))
    assert bridge.config["clip_name"] == clip.name
    drawn = bridge(clip.encode_text(["a dog", "rain"]))
    torch.testing.assert_close(drawn.norm(dim=-1), torch.ones(2))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_a_resumed_run_equals_an_uninterrupted_one(script: ModuleType, folder: Path, tmp_path: Path):
    constant = {"warmup_steps": 1000}  # the cosine ends at the last step, wherever that is
    train(script, folder, tmp_path / "parts", 2, **constant)
    models = [train(script, folder, tmp_path / out, 4, **constant) for out in ("whole", "parts")]
    whole, parts = (load_file(model / "diffusion_pytorch_model.safetensors") for model in models)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_ctrl_c_finishes_the_step_saves_it_and_says_so(
    script: ModuleType,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    whole = train(script, folder, tmp_path / "whole", 4)
    said = capsys.readouterr().err
    assert "device: cpu (1 threads), float32\n" in said and "data: 2 image embeddings; batches of 16\n" in said
    assert "step/s" in said and f"done: the model is in {whole}\n" in said
    real, calls = script.prior_loss, 0

    def interrupted(*arguments: Any, **more: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments, **more)

    monkeypatch.setattr(script, "prior_loss", interrupted)
    with pytest.raises(KeyboardInterrupt, match="step 2 is saved; the same command goes on from there"):
        train(script, folder, tmp_path / "parts", 4)
    monkeypatch.undo()
    parts = train(script, folder, tmp_path / "parts", 4)
    one, other = (load_file(model / "diffusion_pytorch_model.safetensors") for model in (whole, parts))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_made_up_text_is_the_picture_moved_to_where_texts_lie():
    images = F.normalize(torch.randn(400, 16, generator=torch.Generator().manual_seed(0)) + 2, dim=-1)
    texts = F.normalize(torch.randn(300, 16, generator=torch.Generator().manual_seed(1)) - 2, dim=-1)
    drawn, shown = Pairs(images, texts, None, 0.1).draw(4000, torch.Generator().manual_seed(2))
    assert (drawn.mean(0) - texts.mean(0)).norm() < 0.2 * (images.mean(0) - texts.mean(0)).norm()
    nearest = ((drawn - drawn.mean(0)) @ (shown - shown.mean(0)).T).argmax(dim=1)
    assert (shown[nearest] == shown).all(dim=1).float().mean() > 0.5


def test_only_texts_of_the_picture_are_drawn():
    images, texts = torch.eye(3), torch.eye(3) * 2
    drawn, shown = Pairs(images, texts, [[0], [1, 2], [2]], 0.0).draw(60, torch.Generator().manual_seed(0))
    assert {(int(a.argmax()), int(b.argmax())) for a, b in zip(shown, drawn, strict=True)} == {
        (0, 0), (1, 1), (1, 2), (2, 2),
    }  # fmt: skip


def test_what_to_learn_from_has_to_be_said(script: ModuleType, folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"give one of images \(captioned pictures\) and corpus"):
        train(script, folder, tmp_path / "run", 1, images=None)
    with pytest.raises(UserError, match=r"texts_file: give sentences, one a line"):
        train(script, folder, tmp_path / "run", 1, images=None, corpus=[tmp_path])
    captions = CaptionSettings(str(tmp_path / "labels.csv"))
    with pytest.raises(UserError, match=r"captions has no effect with images, which have captions of their own"):
        train(script, folder, tmp_path / "run", 1, captions=captions)
    (tmp_path / "texts.txt").write_text("rain\n")
    with pytest.raises(UserError, match=r"texts_file has no effect where pictures have captions"):
        train(script, folder, tmp_path / "run", 1, images=None, corpus=[tmp_path], captions=captions,
              texts_file=tmp_path / "texts.txt")  # fmt: skip
    with pytest.raises(UserError, match=r"captions.templates has no effect without captions.source"):
        train(script, folder, tmp_path / "run", 1, captions=CaptionSettings(templates=["{}"]))


def test_the_supervised_prior_learns_from_captions_of_the_corpus(script: ModuleType, folder: Path, tmp_path: Path):
    clip = Clip.from_pretrained(folder / "clip")
    pictures = F.normalize(torch.eye(3, 16) + 0.1, dim=-1)
    write_encoded_corpus(tmp_path / "corpus", embeddings=pictures)
    captions = CaptionSettings(str(tmp_path / "labels.csv"))
    pairs = load_pairs(
        clip, images=None, corpus=[tmp_path / "corpus"], captions=captions, texts_file=None, pseudo_noise=0.3,
        max_images=100,
    )  # fmt: skip
    texts, images = pairs.draw(100, torch.Generator().manual_seed(0))
    of_texts = clip.encode_text(["a dog", "rain", "a roof", "the sound"])
    found = {
        (int((image @ pictures.T).argmax()), int((of_texts - text).norm(dim=1).argmin()))
        for text, image in zip(texts, images, strict=True)
    }
    assert found == {(0, 0), (1, 1), (1, 2), (2, 3)}
    settings = {"images": None, "corpus": [tmp_path / "corpus"], "captions": captions}
    bridge: Any = load_bridge(train(script, folder, tmp_path / "run", 2, **settings))
    torch.testing.assert_close(bridge.image_mean[0], pictures.mean(dim=0), rtol=0, atol=1e-3)
