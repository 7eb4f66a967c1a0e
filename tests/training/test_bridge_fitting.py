"""Fitting a bridge to a corpus."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from diffaudio.errors import UserError
from diffaudio.models.bridge.familiarity import familiarity
from diffaudio.training.bridge_fitting import BridgeSettings, make_bridge

TEXTS = ["a dog", "rain", "a cat", "thunder"]


def embed(texts: list[str]) -> torch.Tensor:
    rows = [torch.randn(32, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts]
    return F.normalize(torch.stack(rows), dim=-1)


CLIP: Any = SimpleNamespace(encode_prompts=embed, name="tiny")
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
    with pytest.raises(UserError, match=r"needs texts that say what the corpus shows; give bridge.known_file"):
        make_bridge(BridgeSettings("none", background_file=tmp_path / "background.txt"), CORPUS, CLIP)
    with pytest.raises(UserError, match=r"bridge.background_file: gone.txt cannot be read"):
        make_bridge(BridgeSettings("none", TEXTS, background_file=Path("gone.txt")), CORPUS, CLIP)
    with pytest.raises(UserError, match=r"bridge.familiarity_share has no effect without bridge.background_file"):
        make_bridge(BridgeSettings("none", TEXTS, familiarity_share=0.05), CORPUS, CLIP)
    with pytest.raises(UserError, match=r"bridge.known_file has no effect without bridge.background_file"):
        make_bridge(BridgeSettings("none", TEXTS, known_file=tmp_path / "background.txt"), CORPUS, CLIP)
    both = BridgeSettings("none", TEXTS, familiarity_share=0.05, familiarity_threshold=0.1)
    with pytest.raises(UserError, match=r"give one of bridge.familiarity_share and bridge.familiarity_threshold"):
        make_bridge(both, CORPUS, CLIP)


def test_known_texts_may_be_listed_and_the_threshold_fitted_to_them(tmp_path: Path):
    known = [f"dog {letter}" for letter in "abcdefghijklmnopqrst"]
    (tmp_path / "known.txt").write_text("\n".join(known))
    (tmp_path / "background.txt").write_text("dog c\n" + "\n".join(f"drill {letter}" for letter in "abcdefghij"))
    settings = BridgeSettings(
        "retrieval", TEXTS, alternatives=["shift"], known_file=tmp_path / "known.txt",
        background_file=tmp_path / "background.txt", familiarity_share=0.1,
    )  # fmt: skip
    bridge = make_bridge(settings, CORPUS, CLIP)
    assert bridge.known_texts is not None and bridge.background_texts is not None
    assert (len(bridge.known_texts), len(bridge.background_texts)) == (20, 10)  # "dog c" says what a known text says
    threshold = bridge.config["familiarity_threshold"]
    others = torch.eye(20, dtype=torch.bool)
    vocabulary = bridge.known_texts, bridge.background_texts
    left_out = [familiarity(vocabulary[0][own], vocabulary[0][~own], vocabulary[1]).item() for own in others]
    assert sum(value < threshold for value in left_out) == 2
    shift: Any = bridge.alternatives["shift"]
    assert shift.known_texts is None  # whichever bridge is chosen, the model's own knows what the corpus holds
