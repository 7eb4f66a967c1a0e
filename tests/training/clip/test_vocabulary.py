"""Sentence encoders with fewer word pieces."""

import json
from pathlib import Path

import pytest
import torch
from tiny_model import sentence_encoder, write_tiny_clip
from transformers import BertModel

from diffaudio.training.clip.vocabulary import prune_vocabulary, words_for_things


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "clip")


def test_dropping_words_leaves_the_embeddings_of_the_others_as_they_were(folder: Path, tmp_path: Path):
    from tokenizers import Tokenizer

    source = sentence_encoder(tmp_path / "source", folder)
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "texts.txt").write_text("a dog barking\nrain on the roof\n")
    size = len(json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]) - 2
    prune_vocabulary(source, target, texts=[tmp_path / "texts.txt"], size=size)

    def embed(model: Path, text: str) -> torch.Tensor:
        ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text).ids
        with torch.no_grad():
            return BertModel.from_pretrained(model).eval()(torch.tensor([ids])).last_hidden_state

    torch.testing.assert_close(embed(source, "a dog on the roof"), embed(target, "a dog on the roof"))
    kept = json.loads((target / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(kept) == size
    assert {"[PAD]", "dog", "barking"} <= kept.keys()
    assert kept.keys().isdisjoint({"sound", "of"})  # the last of the vocabulary, and in no text


def test_room_in_the_vocabulary_goes_to_the_most_frequent_words_of_the_filler(folder: Path, tmp_path: Path):
    source = sentence_encoder(tmp_path / "source", folder)
    (tmp_path / "texts.txt").write_text("a dog barking\n")

    def vocabulary(size: int) -> set[str]:
        target = tmp_path / f"target{size}"
        target.mkdir()
        filler = ["sound", "sound of", "sound of the"]
        prune_vocabulary(source, target, texts=[tmp_path / "texts.txt"], filler=filler, size=size)
        return json.loads((target / "tokenizer.json").read_text())["model"]["vocab"].keys()

    whole = json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]
    smallest = next(size for size in range(len(whole)) if fits(source, tmp_path, size))
    base = vocabulary(smallest)
    assert vocabulary(smallest + 1) == base | {"sound"}
    assert vocabulary(smallest + 2) == base | {"sound", "of"}


def fits(source: Path, folder: Path, size: int) -> bool:
    target = folder / f"try{size}"
    target.mkdir()
    try:
        prune_vocabulary(source, target, texts=[folder / "texts.txt"], size=size)
    except ValueError:
        return False
    return True


def test_a_vocabulary_too_small_for_the_texts_is_refused(folder: Path, tmp_path: Path):
    source = sentence_encoder(tmp_path / "source", folder)
    (tmp_path / "texts.txt").write_text("a dog barking\n")
    with pytest.raises(ValueError, match=r"vocabulary size 20 is too small: the texts alone need \d+ word pieces"):
        prune_vocabulary(source, tmp_path, texts=[tmp_path / "texts.txt"], size=20)


def test_the_words_for_things_are_those_of_imagenet_with_their_definitions():
    words = words_for_things()
    assert len(words) == 3 * 21_841
    assert words.count("sparrow, true sparrow") == 2
    assert sum(line.startswith("sparrow, true sparrow: any of several small") for line in words) == 1
