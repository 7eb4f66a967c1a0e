"""Saving over what is there, and names that are no folders here."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import write_tiny_model

from diffaudio import DiffAudioPipeline, hub
from diffaudio.checkpoint import find_model, load_clip
from diffaudio.errors import UserError
from diffaudio.models.bridge.bridges import fit_bridge


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def pipe(folder):
    return DiffAudioPipeline.from_pretrained(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["thesis.docx", "unet/config.json", "model_index.json", "music/a.wav"])
def test_a_folder_that_holds_something_else_is_refused_and_left_as_it_is(pipe, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    before = files(tmp_path)
    with pytest.raises(UserError, match="holds something that is no model of diffaudio; name a new or empty folder"):
        pipe.save_pretrained(tmp_path)
    assert files(tmp_path) == before


def test_a_file_in_place_of_the_folder_is_refused(pipe, tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(UserError, match="is a file; name a folder"):
        pipe.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"


def test_saving_again_replaces_the_files_of_the_model_and_no_others(pipe, folder, tmp_path):
    target = tmp_path / "model"
    pipe.save_pretrained(target)
    own = files(target)
    others = {"README.md": b"a card", "notes/ideas.txt": b"1", "unet/curve.png": b"2", "licence": b"3"}
    for name, content in others.items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(content)
    (target / "clip/vocab.txt").write_bytes(b"of another tokenizer, which would be read")
    (target / "model.lnk").symlink_to("README.md")
    pipe.save_pretrained(target, dtype=torch.float16)
    after = files(target)
    assert after.pop("model.lnk") == b"a card"
    assert {name: after.pop(name) for name in others} == others
    assert after.keys() == own.keys()
    assert len(after["unet/diffusion_pytorch_model.safetensors"]) < len(own["unet/diffusion_pytorch_model.safetensors"])
    DiffAudioPipeline.from_pretrained(target)


def test_an_empty_folder_and_a_link_to_a_model_are_written_to(pipe, tmp_path):
    (tmp_path / "empty").mkdir()
    pipe.save_pretrained(tmp_path / "empty")
    (tmp_path / "link").symlink_to("empty")
    for _ in range(2):
        pipe.save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link"]
    assert (tmp_path / "empty/model_index.json").is_file()


@pytest.mark.parametrize("name", ["runs/demo", "owner/name"])
def test_the_hub_is_asked_for_a_missing_path_only_with_a_warning(name, monkeypatch, tmp_path, caplog):
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path))
    with caplog.at_level(logging.WARNING):
        find_model(name)
    assert caplog.messages == [f"{name}: there is no such folder here; asking the Hugging Face hub for it"]
    caplog.clear()
    find_model(f"hf-hub:{name}")
    assert (caplog.messages, asked) == ([], [name, name])


@pytest.mark.parametrize("name", ["./runs/demo", "../runs/demo", "/runs/demo", "runs/demo/model", "demo", "~/demo"])
def test_a_path_is_never_taken_for_a_hub_id(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(UserError, match="no such model folder|not a model folder"):
        find_model(name)


@pytest.mark.parametrize("error", [OSError("offline"), RuntimeError(""), TimeoutError("too slow\nsecond line")])
def test_any_error_of_the_hub_is_a_one_line_message(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(UserError, match=r"^hf-hub:owner/name: no such folder here, and the hub did not give it: ."):
        find_model("hf-hub:owner/name")


@pytest.mark.parametrize("name", ["ViT-B-32/openai", "ViT-B-32/laion2b_s34b_b79k", "hf-hub:owner/name", "ViT-B-32/x"])
def test_a_clip_that_cannot_be_downloaded_is_named(name, monkeypatch):
    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", fail)
    monkeypatch.setattr("socket.socket.connect", fail)
    with pytest.raises(UserError, match=rf"^{name}: cannot be loaded: ") as raised:
        load_clip(name)
    assert "\n" not in str(raised.value)


def test_bridges_are_saved_in_the_dtype_asked_for_and_those_in_memory_stay_as_they_are(folder, tmp_path):
    pipe = DiffAudioPipeline.from_pretrained(folder)
    images = torch.nn.functional.normalize(torch.randn(6, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    pipe.bridge.alternatives["spread"] = fit_bridge("spread", images, images.flip(0))
    pipe.save_pretrained(tmp_path / "model", dtype=torch.float16)
    for bridge in ("bridge", "bridge/spread"):
        weights = load_file(tmp_path / "model" / bridge / "diffusion_pytorch_model.safetensors")
        assert {value.dtype for value in weights.values()} == {torch.float16}
    assert {value.dtype for value in pipe.bridge.state_dict().values()} == {torch.float32}
    loaded = DiffAudioPipeline.from_pretrained(tmp_path / "model")
    for choice in ("retrieval", "spread"):
        embeddings = [each.encode_prompt("rain", bridge=choice) for each in (pipe, loaded)]
        torch.testing.assert_close(*embeddings, rtol=0, atol=5e-3)
