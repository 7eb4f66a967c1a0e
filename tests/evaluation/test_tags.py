"""`diffaudio tag`: names of what is in sounds, by each classifier; and musicnn as a backbone."""

import json
from pathlib import Path

import pytest
import torch
from fake_backbone import BandBackbone, tones
from random_musicnn import write_musicnn

from diffaudio.cli.main import main
from diffaudio.evaluation.backbones import load_backbone
from diffaudio.evaluation.backbones.musicnn import excerpts
from diffaudio.evaluation.embed import Embedder, Sound
from diffaudio.evaluation.rows import evaluated_row
from diffaudio.evaluation.tags import tag_sounds
from diffaudio.media.audio import write_audio
from diffaudio.models.tagger.musicnn import log_mel


def noise(seconds, rate=16000):
    return 0.1 * torch.randn(round(seconds * rate), generator=torch.Generator().manual_seed(0))


def test_tags_come_with_the_most_probable_first():
    (sound, tags), *others = tag_sounds(BandBackbone(), tones(8, 0), top=3)
    assert len(tags) == 3 and tags[0].tag == sound.label and tags[0].score > tags[1].score > tags[2].score
    assert all(tags[0].tag == sound.label for sound, tags in others)


def test_scores_of_overlapping_classes_are_probabilities_each(tmp_path):
    backbone = load_backbone(write_musicnn(tmp_path / "mtt.npz"))
    ((_, tags),) = tag_sounds(backbone, [Sound(noise(4)[None], 16000, "noise")], top=50)
    logits = backbone.embed([noise(4)])[1]
    assert {tag.tag for tag in tags} == set(backbone.labels)
    expected = logits[0].sigmoid()
    assert [tag.score for tag in tags] == pytest.approx(expected.sort(descending=True).values.tolist())
    assert all(tag.score == pytest.approx(float(expected[backbone.labels.index(tag.tag)])) for tag in tags)


@pytest.mark.parametrize(("steps", "starts"), [(5, [0]), (187, [0]), (188, [0, 1]), (400, [0, 187, 213])])
def test_excerpts_of_3_s_cover_a_sound(steps, starts):
    mel = torch.arange(1.0, steps + 1).expand(96, steps)
    found = excerpts(mel)
    assert found.shape == (len(starts), 96, 187)
    assert found[:, 0, 0].tolist() == [start + 1 for start in starts]
    assert float(found[-1].max()) == steps


@torch.no_grad()
def test_musicnn_measures_a_sound_by_the_mean_over_its_excerpts(tmp_path):
    backbone = load_backbone(write_musicnn(tmp_path / "msd.npz"))
    assert (backbone.name, backbone.embedding_dim, backbone.labels[0]) == ("musicnn_msd", 200, "rock")
    sounds = [noise(0.01), noise(2), noise(7)]
    embeddings, logits = backbone.embed(sounds)
    assert [each.shape for each in embeddings] == [(1, 200)] * 3 and logits.isfinite().all()
    alone = backbone.embed(sounds[2:])
    torch.testing.assert_close(embeddings[2], alone[0][0], atol=1e-4, rtol=1e-3)
    parts = backbone.network(excerpts(log_mel(sounds[2])))
    assert len(parts[0]) == 3
    torch.testing.assert_close(embeddings[2][0], parts[0].mean(dim=0), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(logits[2].sigmoid(), parts[1].sigmoid().mean(dim=0), atol=1e-5, rtol=1e-4)


def test_musicnn_recognises_instruments_and_nothing_else(tmp_path):
    backbone = load_backbone(write_musicnn(tmp_path / "mtt.npz"))
    kinds = backbone.kinds.classes
    assert [backbone.labels[index] for index in kinds["electric guitar"]] == ["guitar"]
    assert "bird singing" not in kinds and "dog barking" not in kinds
    sounds = [
        Sound(noise(1)[None], 16000, f"{index}", label=label) for index, label in enumerate(("piano", "bird singing"))
    ]
    row = evaluated_row(Embedder([backbone]).embed(sounds), name="x", resamples=20)
    assert row["recognised_at_5_musicnn_mtt"].n == 1


@pytest.mark.parametrize(
    ("name", "tags", "message"),
    [("mtt.npz", 6, "has 6 tags; 50 are expected"), ("music.npz", 50, "its name has to say which tags it has")],
)
def test_what_is_not_the_published_musicnn_is_refused(tmp_path, name, tags, message):
    with pytest.raises(ValueError, match=message):
        load_backbone(write_musicnn(tmp_path / name, tags))


def test_the_command_prints_a_table_or_json(tmp_path, capsys):
    (tmp_path / "more").mkdir()
    files = [tmp_path / "a.wav", tmp_path / "more" / "b.flac"]
    for file in files:
        write_audio(file, noise(1)[None], 16000)
    assert main(["tag", str(files[0]), str(tmp_path / "more"), "--top", "2", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith("  ")] == [str(file) for file in files]
    assert len(lines) == 6
    score, tag = lines[1].split(maxsplit=1)
    assert 0 < float(score) <= 1
    assert main(["tag", str(files[0]), "--top", "2", "--json", "--device", "cpu"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert (result["file"], result["backbone"], len(result["tags"])) == (str(files[0]), "yamnet", 2)
    assert result["tags"][0]["tag"] == tag and result["tags"][0]["score"] == pytest.approx(float(score), abs=5e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tag", "nowhere.wav"], "nowhere.wav: there is no such file or folder"),
        (["tag"], "file"),
        (["tag", "a.wav", "--top", "0"], "top"),
        (
            ["tag", "a.wav", "--backbone", "nowhere"],
            "nowhere: there is no such backbone, file or folder; bundled are yamnet and tagger",
        ),
        (["tag", "a.wav", "--backbone", "musicnn"], "folder; name its published file; bundled are yamnet and tagger"),
        (["tag", "noise.wav"], "noise.wav"),
    ],
)
def test_what_cannot_be_tagged_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_audio(Path("a.wav"), noise(0.5)[None], 16000)
    Path("noise.wav").write_bytes(b"no sound")
    assert main([*arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_a_backbone_without_named_classes_cannot_tag():
    backbone = BandBackbone()
    backbone.labels = None
    with pytest.raises(ValueError, match="bands: is no classifier whose classes have names"):
        next(tag_sounds(backbone, tones(1, 0)))
