"""Model folders from an attacker: no code runs, no network is asked, nothing outside is read; a `UserError` each."""

import copy
import json
import os
import pickle
import random
import shutil
import socket
import struct
import time
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import write_tiny_model

from diffaudio.checkpoint import load_parts
from diffaudio.errors import UserError
from diffaudio.models.autoencoders import load_autoencoder
from diffaudio.models.tagger import Tagger, load_tagger
from diffaudio.safe_loading import REMOTE_CODE_KEYS

MAX_SECONDS, MAX_MEGABYTES = 20, 800
CONFIGS = [
    "model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "autoencoder/config.json",
    "bridge/config.json", "clip/open_clip_config.json", "clip/config.json", "clip/tokenizer_config.json",
]  # fmt: skip
WEIGHTS = [
    "unet/diffusion_pytorch_model.safetensors", "autoencoder/diffusion_pytorch_model.safetensors",
    "bridge/diffusion_pytorch_model.safetensors", "clip/open_clip_model.safetensors",
]  # fmt: skip
ODD_VALUES = [
    None, True, -1, 0, 10**9, 2**63, 10**30, 0.5, 1e308, "", "x" * 1000, "../../../etc/passwd", "owner/name", [], {},
    [10**9] * 3, [[]], {"a": {"b": 1}}, [1] * 10000,
]  # fmt: skip
MARKER = "raise SystemExit; import pathlib; pathlib.Path({!r}).touch()\n"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "model"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whoever asks a name server or connects is noticed, although the tests are offline for the hub."""
    asked = []

    def ask(*arguments, **_):
        asked.append(arguments)
        raise OSError("a test asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    monkeypatch.setattr(socket.socket, "connect", ask)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield
    assert asked == []


def peak_megabytes() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def load(folder: Path) -> None:
    load_parts(folder, torch.float32)


def refusal(folder: Path, load=load) -> str:
    """The message with which a folder is refused, in bounded time and memory; empty where it is not."""
    bounded = Path("/proc/self/clear_refs").exists()
    if bounded:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = peak_megabytes()
    began = time.process_time()
    try:
        load(folder)
        message = ""
    except UserError as error:
        message = str(error)
        assert message.startswith(str(folder)), message
    assert time.process_time() - began < MAX_SECONDS
    if bounded:
        assert peak_megabytes() - before < MAX_MEGABYTES
    return message


def edit(file: Path, place: str, value: Any) -> None:
    """Set an entry of a JSON file, by its dotted place."""
    content = json.loads(file.read_text())
    at = content
    *above, last = place.split(".")
    for name in above:
        at = at.setdefault(name, {})
    at[last] = value
    file.write_text(json.dumps(content))


def test_the_folder_itself_is_loaded(folder):
    assert refusal(folder) == ""


TEXT, VISION = "model_cfg.text_cfg", "model_cfg.vision_cfg"
OPEN_CLIP, BERT, TOKENIZER = "clip/open_clip_config.json", "clip/config.json", "clip/tokenizer_config.json"
REMOTE = {"AutoConfig": "code.Evil", "AutoModel": "code.Evil", "AutoTokenizer": ["code.Evil", "code.Evil"]}
ELSEWHERE = {"AutoTokenizer": ["owner/repo--code.Evil", None]}


@pytest.mark.parametrize(
    ("file", "place", "value", "message"),
    [
        (OPEN_CLIP, f"{TEXT}.tokenizer_kwargs", {"trust_remote_code": True}, "trust_remote_code is refused"),
        (OPEN_CLIP, f"{TEXT}.tokenizer_kwargs", {"subfolder": ".."}, "tokenizer_kwargs: subfolder is refused"),
        (OPEN_CLIP, f"{TEXT}.tokenizer_kwargs", {"use_fast": False}, "tokenizer_kwargs: use_fast is refused"),
        (OPEN_CLIP, f"{TEXT}.tokenizer_kwargs", {"clean": {"a": 1}}, "tokenizer_kwargs: clean is refused"),
        (OPEN_CLIP, f"{TEXT}.tokenizer_kwargs", ["clean"], "tokenizer_kwargs is"),
        (OPEN_CLIP, f"{TEXT}.hf_model_name", "owner/name", "in a folder it may only be '.'"),
        (OPEN_CLIP, f"{TEXT}.hf_tokenizer_name", "owner/name", "in a folder it may only be '.'"),
        (OPEN_CLIP, f"{TEXT}.hf_tokenizer_name", "local-dir:/etc", "may not name another place"),
        (OPEN_CLIP, f"{TEXT}.hf_tokenizer_name", "/etc", "in a folder it may only be '.'"),
        (OPEN_CLIP, f"{TEXT}.hf_model_pretrained", True, "hf_model_pretrained is refused"),
        (OPEN_CLIP, f"{VISION}.timm_model_pretrained", True, "timm_model_pretrained is refused"),
        (OPEN_CLIP, f"{VISION}.timm_model_name", "hf-hub:owner/name", "may not name another place"),
        (OPEN_CLIP, f"{VISION}.timm_model_name", "hf_hub:owner/name", "may not name another place"),
        (OPEN_CLIP, f"{VISION}.timm_model_name", "local-dir:/etc", "may not name another place"),
        (OPEN_CLIP, f"{VISION}.timm_model_name", "owner/name", "only names of timm's own models are allowed"),
        (OPEN_CLIP, f"{VISION}.timm_model_name", "no_such_model", "cannot be loaded"),
        (OPEN_CLIP, f"{VISION}.pretrained_cfg", {"hf_hub_id": "owner/name"}, "pretrained_cfg is refused"),
        (OPEN_CLIP, f"{VISION}.image_sise", 16, "unknown key 'image_sise'; did you mean 'image_size'?"),
        (OPEN_CLIP, "model_cfg.multimodal_cfg", {"layers": 1}, "unknown key 'multimodal_cfg'"),
        (OPEN_CLIP, "preprocess_cfg.size", 10**6, "size is 1000000; choose a whole number"),
        (BERT, "auto_map", REMOTE, "auto_map is refused"),
        (BERT, "auto_map", ELSEWHERE, "auto_map is refused"),
        (BERT, "trust_remote_code", True, "trust_remote_code is refused"),
        (BERT, "attn_implementation", "owner/kernel", "attn_implementation is refused"),
        (BERT, "_attn_implementation", "owner/kernel", "_attn_implementation is refused"),
        (BERT, "quantization_config", {"quant_method": "bitsandbytes"}, "quantization_config is refused"),
        (BERT, "model_type", "evil", "model_type is 'evil'; expected"),
        (BERT, "some_path", "/etc/passwd", "unknown key 'some_path'"),
        (TOKENIZER, "auto_map", REMOTE, "auto_map is refused"),
        (TOKENIZER, "auto_map", ELSEWHERE, "auto_map is refused"),
        (TOKENIZER, "trust_remote_code", True, "trust_remote_code is refused"),
        (TOKENIZER, "tokenizer_file", "/etc/passwd", "tokenizer_file is refused"),
        (TOKENIZER, "vocab_file", "../../secret.txt", "vocab_file is refused"),
        (TOKENIZER, "source_spm", "/etc/passwd", "source_spm is refused"),
        (TOKENIZER, "vocab", "/etc/passwd", "vocab is refused"),
        (TOKENIZER, "sp_model_kwargs", {"model_file": "/etc/passwd"}, "sp_model_kwargs is refused"),
        (TOKENIZER, "mecab_kwargs", {"mecab_option": "-r /etc/passwd"}, "mecab_kwargs is refused"),
        (BERT, "transformers_weights", "../unet/x.safetensors", "unknown key 'transformers_weights'"),
        (TOKENIZER, "tokenizer_class", "code.Evil", "expected the name of a class"),
        ("unet/config.json", "quantization_config", {"quant_method": "gguf"}, "unknown key 'quantization_config'"),
        ("unet/config.json", "auto_map", REMOTE, "unknown key 'auto_map'"),
        ("autoencoder/config.json", "trust_remote_code", True, "unknown key 'trust_remote_code'"),
        ("autoencoder/config.json", "_class_name", "os.system", "autoencoder 'os.system' is unknown"),
        ("bridge/config.json", "_class_name", "Bridge", "bridge 'Bridge' is unknown"),
        ("scheduler/scheduler_config.json", "_class_name", "SchedulerMixin", "scheduler 'SchedulerMixin' is unknown"),
        ("scheduler/scheduler_config.json", "_class_name", "UNet2DModel", "scheduler 'UNet2DModel' is unknown"),
        ("scheduler/scheduler_config.json", "_class_name", ["DDIMScheduler"], "is unknown to diffusers"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**9, "num_train_timesteps is 1000000000"),
        ("scheduler/scheduler_config.json", "custom_pipeline", "owner/name", "custom_pipeline is refused"),
        ("model_index.json", "_class_name", "Evil", "holds a 'Evil', not a model of diffaudio"),
    ],
)
def test_what_a_library_would_act_on_is_refused_by_its_name(folder, tmp_path, file, place, value, message):
    for place_of_code in (folder / "clip", folder / "unet", tmp_path):
        (place_of_code / "code.py").write_text(MARKER.format(str(tmp_path / "ran")))
    edit(folder / file, place, value)
    assert message in refusal(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", [*CONFIGS, *WEIGHTS, "clip/tokenizer.json"])
def test_a_link_out_of_the_folder_is_refused_and_not_read(folder, tmp_path, file):
    outside = tmp_path / "outside"
    (folder / file).rename(outside)
    (folder / file).symlink_to(outside)
    assert "leads out of the folder" in refusal(folder)


@pytest.mark.parametrize("part", ["unet", "clip", "bridge"])
def test_a_part_that_is_a_link_elsewhere_is_refused(folder, tmp_path, part):
    (folder / part).rename(tmp_path / "elsewhere")
    (folder / part).symlink_to(tmp_path / "elsewhere")
    assert "leads out of the folder" in refusal(folder)


@pytest.mark.parametrize("part", ["clip", "unet"])
def test_links_out_of_the_folder_and_pipes_are_refused_at_any_depth(folder, tmp_path, part):
    """transformers reads the templates in such a folder."""
    (tmp_path / "outside").write_text("secret")
    templates = folder / part / "additional_chat_templates"
    templates.mkdir()
    (templates / "a.jinja").symlink_to(tmp_path / "outside")
    assert "leads out of the folder" in refusal(folder)
    (templates / "a.jinja").unlink()
    (templates / "a.jinja").symlink_to(templates / "a.jinja")
    assert "a.jinja" in refusal(folder)
    (templates / "a.jinja").unlink()
    os.mkfifo(templates / "a.jinja")
    assert "is neither file nor folder" in refusal(folder)


def test_an_adapter_that_names_another_model_is_refused(folder):
    (folder / "clip/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/name"}))
    assert "adapter_config.json: is refused: it names another model" in refusal(folder)


@pytest.mark.parametrize("file", WEIGHTS)
def test_an_index_beside_a_whole_file_is_refused_since_libraries_differ_in_which_they_read(folder, file):
    weights = folder / file
    index = weights.with_name(f"{weights.name}.index.json")
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    assert f"{index.name}: is refused beside {weights.name}" in refusal(folder)


def test_a_tokenizer_beside_a_text_tower_of_open_clip_is_held_to_the_same(folder, tmp_path):
    """Nothing but the tokenizer would read config.json there."""
    (folder / "clip/code.py").write_text(MARKER.format(str(tmp_path / "ran")))
    edit(folder / BERT, "auto_map", REMOTE)
    edit(folder / BERT, "model_type", "evil")
    content = json.loads((folder / OPEN_CLIP).read_text())
    content["model_cfg"]["text_cfg"] = {"hf_tokenizer_name": ".", "width": 8, "heads": 1, "layers": 1, "vocab_size": 64}
    (folder / OPEN_CLIP).write_text(json.dumps(content))
    assert refusal(folder)
    assert not (tmp_path / "ran").exists()


def test_links_within_the_hubs_cache_are_read(original, tmp_path):
    repo = tmp_path / "models--owner--name"
    snapshot, blobs = repo / "snapshots/0123", repo / "blobs"
    shutil.copytree(original, snapshot)
    blobs.mkdir()
    for index, file in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        file.rename(blobs / str(index))
        file.symlink_to(os.path.relpath(blobs / str(index), file.parent))
    assert refusal(snapshot) == ""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
@pytest.mark.parametrize("file", ["unet/config.json", "clip/open_clip_model.safetensors", "clip/tokenizer.json"])
def test_a_pipe_in_place_of_a_file_is_refused_instead_of_waited_for(folder, file):
    (folder / file).unlink()
    os.mkfifo(folder / file)
    assert refusal(folder)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "code.bin", ["x"], 3])
def test_an_index_may_name_shards_in_its_own_folder_only(folder, shard):
    weights = folder / WEIGHTS[0]
    weights.rename(folder / "secret.safetensors")
    index = weights.with_name("diffusion_pytorch_model.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    message = refusal(folder)
    assert (
        "shards are safetensors in the same folder" in message
        or "weight_map is no list of files" in message
        or ("is not complete" in message)
    )


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def torch_zip(file: Path) -> None:
    torch.save({"a": Evil()}, file)


DAMAGE = {
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "header of 2^62 bytes": lambda file: file.write_bytes(struct.pack("<Q", 2**62) + b"{}" * 100),
    "header of 90 MB": lambda file: file.write_bytes(struct.pack("<Q", 90_000_000) + b"{}" * 100),
    "random": lambda file: file.write_bytes(random.Random(0).randbytes(5000)),
    "pickle": lambda file: file.write_bytes(pickle.dumps(Evil())),
    "torch's zip": torch_zip,
    "offsets beyond the end": lambda file: rewrite_header(file, lambda entry: entry | {"data_offsets": [0, 2**40]}),
    "huge shape": lambda file: rewrite_header(file, lambda entry: entry | {"shape": [2**31, 2**31, 4]}),
    "negative shape": lambda file: rewrite_header(file, lambda entry: entry | {"shape": [-1]}),
    "unknown dtype": lambda file: rewrite_header(file, lambda entry: entry | {"dtype": "F999"}),
}


def rewrite_header(file: Path, change) -> None:
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    name = next(name for name in header if name != "__metadata__")
    header[name] = change(header[name])
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("file", WEIGHTS)
def test_weights_that_are_no_safetensors_are_refused_and_nothing_is_unpickled(
    folder, tmp_path, monkeypatch, file, damage
):
    monkeypatch.chdir(tmp_path)
    damage(folder / file)
    assert file in refusal(folder)
    assert not Path("ran").exists()


def lack(tensors, name):
    del tensors[name]


def change(function):
    def apply(tensors, name):
        tensors[name] = function(tensors[name])

    return apply


TENSORS = {
    "missing": (lack, "lacks 1 tensor "),
    "too many": (lambda tensors, name: tensors.update(spare=torch.zeros(2)), "should not hold 1 tensor spare"),
    "other shape": (change(lambda tensor: torch.zeros(3, 3, 3, 3)), "is [3, 3, 3, 3]; config.json asks for"),
    "whole numbers": (change(lambda tensor: torch.zeros(tensor.shape, dtype=torch.int32)), "is of type I32"),
    "NaN": (change(lambda tensor: torch.full_like(tensor, float("nan"))), "not finite"),
    "infinite": (change(lambda tensor: torch.full_like(tensor, float("-inf"))), "not finite"),
}


@pytest.mark.parametrize(("damage", "message"), TENSORS.values(), ids=TENSORS)
@pytest.mark.parametrize("file", WEIGHTS)
def test_tensors_that_are_not_those_of_the_config_are_refused_by_file_and_name(folder, file, damage, message):
    tensors = load_file(folder / file)
    name = sorted(tensors)[0]
    damage(tensors, name)
    save_file(tensors, folder / file)
    told = refusal(folder)
    assert message in told and file in told
    assert "spare" in told or name in told


@pytest.mark.parametrize(
    ("file", "place", "value"),
    [
        ("unet/config.json", "channels", [10**9, 10**9]),
        ("unet/config.json", "channels", [16] * 100_000),
        ("unet/config.json", "condition_dim", 10**9),
        ("unet/config.json", "middle_blocks", 10**9),
        ("unet/config.json", "blocks_per_level", 10**9),
        ("autoencoder/config.json", "num_mels", 10**6),
        ("autoencoder/config.json", "n_fft", 10**9),
        ("autoencoder/config.json", "patch_steps", 10**6),
        ("bridge/config.json", "memory_size", 10**10),
        (OPEN_CLIP, "model_cfg.embed_dim", 10**9),
        (OPEN_CLIP, f"{VISION}.width", 10**8),
        (OPEN_CLIP, f"{VISION}.layers", 10**9),
        (OPEN_CLIP, f"{TEXT}.context_length", 10**9),
        (BERT, "vocab_size", 10**9),
        (BERT, "hidden_size", 10**9),
        (BERT, "num_hidden_layers", 10**9),
        (BERT, "max_position_embeddings", 10**9),
    ],
)
def test_sizes_that_the_weights_cannot_have_are_refused_before_memory_is_used(folder, file, place, value):
    edit(folder / file, place, value)
    assert refusal(folder)


def leaves(content: Any, above: tuple = ()) -> list[tuple]:
    if isinstance(content, dict):
        return [place for key, value in content.items() for place in ((*above, key), *leaves(value, (*above, key)))]
    return []


@pytest.mark.parametrize("file", CONFIGS)
def test_a_fuzzed_config_loads_or_is_refused_and_nothing_else(folder, file):
    """Every entry in turn is replaced by two odd values, or goes."""
    generator = random.Random(file)
    content = json.loads((folder / file).read_text())
    for place in leaves(content):
        for value in generator.sample(ODD_VALUES, 2):
            changed = copy.deepcopy(content)
            at = changed
            for name in place[:-1]:
                at = at[name]
            at[place[-1]] = value
            (folder / file).write_text(json.dumps(changed))
            refusal(folder)
        changed = copy.deepcopy(content)
        at = changed
        for name in place[:-1]:
            at = at[name]
        del at[place[-1]]
        (folder / file).write_text(json.dumps(changed))
        refusal(folder)


NOT_JSON = {
    "empty": b"",
    "list": b"[]",
    "number": b"3",
    "binary": bytes(range(256)),
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "long number": b'{"a": ' + b"9" * 100_000 + b"}",
    "NaN": b'{"a": NaN}',
    "surrogate": b'{"_class_name": "\\ud800"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
}


@pytest.mark.parametrize("content", NOT_JSON.values(), ids=NOT_JSON)
@pytest.mark.parametrize("file", [*CONFIGS, "clip/tokenizer.json"])
def test_a_config_that_is_no_json_object_is_refused(folder, file, content):
    (folder / file).write_bytes(content)
    told = refusal(folder)
    assert told or (file == TOKENIZER and content == NOT_JSON["surrogate"])  # which is an object, whose key is inert


def test_a_config_of_a_gigabyte_is_not_read(folder):
    with (folder / "unet/config.json").open("wb") as file:
        file.truncate(2**30)
    assert "is larger than 64 MB" in refusal(folder)


def test_a_tokenizer_that_makes_its_library_panic_is_refused(folder):
    file = folder / "clip/tokenizer.json"
    content = json.loads(file.read_text())
    for key in list(content):
        for value in ("x", 3, None, [], {"type": "Evil"}):
            file.write_text(json.dumps(content | {key: value}))
            refusal(folder)


def test_tokenizers_never_trust_remote_code(folder, monkeypatch):
    import transformers

    given = []
    real = transformers.AutoTokenizer.from_pretrained

    def spy(*arguments, **settings):
        given.append(settings)
        return real(*arguments, **settings)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", spy)
    load(folder)
    assert [settings["trust_remote_code"] for settings in given] == [False]
    assert {"auto_map", "trust_remote_code", "quantization_config"} <= REMOTE_CODE_KEYS


def test_the_tagger_and_a_single_autoencoder_are_held_to_the_same(folder, tmp_path):
    tagger = tmp_path / "tagger"
    Tagger(["a", "b"], width=4, embedding_dim=8).save_pretrained(tagger)
    assert refusal(tagger, load_tagger) == ""
    assert refusal(folder / "autoencoder", load_autoencoder) == ""
    edit(tagger / "config.json", "width", 10**8)
    assert "config.json" in refusal(tagger, load_tagger)
    edit(folder / "autoencoder/config.json", "num_mels", 10**8)
    assert "config.json" in refusal(folder / "autoencoder", load_autoencoder)
