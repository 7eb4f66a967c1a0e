"""Backbones from the files that their authors publish: same format, same keys, random weights of small networks."""

import csv
import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_clap import WORDS, write_tiny_clap
from transformers import ClapConfig, ClapModel

from diffaudio.evaluation.backbones import TextBackbone, load_backbone, openl3, panns, vggish
from diffaudio.evaluation.backbones.published import read_published

h5py = pytest.importorskip("h5py")


class SmallVgg(torch.nn.Module):
    """The published keys, in place of 72 million weights."""

    def __init__(self):
        super().__init__()
        self.features = torch.nn.Sequential(torch.nn.Linear(64, 8))
        self.embeddings = torch.nn.Sequential(torch.nn.Linear(8, 128))

    def forward(self, windows):
        return self.embeddings(self.features(windows.mean(dim=1)))


class SmallCnn(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.bn0 = torch.nn.BatchNorm1d(64)
        self.fc1 = torch.nn.Linear(64, 2048)
        self.fc_audioset = torch.nn.Linear(2048, 527)

    def forward(self, mel):
        embeddings = self.fc1(self.bn0(mel.mean(dim=1)))
        return embeddings, self.fc_audioset(embeddings)


def sound(seconds, rate):
    return 0.3 * torch.randn(round(seconds * rate), generator=torch.Generator().manual_seed(0))


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


@torch.no_grad()
def test_vggish_is_read_from_the_file_of_torchvggish(tmp_path, monkeypatch):
    monkeypatch.setattr(vggish, "_VGG", SmallVgg)
    network = seeded(SmallVgg)
    torch.save(network.state_dict(), tmp_path / "vggish-10086976.pth")
    backbone = load_backbone(tmp_path / "vggish-10086976.pth")
    assert backbone.name == "vggish" and len(backbone.checkpoint) == 64
    expected = network(vggish.log_mel_windows(sound(2, 16000)))
    torch.testing.assert_close(backbone.embed([sound(2, 16000)])[0][0], expected)


@torch.no_grad()
def test_panns_is_read_from_the_authors_checkpoint_with_its_sampler_and_front_end(tmp_path, monkeypatch):
    monkeypatch.setattr(panns, "_Cnn14", SmallCnn)
    network = seeded(SmallCnn)
    front_end = {
        "spectrogram_extractor.stft.conv_real.weight": torch.zeros(3, 1, 4),
        "logmel_extractor.melW": torch.zeros(3, 4),
    }
    sampler = {"indexes": np.arange(5), "pointer": 3, "audios_num_per_class": np.ones(4), "mean": np.float64(0.5)}
    file = tmp_path / "Cnn14_mAP=0.431.pth"
    torch.save({"iteration": 600000, "model": network.state_dict() | front_end, "sampler": sampler}, file)
    backbone = load_backbone(file)
    assert (backbone.name, backbone.labels, backbone.is_multilabel) == ("panns_cnn14", None, True)
    embeddings, logits = network(panns.log_mel(sound(2, 32000)[None]))
    found = backbone.embed([sound(2, 32000)])
    torch.testing.assert_close(found[0][0], embeddings)
    torch.testing.assert_close(found[1], logits)


def test_panns_recognises_our_kinds_where_its_classes_have_audiosets_names(tmp_path, monkeypatch):
    monkeypatch.setattr(panns, "_Cnn14", SmallCnn)
    file = tmp_path / "Cnn14_mAP=0.431.pth"
    torch.save({"model": seeded(SmallCnn).state_dict()}, file)
    names = [*load_backbone("yamnet").labels, *(f"Another, {index}" for index in range(6))]
    with (tmp_path / "class_labels_indices.csv").open("w", newline="") as table:
        csv.writer(table).writerows([("index", "mid", "display_name"), *((i, "m", n) for i, n in enumerate(names))])
    backbone = load_backbone(file)
    assert len(backbone.labels) == 527 and names.index("Bark") in backbone.kinds.classes["dog barking"]


def write_keras(path, network, *, first=1, front_end=True):
    """openl3_audio_mel256_*.h5 as Keras writes weights: a group a layer, numbered from 1 or, later, from none."""

    def named(kind, index):
        number = index - 1 + first
        return f"{kind}_{number}" if number else kind

    def add(file, layer, **values):
        group = file.create_group(layer)
        names = [f"{layer}/{name}:0" for name in values]
        group.attrs["weight_names"] = [name.encode() for name in names]
        for name, value in zip(names, values.values(), strict=True):
            group.create_dataset(name, data=value.numpy())

    state = network.state_dict()
    with h5py.File(path, "w") as file:
        if front_end:
            add(file, "melspectrogram_1", real_kernels=torch.zeros(4, 1, 1, 3), freq2mel=torch.zeros(3, 2))
        for index in range(1, 9):
            norm = f"batch_normalization_{index}"
            add(
                file, named("batch_normalization", index), gamma=state[f"{norm}.weight"], beta=state[f"{norm}.bias"],
                moving_mean=state[f"{norm}.running_mean"], moving_variance=state[f"{norm}.running_var"],
            )  # fmt: skip
        layers = [(named("conv2d", index), f"conv2d_{index}") for index in range(1, 8)]
        for layer, ours in [*layers, ("audio_embedding_layer", "audio_embedding_layer")]:
            add(file, layer, kernel=state[f"{ours}.weight"].permute(2, 3, 1, 0), bias=state[f"{ours}.bias"])
    return path


def random_openl3():
    network = seeded(lambda: openl3._Network((32, 24)))
    generator = torch.Generator().manual_seed(1)
    for name, value in network.state_dict().items():
        if "running" in name:
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return network


@torch.no_grad()
@pytest.mark.parametrize("first", [1, 0])
def test_openl3_is_read_from_the_file_of_its_authors(tmp_path, first):
    network = random_openl3()
    file = write_keras(tmp_path / "openl3_audio_mel256_music.h5", network, first=first)
    read = read_published(file)
    assert read.keys() == {name for name in network.state_dict() if "num_batches" not in name}
    assert all(torch.equal(read[name], network.state_dict()[name]) for name in read)
    backbone = load_backbone(file)
    assert backbone.name == "openl3_music_mel256_512"
    expected = network(openl3.mel_db(openl3.windows(sound(0.3, 48000))))
    torch.testing.assert_close(backbone.embed([sound(0.3, 48000)])[0][0], expected)


def test_openl3s_file_may_lie_in_a_folder_that_says_its_size(tmp_path):
    write_keras(tmp_path / "openl3_audio_mel256_env.h5", random_openl3())
    (tmp_path / "config.json").write_text('{"backbone": "openl3", "content_type": "env", "embedding_size": 6144}')
    assert load_backbone(tmp_path).name == "openl3_env_mel256_6144"
    (tmp_path / "other.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds several files of weights \(openl3_audio_mel256_env.h5, other.pth\)"):
        load_backbone(tmp_path)


def test_openl3_for_other_spectrograms_and_unknown_content_are_refused(tmp_path):
    for name, message in (
        ("openl3_audio_mel128_env.h5", "is OpenL3 for mel128 spectrograms; take that for mel256"),
        ("openl3.h5", "content_type None and embedding_size 512 are not both known"),
    ):
        write_keras(tmp_path / name, random_openl3())
        with pytest.raises(ValueError, match=message):
            load_backbone(tmp_path / name)


def laion_names(state):
    """transformers' names to those of laion_clap, as its modules have them."""
    swin = {
        "attention.self.relative_position_bias_table": "attn.relative_position_bias_table",
        "attention.self.relative_position_index": "attn.relative_position_index",
        "attention.output.dense": "attn.proj", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
        "layernorm_before": "norm1", "layernorm_after": "norm2", "batch_norm": "bn0",
    }  # fmt: skip
    named = {}
    for name, value in state.items():
        if name.startswith("audio_model.audio_encoder."):
            name = name.replace("audio_model.audio_encoder.", "audio_branch.")
            for new, old in swin.items():
                name = name.replace(new, old)
        name = name.replace("text_model.", "text_branch.").replace("linear1", "0").replace("linear2", "2")
        named[f"module.{name}"] = value
    for name in [name for name in named if ".attention.self.query." in name and "audio_branch" in name]:
        parts = [named.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        named[name.replace("attention.self.query", "attn.qkv")] = torch.cat(parts)
    return named


def write_laion(path, *, fusion):
    """630k-audioset-best.pt in small, and transformers' model of the same weights."""
    text = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    text |= {"intermediate_size": 32, "max_position_embeddings": 40, "pad_token_id": 1, "projection_dim": 16}
    audio = {"patch_embeds_hidden_size": 16, "hidden_size": 32, "depths": [1, 1], "num_attention_heads": [2, 4]}
    audio |= {"projection_dim": 16, "enable_fusion": fusion, "num_hidden_layers": 2, "patch_size": 16}
    audio |= {"patch_stride": [16, 16], "window_size": 4}
    audio |= {"fusion_type": "aff_2d"} if fusion else {}
    config = ClapConfig(text_config=text | {"type_vocab_size": 1}, audio_config=audio, projection_dim=16)
    model = seeded(lambda: ClapModel(config))
    unused = {
        "module.audio_branch.spectrogram_extractor.stft.conv_real.weight": torch.zeros(3, 1, 4),
        "module.audio_branch.logmel_extractor.melW": torch.zeros(3, 4),
        "module.audio_branch.tscam_conv.weight": torch.zeros(5, 32, 2, 3),
        "module.audio_branch.head.bias": torch.zeros(5),
        "module.text_transform.sequential.0.weight": torch.zeros(4, 4),
        "module.audio_transform.sequential.3.bias": torch.zeros(4),
    }  # fmt: skip
    state = laion_names(model.state_dict()) | unused
    torch.save({"epoch": 1, "name": "CLAP", "state_dict": state, "optimizer": {"state": {}}}, path)
    return model


@torch.no_grad()
@pytest.mark.parametrize("fusion", [False, True], ids=["unfused", "fused"])
def test_clap_is_read_from_the_file_of_laion(tmp_path, fusion):
    file = tmp_path / "630k-audioset-best.pt"
    model = write_laion(file, fusion=fusion)
    saved = torch.load(file, weights_only=True)["state_dict"]
    assert "module.audio_branch.layers.0.blocks.0.attn.qkv.weight" in saved
    assert {"module.audio_branch.bn0.weight", "module.text_projection.2.bias", "module.logit_scale_a"} <= saved.keys()
    backbone = load_backbone(file)
    assert backbone.name == "clap_630k_audioset_best" and not isinstance(backbone, TextBackbone)
    model.save_pretrained(tmp_path / "clap")
    write_tiny_clap(tmp_path / "other", fusion=fusion)
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "clap" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    reference = load_backbone(tmp_path / "clap")
    expected = reference.embed([sound(3, 48000)])[0][0]
    torch.testing.assert_close(backbone.embed([sound(3, 48000)])[0][0], expected, atol=1e-5, rtol=1e-4)

    (tmp_path / "tokenizer.json").write_bytes((tmp_path / "other" / "tokenizer.json").read_bytes())
    with_texts = load_backbone(file)
    assert isinstance(with_texts, TextBackbone)
    texts = ["a dog barking", "rain"]
    torch.testing.assert_close(with_texts.embed_text(texts), reference.embed_text(texts), atol=1e-5, rtol=1e-4)


def test_a_clap_that_lacks_weights_is_refused_with_their_names(tmp_path):
    file = tmp_path / "clap.pt"
    write_laion(file, fusion=False)
    state = torch.load(file, weights_only=True)["state_dict"]
    del state["module.text_branch.pooler.dense.bias"]
    torch.save({"state_dict": state}, file)
    with pytest.raises(ValueError, match="lacks 1 tensor text_model.pooler.dense.bias"):
        load_backbone(file)
    del state["module.audio_projection.0.weight"]
    torch.save({"state_dict": state}, file)
    with pytest.raises(ValueError, match="its weights lack audio_projection.0.weight"):
        load_backbone(file)


class Runs:
    """What a hostile file would do when it is unpickled."""

    def __reduce__(self):
        return print, ("this must not be printed",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_that_would_run_code_is_refused(tmp_path):
    file = tmp_path / "vggish.pth"
    torch.save({"features.0.weight": torch.zeros(2), "more": Runs()}, file)
    with pytest.raises(ValueError, match="vggish.pth: cannot be loaded"):
        load_backbone(file)
    file.write_bytes(pickle.dumps(Runs()))
    with pytest.raises(ValueError, match="vggish.pth: cannot be loaded"):
        load_backbone(file)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", {}, "a.pth: holds no weights"),
        ("a.pth", torch.zeros(2), "a.pth: holds Tensor, no table of weights"),
        ("a.pth", {"layer.weight": torch.zeros(2)}, "its weights are none of vggish, panns_cnn14, openl3 and CLAP"),
        ("a.pth", {"features.0.weight": torch.zeros(2)}, "a.pth: lacks 17 tensors"),
        ("a.pth", {"features.0.weight": torch.full((2,), float("nan"))}, "features.0.weight holds values that are not"),
        ("a.bin", {}, "a.bin: is no file of published weights that is known; those end in .pth"),
        ("a.h5", {}, "a.h5: cannot be loaded"),
        ("a.npz", {}, "its name has to say which tags it has, mtt or msd"),
    ],
)
def test_files_that_hold_something_else_are_refused(tmp_path, monkeypatch, name, content, message):
    with torch.device("meta"):
        keys = vggish._VGG().state_dict()
    monkeypatch.setattr(vggish, "_VGG", lambda: type("Empty", (torch.nn.Module,), {"state_dict": lambda _: keys})())
    torch.save(content, tmp_path / name)
    with pytest.raises(ValueError, match=message):
        load_backbone(tmp_path / name)


def test_h5_needs_h5py_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    (tmp_path / "openl3_audio_mel256_env.h5").write_bytes(b"")
    with pytest.raises(ValueError, match=r"needs h5py to be read; install diffaudio\[openl3\]"):
        load_backbone(tmp_path / "openl3_audio_mel256_env.h5")


def test_h5_that_refers_to_other_files_reads_none_of_them(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["kernel:0"] = np.zeros((3, 3, 1, 64), np.float32)
    with h5py.File(tmp_path / "openl3_audio_mel256_env.h5", "w") as file:
        file.create_group("conv2d_1")["kernel:0"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "kernel:0")
    with pytest.raises(ValueError, match="holds no weights"):
        read_published(tmp_path / "openl3_audio_mel256_env.h5")


def test_h5_that_would_fill_the_memory_is_refused(tmp_path):
    with h5py.File(tmp_path / "openl3_audio_mel256_env.h5", "w") as file:  # a few kilobytes on the disk
        file.create_dataset("conv2d_1/kernel:0", shape=(2**14, 2**15), dtype="f4", chunks=(64, 64))
    with pytest.raises(ValueError, match="unpacks to 2147 MB; OpenL3's weights have 20 MB"):
        read_published(tmp_path / "openl3_audio_mel256_env.h5")


def test_safetensors_in_a_folder_still_do(tmp_path, monkeypatch):
    monkeypatch.setattr(vggish, "_VGG", SmallVgg)
    save_file(seeded(SmallVgg).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"backbone": "vggish"}))
    assert load_backbone(tmp_path).name == "vggish"
