"""Fitting a bridge to a corpus."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from diffaudio.errors import UserError
from diffaudio.training.bridge_fitting import BridgeSettings, make_bridge

TEXTS = ["a dog", "rain", "a cat", "thunder"]


def embed(texts: list[str]) -> torch.Tensor:
    rows = [torch.randn(32, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts]
    return F.normalize(torch.stack(rows), dim=-1)


CLIP: Any = SimpleNamespace(encode_text=embed, name="tiny")
CORPUS: Any = SimpleNamespace(picture_embeddings=lambda count: embed(["a dog", "rain"]).repeat(4, 1)[:count])


def test_alternatives_are_fitted_beside_the_bridge():
    bridge = make_bridge(
        BridgeSettings("retrieval", TEXTS, alternatives=["spread", "noise"], noise_level=0.1), CORPUS, CLIP
    )
    assert sorted(bridge.alternatives) == ["noise", "spread"]
    noise: Any = bridge.alternatives["noise"]
    assert noise.config["level"] == 0.1
    assert {bridge.config["clip_name"], noise.config["clip_name"]} == {"tiny"}


def test_a_background_says_which_prompts_are_unfamiliar(tmp_path: Path):
    (tmp_path / "background.txt").write_text("thunder\na drill\nrain\n")
    settings = BridgeSettings(
        "retrieval", TEXTS, background_file=tmp_path / "background.txt", familiarity_threshold=0.0
    )
    familiarity = make_bridge(settings, CORPUS, CLIP).familiarity(embed(["a dog", "rain", "thunder", "a drill"]))
    assert (familiarity > 0).tolist() == [True, True, False, False]


def test_settings_without_effect_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"bridge.noise_level has no effect with bridge.kind spread"):
        make_bridge(BridgeSettings("spread", TEXTS, noise_level=0.1), CORPUS, CLIP)
    (tmp_path / "background.txt").write_text("thunder\n")
    with pytest.raises(UserError, match=r"background_file needs texts that say what the corpus shows"):
        make_bridge(BridgeSettings("none", background_file=tmp_path / "background.txt"), CORPUS, CLIP)
    with pytest.raises(UserError, match=r"bridge.background_file: gone.txt cannot be read"):
        make_bridge(BridgeSettings("none", TEXTS, background_file=Path("gone.txt")), CORPUS, CLIP)
