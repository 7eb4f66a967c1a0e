"""The tagger: any front end with any back end, on sounds of any length and level."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from diffaudio.corpus.datasets.labelled import OUTLIER_KIND
from diffaudio.models import tagger as module
from diffaudio.models.tagger import BACK_ENDS, FRONT_ENDS, Tagger, bundled_tagger, load_tagger

LABELS = ["dog", "rain", "bell"]


def tiny(front_end="mel_small", back_end="mean_max", **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tagger(LABELS, front_end, back_end, width=4, embedding_dim=8, num_mels=20, **settings).eval()


def sounds(*seconds):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(round(s * 16000), generator=generator) * 0.1 for s in seconds]


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_every_front_end_serves_every_back_end_at_any_length(front_end, back_end):
    embeddings, logits = tiny(front_end, back_end).tag(sounds(0.01, 1.3, 4))
    assert embeddings.shape == (3, 8)
    assert logits.shape == (3, len(LABELS))
    assert embeddings.isfinite().all() and logits.isfinite().all()


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_a_sound_is_tagged_alike_alone_and_among_others(front_end):
    tagger, (first, second, third) = tiny(front_end), sounds(1, 1, 2)
    together = tagger.tag([first, third, second])
    for found, alone in zip(together, tagger.tag([second]), strict=True):
        torch.testing.assert_close(found[2], alone[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0][0], together[0][2])


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_level_does_not_matter_and_silence_is_no_error(front_end):
    tagger, (sound,) = tiny(front_end), sounds(1)
    embeddings, _ = tagger.tag([sound, sound * 0.01, torch.zeros(16000)])
    torch.testing.assert_close(embeddings[0], embeddings[1], atol=1e-4, rtol=1e-4)
    assert embeddings[2].isfinite().all()


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_every_weight_learns(front_end):
    for back_end in BACK_ENDS:
        tagger = tiny(front_end, back_end).train()
        torch.nn.functional.cross_entropy(tagger(torch.stack(sounds(1, 1)))[1], torch.tensor([0, 1])).backward()
        still = [n for n, p in tagger.named_parameters() if p.grad is None or not p.grad.any()]
        # what comes before a batch normalisation has no use for a shift
        assert [n for n in still if n != "to_embedding.1.bias"] == []


def test_auto_pool_lies_between_mean_and_maximum():
    pool, x = BACK_ENDS["auto_pool"](3), torch.randn(2, 3, 50)
    for sharpness, expected in ((0.0, x.mean(dim=2)), (200.0, x.amax(dim=2))):
        torch.nn.init.constant_(pool.sharpness, sharpness)
        torch.testing.assert_close(pool(x), expected, atol=0.02, rtol=0)


def test_attention_with_equal_scores_is_the_mean():
    pool, x = BACK_ENDS["attention"](3), torch.randn(2, 3, 50)
    torch.nn.init.zeros_(pool.scores.weight)
    torch.testing.assert_close(pool(x), x.mean(dim=2))


def test_vertical_filters_find_a_timbre_at_any_pitch():
    """A chord of three bands, moved up by some bands, gives the same maxima where all of it is seen."""
    front = FRONT_ENDS["mel_musical"](2, 40).eval()
    mel = torch.zeros(2, 40, 9)
    mel[0, [15, 18, 22]] = mel[1, [17, 20, 24]] = 1.0
    low, high = (filters(mel[:, None]).amax(dim=2) for filters in front.vertical[3:5])
    torch.testing.assert_close(low[0], low[1])
    torch.testing.assert_close(high[0], high[1])


def test_masks_blank_stretches_while_training_only():
    tagger, x = tiny(), torch.stack(sounds(1, 1))
    masked = module._mask(tagger.features(x), 0.5)
    assert ((masked == 0).all(dim=1).any(dim=1) | (masked == 0).all(dim=2).any(dim=1)).any()
    torch.testing.assert_close(tagger(x)[1], tagger(x, 0.0)[1])


def test_a_saved_tagger_is_the_same_again(tmp_path):
    tagger, (sound,) = tiny(name="mine"), sounds(1)
    tagger.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    again = load_tagger(tmp_path)
    assert (again.name, again.labels, again.sample_rate, again.embedding_dim) == ("mine", LABELS, 16000, 8)
    assert torch.equal(again.tag([sound])[1], tagger.tag([sound])[1])


def test_what_is_no_tagger_is_told_apart(tmp_path):
    with pytest.raises(ValueError, match="there is no tagger, config.json is missing"):
        load_tagger(tmp_path)
    tiny().save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors.pop("to_logits.bias")
    save_file(tensors, weights)
    with pytest.raises(ValueError, match=r"safetensors: lacks 1 tensor to_logits.bias; it does not fit config.json"):
        load_tagger(tmp_path)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_tagger(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"front_end": "mel"}, "front end 'mel' is unknown; choose from waveform, mel_musical, mel_musicnn, mel_small"),
        ({"back_end": "max"}, "back end 'max' is unknown; choose from mean_max, auto_pool, attention, recurrent"),
        ({"labels": []}, "at least one label"),
    ],
)
def test_unknown_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Tagger(**{"labels": LABELS, **settings})


def test_the_bundled_tagger_knows_kinds_that_yamnet_can_be_asked_for_too():
    labels = json.loads((bundled_tagger() / "config.json").read_text())["labels"]
    table = yaml.safe_load((bundled_tagger().parents[1] / "configs/audioset/kinds.yaml").read_text(encoding="utf-8"))
    assert len(labels) >= 25 and set(labels) - {OUTLIER_KIND} <= table["kinds"].keys()
    assert {"dog barking", "rain", "violin"} < set(labels)
    embeddings, logits = load_tagger(bundled_tagger()).tag(sounds(1, 2))
    assert embeddings.shape[0] == logits.shape[0] == 2
