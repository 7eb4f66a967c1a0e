"""Words that the CLIPs of the bundled and the next model have to understand: other ways of saying what they hold."""

import csv
from pathlib import Path

import pytest
import torch
import yaml
from scripts import REPO

from diffaudio.models.bridge.familiarity import familiarity, fit_threshold
from diffaudio.models.clip import Clip
from diffaudio.training.bridge_fitting import read_lines

HERE = Path(__file__).parent
MIN_SHARE = 0.9


def rows(name: str) -> list[dict[str, str]]:
    with (HERE / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module", params=["mini", "next"])
def clip(request: pytest.FixtureRequest) -> Clip:
    return Clip.from_pretrained(REPO / "checkpoints" / request.param / "clip", text_only=True)


def share_right(clip: Clip, paraphrases: list[dict[str, str]], kinds: list[str]) -> float:
    prompts = [row["prompt"] for row in paraphrases]
    batches = [clip.encode_prompts(prompts[start : start + 64]) for start in range(0, len(prompts), 64)]
    nearest = (torch.cat(batches) @ clip.encode_prompts(kinds).T).argmax(dim=1).tolist()
    right = [kinds[index] == row["label"] for index, row in zip(nearest, paraphrases, strict=True)]
    return sum(right) / len(right)


def test_nine_of_ten_paraphrases_are_nearest_to_their_own_kind(clip: Clip):
    paraphrases = rows("paraphrases.csv")
    kinds = sorted({row["label"] for row in paraphrases})
    assert (len(paraphrases), len(kinds)) == (200, 25)
    assert share_right(clip, paraphrases, kinds) >= MIN_SHARE


def test_so_they_are_among_all_45_kinds(clip: Clip):
    paraphrases = rows("paraphrases.csv") + rows("paraphrases_new_kinds.csv")
    kinds = sorted({row["label"] for row in paraphrases})
    assert (len(paraphrases), len(kinds)) == (292, 45)
    assert share_right(clip, paraphrases, kinds) >= MIN_SHARE


def test_no_paraphrase_stands_in_two_lists():
    lists = ["paraphrases.csv", "paraphrases_new_kinds.csv", "familiarity/known.csv", "familiarity/other.csv"]
    prompts = [row["prompt"] for name in lists for row in rows(name)]
    assert len(prompts) == len(set(prompts)) == 492


def test_the_warning_is_wrong_about_few_paraphrases_and_few_other_things(clip: Clip):
    """At most 5 of 100 paraphrases of what the corpus holds are warned about, and at most 20 of 100 others are not.

    The lists are not among the texts that the warning is made from.
    """

    def encode(texts: list[str]) -> torch.Tensor:
        return torch.cat([clip.encode_prompts(texts[start : start + 64]) for start in range(0, len(texts), 64)])

    known, background = (read_lines(REPO / "configs" / "mini" / name) for name in ("known.txt", "background.txt"))
    lists = {name: [row["prompt"] for row in rows(f"familiarity/{name}.csv")] for name in ("known", "other")}
    assert [len(texts) for texts in lists.values()] == [100, 100]
    assert not {*lists["known"], *lists["other"]} & {*known, *background}
    vocabulary = encode(known), encode(background)
    share = parse_familiarity_share()
    threshold = fit_threshold(*vocabulary, share)
    warned = {name: familiarity(encode(texts), *vocabulary) < threshold for name, texts in lists.items()}
    assert warned["known"].float().mean() <= 0.05
    assert warned["other"].float().mean() >= 0.8


def parse_familiarity_share() -> float:
    """As the bundled model's config has it."""
    config = yaml.safe_load((REPO / "configs" / "mini" / "diffusion.yaml").read_text(encoding="utf-8"))
    return config["bridge"]["familiarity_share"]
