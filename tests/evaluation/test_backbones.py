"""Backbones against the published implementations, with weights from a formula; folders; CLAP against transformers."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_clap import write_tiny_clap
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

from diffaudio.evaluation.backbones import (
    TextBackbone,
    backbone_info,
    load_backbone,
    metric_part,
    openl3,
    panns,
    vggish,
)
from diffaudio.evaluation.backbones.base import at_least, of_equal_length
from diffaudio.models.tagger import Tagger


def scattered(count):
    """Numbers between -1 and 1 that any program computes alike."""
    return ((torch.arange(count) * 2654435761) % 2**32).double() / 2**31 - 1


def filled(network):
    """Weights from `scattered`, in the order of their keys; the golden numbers below were made with the same."""
    for index, (key, value) in enumerate(sorted(network.state_dict().items())):
        if not value.is_floating_point():
            continue
        x = scattered(value.numel() + index)[index:].reshape(value.shape)
        if key.endswith("running_var"):
            x = 1 + x.abs()
        elif key.endswith("running_mean") or value.ndim == 1:
            x = 0.1 * x + (1 if key.endswith("weight") else 0)
        else:
            x = x * (6 / value[0].numel()) ** 0.5
        value.copy_(x)
    return network.eval()


def sound(seconds, rate):
    t = torch.arange(round(seconds * rate)) / rate
    return (0.3 * torch.sin(2 * torch.pi * 440 * t) * torch.exp(-t) + 0.05 * scattered(len(t))).float()


@torch.no_grad()
def test_vggish_is_that_of_torchvggish():
    """torchvggish 0.2, with its own spectrogram, the last ReLU left out."""
    found = filled(vggish._VGG())(vggish.log_mel_windows(sound(2.1, 16000)))
    assert found.shape == (2, 128)
    golden = [[0.83225560, -0.94786918, -0.30532694, -0.26428074], [0.85147405, -0.96500885, -0.31945798, -0.24812208]]
    assert torch.allclose(found[:, :4], torch.tensor(golden), atol=1e-4)


@torch.no_grad()
def test_cnn14_is_that_of_panns_inference():
    """panns-inference 0.1.1 on torchlibrosa's spectrogram."""
    embeddings, logits = filled(panns._Cnn14())(panns.log_mel(sound(1.5, 32000)[None]))
    golden = torch.tensor([4.82608604, 0.51267123, 0.0, 0.0, 3.63296151, 0.0])
    assert torch.allclose(embeddings[0, :6], golden, atol=1e-4)
    assert torch.allclose(logits[0, :4], torch.tensor([0.98573488, -1.03857660, -0.02011943, 2.12477995]), atol=1e-4)


@torch.no_grad()
def test_openl3_is_that_of_torchopenl3():
    """torchopenl3 1.0.1 for env, mel256, 512, in steps of 0.5 s."""
    seconds = openl3.windows(sound(1.2, 48000))
    found = filled(openl3._Network(openl3.POOLING[512]))(openl3.mel_db(seconds))
    golden = [
        [0.02422144, 0.17354193, 0.09877156, 0.18729691],
        [0.06119838, 0.14089784, 0.15235321, 0.18017665],
        [0.09420782, 0.21916541, 0.21397588, 0.18166299],
    ]
    assert found.shape == (3, 512)
    assert torch.allclose(found[:, :4], torch.tensor(golden), atol=1e-4)


def test_openl3_is_read_from_a_folder_and_embeds_sounds_of_any_length(tmp_path):
    folder = write_openl3(tmp_path / "l3")
    backbone = load_backbone(folder)
    weights = (folder / "model.safetensors").read_bytes()
    described = backbone_info(backbone)
    assert (described.name, described.embedding_dim, described.sample_rate) == ("openl3_music_mel256_6144", 6144, 48000)
    assert described.checkpoint == hashlib.sha256(weights).hexdigest()
    assert described.resampler.startswith("torchaudio sinc")
    waveforms = [sound(seconds, 48000) for seconds in (0.2, 1.0, 1.2)]
    found, logits = backbone.embed(waveforms)
    assert [windows.shape for windows in found] == [(1, 6144), (2, 6144), (3, 6144)] and logits is None
    assert torch.allclose(backbone.embed(waveforms[1:2])[0][0], found[1], atol=1e-5)


def write_openl3(folder, **changed):
    folder.mkdir()
    config = {"backbone": "openl3", "content_type": "music", "embedding_size": 6144} | changed
    (folder / "config.json").write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = openl3._Network((8, 8)).state_dict()
    save_file(weights | {"speclayer.mel_basis": torch.zeros(2)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("network", "first", "last", "count"),
    [
        (vggish._VGG, "features.0.weight", "embeddings.4.bias", 18),
        (panns._Cnn14, "bn0.weight", "fc_audioset.bias", 81),
        (lambda: openl3._Network((8, 8)), "batch_normalization_1.weight", "audio_embedding_layer.bias", 56),
    ],
)
def test_the_weights_have_the_keys_of_the_published_ports(network, first, last, count):
    with torch.device("meta"):
        keys = list(network().state_dict())
    assert first in keys and last in keys and len(keys) == count


class SmallVgg(torch.nn.Linear):
    """In place of 72 million weights."""

    def __init__(self):
        super().__init__(64, 128)

    def forward(self, windows):
        return super().forward(windows.mean(dim=1))


class SmallCnn(torch.nn.Linear):
    def __init__(self):
        super().__init__(64, 2048 + 527)

    def forward(self, mel):
        return super().forward(mel.mean(dim=1)).split((2048, 527), dim=1)


@pytest.mark.parametrize(
    ("module", "network", "small", "name", "windows"),
    [(vggish, "_VGG", SmallVgg, "vggish", [1, 1, 3]), (panns, "_Cnn14", SmallCnn, "panns_cnn14", [1, 1, 1])],
)
def test_each_sound_of_a_folder_is_embedded_by_itself(module, network, small, name, windows, tmp_path, monkeypatch):
    monkeypatch.setattr(module, network, small)
    save_file(small().state_dict(), tmp_path / "model.safetensors")
    backbone = load_backbone(with_config(tmp_path, json.dumps({"backbone": name})))
    assert backbone.name == name and backbone.labels is None
    waveforms = [sound(seconds, backbone.sample_rate) for seconds in (0.3, 1.0, 3.0)]
    found, logits = backbone.embed(waveforms)
    assert [each.shape for each in found] == [(count, backbone.embedding_dim) for count in windows]
    assert (logits is None) == (name == "vggish") and (logits is None or logits.shape == (3, 527))
    for waveform, each in zip(waveforms, found, strict=True):
        assert torch.allclose(backbone.embed([waveform])[0][0], each, atol=1e-5)


def test_vggish_embeds_windows_of_096_s_and_pads_shorter_sounds():
    assert [len(vggish.log_mel_windows(sound(s, 16000))) for s in (0.1, 0.975, 1.9, 2.0, 5.0)] == [1, 1, 1, 2, 5]


def test_panns_labels_are_audiosets_where_its_list_is_there(tmp_path):
    assert panns._read_labels(tmp_path / "class_labels_indices.csv") is None
    lines = ["index,mid,display_name", *(f'{index},/m/{index},"Sound, {index}"' for index in range(527))]
    (tmp_path / "class_labels_indices.csv").write_text("\n".join(lines))
    labels = panns._read_labels(tmp_path / "class_labels_indices.csv")
    assert labels is not None and len(labels) == 527 and labels[3] == "Sound, 3"
    (tmp_path / "class_labels_indices.csv").write_text("\n".join(lines[:5]))
    with pytest.raises(ValueError, match="holds 4 classes, wanted are 527 with a display_name each"):
        panns._read_labels(tmp_path / "class_labels_indices.csv")


def test_a_tagger_is_a_backbone_with_one_embedding_a_sound_and_logits(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tagger = Tagger(["dog", "rain", "wind"], embedding_dim=8, width=2, name="tagger_tiny").eval()
    tagger.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    assert (backbone.name, backbone.labels, backbone.embedding_dim) == ("tagger_tiny", ["dog", "rain", "wind"], 8)
    found, logits = backbone.embed([sound(1, 16000), sound(2, 16000)])
    assert [windows.shape for windows in found] == [(1, 8), (1, 8)]
    expected = tagger.tag([sound(2, 16000)])
    assert torch.allclose(found[1], expected[0], atol=1e-5)
    assert logits is not None and torch.allclose(logits[1:], expected[1], atol=1e-5)


@pytest.fixture(scope="module", params=[False, True], ids=["unfused", "fused"])
def clap(request, tmp_path_factory):
    return write_tiny_clap(tmp_path_factory.mktemp("models") / "clap-tiny", fusion=request.param)


@torch.no_grad()
def test_clap_is_transformers_for_sounds_of_10_s_at_most(clap):
    backbone = load_backbone(clap)
    waveforms = [sound(seconds, 48000) for seconds in (1.0, 3.0, 10.0)]
    found, logits = backbone.embed(waveforms)
    assert logits is None and backbone.name == "clap_tiny" and isinstance(backbone, TextBackbone)
    model, extract = ClapModel.from_pretrained(clap), ClapFeatureExtractor.from_pretrained(clap)
    features = extract([each.numpy() for each in waveforms], sampling_rate=48000, return_tensors="pt")
    mel = features["input_features"].float()
    expected = model.get_audio_features(mel, is_longer=torch.zeros(3, 1, dtype=torch.bool)).pooler_output
    assert torch.allclose(torch.cat(found), expected, atol=1e-5)
    tokens = AutoTokenizer.from_pretrained(clap)(["a dog", "rain"], padding=True, return_tensors="pt")
    texts = model.get_text_features(**tokens).pooler_output
    assert torch.allclose(backbone.embed_text(["a dog", "rain"]), texts, atol=1e-5)
    assert torch.allclose(texts.norm(dim=1), torch.ones(2))


def test_clap_embeds_long_sounds_in_pieces_and_deterministically(clap):
    backbone = load_backbone(clap)
    long = sound(12.5, 48000)
    first, second = backbone.embed([long])[0][0], backbone.embed([sound(2, 48000), long])[0][1]
    assert first.shape == (2, 16) and torch.allclose(first, second, atol=1e-6)
    assert torch.allclose(first[0], backbone.embed([long[:480000]])[0][0][0], atol=1e-6)
    assert len(backbone.embed([long[: 480000 + 100]])[0][0]) == 1


def test_a_text_that_is_too_long_for_clap_is_cut(clap):
    assert load_backbone(clap).embed_text(["a dog " * 100]).isfinite().all()


def test_equal_lengths_go_together_and_keep_their_places():
    waveforms = [torch.full((length,), float(index)) for index, length in enumerate([3, 2, 3, 3])]
    batches = [(places, batch[:, 0].tolist()) for places, batch in of_equal_length(waveforms, 2)]
    assert batches == [([0, 2], [0, 2]), ([3], [3]), ([1], [1])]
    assert at_least(torch.ones(2), 4).tolist() == [1, 1, 0, 0] and len(at_least(torch.ones(5), 4)) == 5


def test_names_are_fit_for_columns():
    assert metric_part("laion/CLAP-htsat unfused.v2") == "laion_clap_htsat_unfused_v2"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: "nowhere", "nowhere: there is no such backbone, file or folder; bundled are yamnet and tagger"),
        (lambda f: f, "is no backbone, config.json is missing"),
        (lambda f: with_config(f, "{"), "config.json: is damaged"),
        (
            lambda f: with_config(f, "{}"),
            "says neither a tagger nor a CLAP model nor an entry 'backbone'",
        ),
        (
            lambda f: with_config(f, '{"backbone": "vggish"}'),
            "there are no weights; put the published file there",
        ),
        (
            lambda f: with_config(f, '{"model_type": "clap"}'),
            "model.safetensors is missing; CLAP is read from",
        ),
        (
            lambda f: write_openl3(f / "l3", content_type="speech"),
            "content_type 'speech' and embedding_size 6144",
        ),
        (lambda f: write_openl3(f / "l3", backbone="vggish"), "model.safetensors: lacks "),
    ],
)
def test_what_is_no_backbone_is_refused_with_the_reason(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_backbone(make(tmp_path))


def with_config(folder, text):
    (folder / "config.json").write_text(text)
    return folder


def test_a_clap_that_lacks_weights_is_refused(clap, tmp_path):
    for file in clap.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file({"logit_scale_a": torch.zeros(())}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="config.json: asks for more than the weights beside it hold"):
        load_backbone(tmp_path)
