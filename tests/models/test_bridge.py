import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from diffaudio.errors import UserError
from diffaudio.models.bridge.bridges import BRIDGES, SpreadBridge, fit_bridge, picture_keys
from diffaudio.models.bridge.familiarity import divide_texts
from diffaudio.models.bridge.folder import check_clip, choose_bridge, load_bridge
from diffaudio.models.bridge.noise import noise_embeddings
from diffaudio.models.bridge.prior import PriorBridge, prior_loss


def directions(number: int, *, seed: int = 0, dim: int = 64) -> torch.Tensor:
    return F.normalize(torch.randn(number, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def across_a_gap(texts: torch.Tensor) -> torch.Tensor:
    """Images of the same things as the texts, in another cone."""
    return F.normalize(texts + directions(1, seed=9), dim=-1)


def test_none_changes_nothing():
    texts = directions(3)
    assert torch.equal(fit_bridge("none", directions(5))(texts), texts)


def test_shift_carries_the_mean_of_texts_to_that_of_images():
    texts = directions(200)
    images = across_a_gap(texts)
    carried = fit_bridge("shift", images, texts)(texts)
    gap = (texts.mean(0) - images.mean(0)).norm()
    assert (carried.mean(0) - images.mean(0)).norm() < 0.3 * gap
    assert torch.allclose(carried.norm(dim=-1), torch.ones(200))


def test_retrieval_finds_the_picture_of_a_text_across_the_gap():
    texts = directions(20)
    images = across_a_gap(texts)
    bridge = fit_bridge("retrieval", images, texts, temperature=0.002)
    torch.testing.assert_close(bridge(texts), images, rtol=0, atol=0.05)


def test_retrieval_at_a_high_temperature_is_the_mean_of_all_pictures():
    images = directions(20)
    carried = fit_bridge("retrieval", images, temperature=1e6)(directions(3, seed=1))
    torch.testing.assert_close(carried, F.normalize(images.mean(0), dim=0).expand(3, -1), rtol=0, atol=1e-4)


def test_keys_without_their_own_share_are_the_texts_that_fit():
    texts = directions(10)
    keys = picture_keys(across_a_gap(texts), texts, caption_scale=1000, own_share=0)
    torch.testing.assert_close(keys, texts, rtol=0, atol=1e-3)


def test_what_was_shown_is_more_familiar_than_what_was_not():
    texts = directions(40)
    bridge = fit_bridge("retrieval", across_a_gap(texts[:20]), texts, neighbours=1)
    familiarity = bridge.familiarity(texts)
    assert familiarity.shape == (40,)
    assert familiarity[:20].min() > familiarity[20:].max()


@pytest.mark.parametrize("kind", BRIDGES)
def test_a_saved_bridge_carries_the_same(kind: str, tmp_path: Path):
    bridge = fit_bridge(kind, directions(20), directions(5, seed=1), familiarity_threshold=0.25)
    bridge.save_pretrained(tmp_path)
    loaded = load_bridge(tmp_path)
    texts = directions(3, seed=2)
    assert torch.equal(loaded(texts), bridge(texts))
    assert loaded.config["familiarity_threshold"] == 0.25


def test_errors_say_what_is_allowed(tmp_path: Path):
    with pytest.raises(ValueError, match=r"bridge 'prior' is unknown; choose from none, shift, spread, "):
        fit_bridge("prior", directions(3))
    with pytest.raises(ValueError, match=r"bridge 'shift' needs texts to take the mean embedding of"):
        fit_bridge("shift", directions(3))
    with pytest.raises(ValueError, match=r"not a bridge folder, config.json is missing"):
        load_bridge(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "Other"}))
    with pytest.raises(ValueError, match=r"bridge 'Other' is unknown; choose from IdentityBridge"):
        load_bridge(tmp_path)


def test_spread_gives_texts_the_mean_and_standard_deviation_of_images():
    texts = directions(500)
    images = F.normalize(directions(500, seed=1) * torch.linspace(0.2, 3, 64) + directions(1, seed=2), dim=-1)
    bridge = fit_bridge("spread", images, texts)
    assert isinstance(bridge, SpreadBridge)
    before_norm = bridge.image_mean + bridge.image_std * bridge.standardise(texts)
    torch.testing.assert_close(before_norm.mean(0), images.mean(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(before_norm.std(0, correction=0), images.std(0, correction=0), rtol=0, atol=1e-5)
    torch.testing.assert_close(bridge(texts), F.normalize(before_norm, dim=-1))


def test_noise_of_level_0_is_the_spread_alone_and_a_higher_level_is_further_from_it():
    texts, images = directions(50), across_a_gap(directions(50))
    spread = fit_bridge("spread", images, texts)(texts)
    similarity = [(fit_bridge("noise", images, texts, level=x)(texts) * spread).sum(-1).mean() for x in (0, 0.2, 0.6)]
    torch.testing.assert_close(similarity[0].item(), 1.0, rtol=0, atol=1e-5)
    assert similarity[0] > similarity[1] > similarity[2]
    with pytest.raises(UserError, match=r"the level is 1.0; it must lie between 0"):
        fit_bridge("noise", images, texts, level=1.0)


def test_noised_embeddings_keep_their_variance():
    z = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    n = torch.randn(4000, 8, generator=torch.Generator().manual_seed(1))
    for level in (0.0, 0.3, 1.0):
        assert noise_embeddings(z, level, n).std().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(noise_embeddings(z, 0.0, n), z)


@pytest.mark.parametrize("kind", ["noise", "prior"])
def test_what_becomes_of_a_text_does_not_depend_on_the_texts_beside_it(kind: str):
    bridge = PriorBridge(64, num_layers=1, attention_head_dim=8, num_attention_heads=2, steps=3)
    if kind == "noise":
        bridge = fit_bridge("noise", across_a_gap(directions(9)), directions(9))
    texts = directions(4)
    torch.testing.assert_close(bridge(texts)[2:3], bridge(texts[2:3]), rtol=0, atol=1e-5)


def test_a_trained_prior_draws_the_image_of_its_text():
    texts = directions(6, dim=16)
    images = directions(6, seed=3, dim=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bridge = PriorBridge(16, num_layers=1, attention_head_dim=16, num_attention_heads=2, steps=10)
    bridge.transformer.clip_mean.data.copy_(images.mean(0))
    bridge.transformer.clip_std.data.copy_(images.std(0))
    optimizer = torch.optim.Adam(bridge.transformer.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(250):
        pick = torch.randint(6, (32,), generator=generator)
        loss = prior_loss(bridge.predict, bridge, texts[pick], images[pick], generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    nearest = (bridge(texts) @ images.T).argmax(dim=1)
    assert nearest.tolist() == list(range(6))


def test_a_prior_is_saved_and_loaded(tmp_path: Path):
    bridge = PriorBridge(16, num_layers=1, attention_head_dim=8, num_attention_heads=2, steps=3, clip_name="tiny")
    bridge.save_pretrained(tmp_path / "prior")
    loaded = load_bridge(tmp_path / "prior")
    assert torch.equal(loaded(directions(2, dim=16)), bridge(directions(2, dim=16)))


def test_a_bridge_is_chosen_by_name_or_by_folder_and_kept_when_the_model_is_saved(tmp_path: Path):
    texts, images = directions(9), across_a_gap(directions(9))
    own = fit_bridge("retrieval", images, texts, clip_name="tiny")
    own.alternatives["shift"] = fit_bridge("shift", images, texts, clip_name="tiny")
    own.save_pretrained(tmp_path / "bridge")
    loaded = load_bridge(tmp_path / "bridge")
    loaded.save_pretrained(tmp_path / "again")
    for folder in ("bridge", "again"):
        loaded = load_bridge(tmp_path / folder)
        assert choose_bridge("retrieval", loaded, "tiny") is loaded
        expected = fit_bridge("shift", images, texts)(texts)
        torch.testing.assert_close(choose_bridge("shift", loaded, "tiny")(texts), expected)
        torch.testing.assert_close(choose_bridge(str(tmp_path / folder / "shift"), loaded, "tiny")(texts), expected)
        assert torch.equal(choose_bridge("none", loaded, "tiny")(texts), texts)
    with pytest.raises(UserError, match=r"bridge 'prior' is not one of this model's \(none, retrieval, shift\), nor a"):
        choose_bridge("prior", loaded, "tiny")


def test_a_bridge_made_for_another_clip_is_refused_naming_both(tmp_path: Path):
    bridge = fit_bridge("none", directions(2), clip_name="ViT-B-32/openai")
    with pytest.raises(UserError, match=r"made for CLIP 'ViT-B-32/openai', the model's is 'tiny'"):
        check_clip(bridge, "tiny", 64, tmp_path)
    with pytest.raises(UserError, match=r"for embeddings of 64 values \(CLIP 'unknown'\), those of .* 'tiny' have 16"):
        check_clip(fit_bridge("none", directions(2)), "tiny", 16, tmp_path)
    own = fit_bridge("none", directions(2))
    bridge.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"other: this bridge was made for CLIP 'ViT-B-32/openai'"):
        choose_bridge(str(tmp_path / "other"), own, "tiny")


def test_texts_are_divided_by_what_the_pictures_show():
    captions = directions(10)
    images = across_a_gap(captions[:3]).repeat(5, 1)
    background = torch.cat([captions[2:3], captions[7:9]])  # the first of them is shown
    known, others = divide_texts(images, captions, background)
    assert torch.equal(known, captions[:3])
    assert torch.equal(others, captions[7:9])
    bridge = fit_bridge("none", images, vocabulary=(known, others))
    familiarity = bridge.familiarity(torch.cat([captions[:3], captions[7:9]]))
    assert familiarity[:3].min() > 0 > familiarity[3:].max()
    with pytest.raises(UserError, match=r"every background text says what the corpus shows"):
        divide_texts(images, captions, captions[:3])
    with pytest.raises(UserError, match=r"no caption is the nearest to two pictures"):
        divide_texts(images[:3], captions, background)


def test_the_vocabulary_of_a_bridge_is_saved_with_it(tmp_path: Path):
    vocabulary = (directions(3), directions(2, seed=4))
    for kind in BRIDGES:
        bridge = fit_bridge(kind, directions(9, seed=5), directions(9, seed=6), vocabulary=vocabulary)
        bridge.save_pretrained(tmp_path / kind)
        loaded = load_bridge(tmp_path / kind)
        assert torch.equal(loaded.familiarity(vocabulary[0]), bridge.familiarity(vocabulary[0]))
