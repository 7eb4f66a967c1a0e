"""YAMNet: its front end against the published definition, its network against LiteRT's, and the table of kinds."""

import csv
import math

import pytest
import torch
import yaml

from diffaudio.evaluation.backbones import load_backbone
from diffaudio.evaluation.backbones.audioset import read_kinds
from diffaudio.evaluation.backbones.yamnet import bundled_yamnet, log_mel_patches
from diffaudio.metrics.classification import label_key

RATE = 16000


@pytest.fixture(scope="module")
def yamnet():
    return load_backbone("yamnet")


def tone(frequency, seconds=2.0, gain=0.5):
    return gain * torch.sin(2 * torch.pi * frequency * torch.arange(round(seconds * RATE)) / RATE)


def test_the_front_end_by_hand_for_one_frame_of_a_tone():
    """The published definition, band by band: periodic Hann window, |rfft| of 512 points, HTK triangles, log."""
    waveform = tone(1000.0)
    patch = log_mel_patches(waveform)[0]
    windowed = [float(waveform[160 * 7 + n]) * (0.5 - 0.5 * math.cos(2 * math.pi * n / 400)) for n in range(400)]
    magnitudes = torch.fft.rfft(torch.tensor(windowed, dtype=torch.float64), 512).abs()

    def mel(hz):
        return 1127 * math.log(1 + hz / 700)

    low, high = mel(125), mel(7500)
    edges = [low + (high - low) * index / 65 for index in range(66)]
    for band in (0, 20, 40, 63):
        total = 0.0
        for place in range(1, 257):
            at = mel(place * RATE / 512)
            rising, falling = at - edges[band], edges[band + 2] - at
            weight = min(rising / (edges[band + 1] - edges[band]), falling / (edges[band + 2] - edges[band + 1]))
            total += max(weight, 0.0) * float(magnitudes[place])
        assert float(patch[7, band]) == pytest.approx(math.log(total + 0.001), abs=1e-3)


@pytest.mark.parametrize(("seconds", "patches"), [(0.2, 1), (0.975, 1), (1.455, 2), (1.45, 1), (5.0, 9)])
def test_patches_of_96_frames_come_every_48(seconds, patches):
    assert log_mel_patches(torch.zeros(round(seconds * RATE))).shape == (patches, 96, 64)


def test_the_network_is_the_published_one(yamnet):
    """Scores of `yamnet_spectra_in.tflite` by LiteRT for two patches that a formula gives; int8 is good to 0.1."""
    frames, bands = torch.arange(96.0)[:, None], torch.arange(64.0)
    ramp = -3 + 2 * torch.sin(0.11 * bands + 0.05 * frames) + torch.cos(0.7 * frames)
    pulses = -6 + 5 * torch.exp(-((frames % 24) / 3)) * torch.exp(-bands / 40)
    _, logits = yamnet.network(torch.stack([ramp, pulses]))
    for row, (first, scores) in zip(logits.sigmoid(), PUBLISHED, strict=True):
        assert int(row.argmax()) == first
        for index, score in scores.items():
            assert float(row[index]) == pytest.approx(score, abs=0.12)


PUBLISHED = [  # the first class, and scores of some
    (132, {132: 0.9805, 153: 0.2852, 147: 0.1758, 133: 0.1055, 154: 0.1055, 234: 0.0586}),
    (132, {132: 0.3516, 153: 0.0781, 498: 0.0586, 494: 0.0586, 147: 0.043, 158: 0.043}),
]


def test_a_sound_has_one_embedding_and_the_mean_score_of_its_patches(yamnet):
    waveform = 0.7 * torch.randn(3 * RATE, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    (embedding,), (logits,) = yamnet.embed([waveform])
    found = [yamnet.network(patch[None]) for patch in log_mel_patches(0.7 * waveform / waveform.abs().max())]
    assert embedding.shape == (1, 1024) and len(found) == 5
    assert torch.allclose(embedding[0], torch.cat([each[0] for each in found]).mean(dim=0), atol=1e-4)
    assert torch.allclose(logits.sigmoid(), torch.cat([each[1] for each in found]).sigmoid().mean(dim=0), atol=1e-5)


def test_neither_the_level_nor_other_sounds_matter(yamnet):
    sounds = [tone(440.0), tone(880.0, 3.0), torch.zeros(RATE)]
    together = yamnet.embed(sounds)[1]
    assert together.isfinite().all()
    assert torch.allclose(yamnet.embed(sounds[1:2])[1][0], together[1], atol=1e-3)
    assert torch.allclose(yamnet.embed([0.01 * sounds[0]])[1][0], together[0], atol=0.05)


def test_the_table_has_every_kind_and_names_classes_that_are_there(yamnet):
    described = yaml.safe_load((bundled_yamnet().parents[1] / "configs/audioset/kinds.yaml").read_text("utf-8"))
    assert len(described["kinds"]) == 45
    assert yamnet.kinds.classes.keys() == {label_key(kind) for kind in described["kinds"]}
    bark = yamnet.labels.index("Bark")
    assert bark in yamnet.kinds.classes["dog barking"] and yamnet.labels.index("Animal") in yamnet.kinds.ignored
    for kind, classes in yamnet.kinds.classes.items():
        assert not set(classes) & set(yamnet.kinds.ignored), kind
    with pytest.raises(ValueError, match="is not a class of the class map"):
        read_kinds(yamnet.labels[:100])


def test_the_class_map_is_the_published_one(yamnet):
    with (bundled_yamnet() / "yamnet_class_map.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(yamnet.labels) == 521
    assert [yamnet.labels[index] for index in (0, 70, 494, 520)] == ["Speech", "Bark", "Silence", "Field recording"]
    assert rows[70]["mid"] == "/m/05tny_"
