"""LoRA adapters of a model: in the pipeline, on the command line, and merged."""

import json
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from tiny_adapter import write_adapter
from tiny_model import write_tiny_model

from diffaudio.adapter_names import parse_adapter
from diffaudio.adapters import describe_model, unet_fingerprint
from diffaudio.cli.main import main
from diffaudio.errors import UserError
from diffaudio.pipeline import DiffAudioPipeline

LAYERS = {"conv_in": (24, 16), "middle.1.qkv": (32, 96)}  # of the tiny model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def adapter(tmp_path) -> Path:
    return write_adapter(tmp_path / "adapter", layers=LAYERS)


def remembering(adapter: Path, model: Path) -> Path:
    """The adapter with pictures for the bridge, one of which answers to "a dog" alone."""
    pipe = DiffAudioPipeline.from_pretrained(model)
    texts = pipe.clip.encode_text(["a dog"])
    memory = torch.nn.functional.normalize(torch.arange(1.0, 17.0)[None], dim=1)
    save_file({"memory": memory, "memory_keys": texts, "texts": texts.clone()}, adapter / "conditions.safetensors")
    trained_on = describe_model(pipe.unet, pipe.autoencoder, pipe.clip)
    (adapter / "trained_on.json").write_text(json.dumps(trained_on))
    return adapter


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("birds", ("birds", 1.0)),
        ("birds::0.7", ("birds", 0.7)),
        ("a/b::-2", ("a/b", -2.0)),
        ("C::odd::1e-1", ("C::odd", 0.1)),
    ],
)
def test_an_adapter_is_written_as_a_folder_and_its_strength(text, expected):
    assert parse_adapter(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("birds::", "'' is no number; write FOLDER::STRENGTH, such as birds::0.7"),
        ("birds::much", "'much' is no number"),
        ("birds::0", "strength 0 has no effect"),
        ("birds::nan", "strength is nan"),
        ("::0.5", "names no adapter"),
        ("", "names no adapter"),
    ],
)
def test_strengths_without_sense_are_refused(text, message, capsys):
    with pytest.raises(UserError) as raised:
        parse_adapter(text)
    assert message in str(raised.value)
    assert main(["generate", "rain", "--lora", text]) == 2
    assert message in capsys.readouterr().err


def test_an_adapter_changes_the_unet_and_the_bridge_remembers_its_pictures(model, adapter, caplog):
    remembering(adapter, model)
    pipe, before = (DiffAudioPipeline.from_pretrained(model) for _ in range(2))
    pipe.load_lora(adapter, 0.5)
    assert unet_fingerprint(pipe.unet) != unet_fingerprint(before.unet)
    assert pipe.bridge.config["memory_size"] == before.bridge.config["memory_size"] + 1
    new = torch.nn.functional.normalize(torch.arange(1.0, 17.0), dim=0)
    nearness = [float((each.encode_prompt("a dog") @ new).squeeze()) for each in (before, pipe)]
    assert nearness[1] > 0.99 > nearness[0]
    assert not caplog.records


def test_an_adapter_of_other_weights_is_warned_about_once_and_of_another_clip_refused(model, adapter, caplog):
    file = remembering(adapter, model) / "trained_on.json"
    noted = json.loads(file.read_text())
    file.write_text(json.dumps(noted | {"unet": "0" * 64}))
    pipe = DiffAudioPipeline.from_pretrained(model)
    pipe.load_lora(adapter)
    pipe.load_lora(adapter)
    assert [record.getMessage() for record in caplog.records] == [
        f"{adapter}: was trained on other weights than this model's; it may do less, or something else"
    ]
    for name in ("clip", "autoencoder"):
        file.write_text(json.dumps(noted | {name: "another"}))
        pipe = DiffAudioPipeline.from_pretrained(model)
        fingerprint = unet_fingerprint(pipe.unet)
        with pytest.raises(UserError, match=f"was trained with {name} 'another', the model's is"):
            pipe.load_lora(adapter)
        assert unet_fingerprint(pipe.unet) == fingerprint


def test_generated_with_adapters_or_with_the_merged_model_it_is_the_same_sound(model, adapter, tmp_path, capsys):
    remembering(adapter, model)
    other = write_adapter(tmp_path / "other", seed=5, layers={"conv_in": (24, 16)})
    lora = [f"{adapter}::0.6", str(other)]
    common = ["--duration", "1", "--steps", "3", "--seed", "1"]
    assert main(["merge", *lora, "--model", str(model), "-o", str(tmp_path / "merged")]) == 0
    assert "2 adapters merged" in capsys.readouterr().out
    for name, more in (
        ("plain", ["--model", str(model)]),
        ("with", ["--model", str(model), "--lora", *lora]),
        ("merged", ["--model", str(tmp_path / "merged")]),
    ):
        assert main(["generate", "a dog", "-o", str(tmp_path / f"{name}.wav"), *common, *more]) == 0
    plain, with_adapters, merged = (
        torch.from_numpy(soundfile.read(tmp_path / f"{name}.wav")[0]) for name in ("plain", "with", "merged")
    )
    assert (plain - with_adapters).abs().max() > 0.01
    assert (merged - with_adapters).abs().max() < 0.02 * with_adapters.abs().max()
    assert json.loads((tmp_path / "with.json").read_text())["lora"] == lora
    assert json.loads((tmp_path / "plain.json").read_text())["lora"] is None


def test_what_is_no_adapter_is_refused_in_one_line_and_nothing_is_written(model, adapter, tmp_path, capsys):
    def message(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        told = capsys.readouterr().err.strip()
        assert "\n" not in told
        return told

    out = tmp_path / "out.wav"
    generate = ["generate", "a dog", "-o", out, "--model", model, "--steps", "1", "--duration", "0.5", "--lora"]
    assert "there is no such adapter folder" in message(*generate, tmp_path / "none")
    assert "not an adapter folder, adapter_config.json is missing" in message(*generate, model)
    weights = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").write_bytes(b"x" * 100)
    assert "adapter_model.safetensors: cannot be loaded" in message(*generate, adapter)
    save_file(weights, adapter / "adapter_model.safetensors")
    (adapter / "link").symlink_to("/etc/hostname")
    assert "leads out of the folder" in message(*generate, adapter)
    (adapter / "link").unlink()
    wrong = write_adapter(tmp_path / "wrong", layers={"conv_in": (48, 16)})
    assert "conv_in is [16, 48], in this model [16, 24]" in message(*generate, wrong)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    assert "holds something already" in message("merge", adapter, "--model", model, "-o", tmp_path / "full")
    assert not out.exists()
