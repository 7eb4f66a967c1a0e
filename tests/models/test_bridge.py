import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from diffaudio.models.bridge import BRIDGES, fit_bridge, load_bridge, picture_keys


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
    with pytest.raises(ValueError, match=r"bridge 'prior' is unknown; choose from none, shift, retrieval"):
        fit_bridge("prior", directions(3))
    with pytest.raises(ValueError, match=r"bridge 'shift' needs texts to take the mean embedding of"):
        fit_bridge("shift", directions(3))
    with pytest.raises(ValueError, match=r"not a bridge folder, config.json is missing"):
        load_bridge(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "Other"}))
    with pytest.raises(ValueError, match=r"bridge 'Other' is unknown; choose from IdentityBridge"):
        load_bridge(tmp_path)
