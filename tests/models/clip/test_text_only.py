"""A CLIP that only encodes texts: the same embeddings, to the bit, without open_clip and transformers."""

import dataclasses
import inspect
import json
import random

import pytest
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import PreprocessCfg
from PIL import Image
from transformers import BertConfig

from diffaudio.checkpoint import bundled_model
from diffaudio.errors import UserError
from diffaudio.library_loading import BERT_KEYS, LEGACY_TRANSFORMERS_KEYS
from diffaudio.models.clip import Clip
from diffaudio.models.clip.bert import BertTokenizer
from diffaudio.models.clip.loading import PREPROCESSING_KEYS, TEXT_KEYS, VISION_KEYS, TextTower
from tests.helpers.tiny_model import write_tiny_clip

TEXTS = ["rain", "a dog barking in the distance", "x " * 100, "Ünïcode &amp; <b>中国</b>"]


@pytest.fixture(scope="module", params=["bundled", "tiny"])
def folder(request, tmp_path_factory):
    if request.param == "bundled":
        return bundled_model() / "clip"
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def both(folder):
    return Clip.from_pretrained(folder, text_only=True), Clip.from_pretrained(folder)


def test_embeddings_equal_those_of_the_whole_model_to_the_bit(both):
    text_only, whole = both
    assert isinstance(text_only.model, TextTower)
    for texts in (TEXTS[:1], TEXTS):
        assert torch.equal(text_only.encode_text(texts), whole.encode_text(texts))


def test_tokens_equal_those_of_transformers_for_any_text(both):
    text_only, whole = both
    assert isinstance(text_only.tokenizer, BertTokenizer)
    drawn = random.Random(0)
    pieces = [
        *map(chr, range(1200)),
        "中",
        "\u200b",
        "\u3000",
        "😀",
        "[CLS]",
        "[SEP]",
        "[PAD]",
        "[MASK]",
        "[UNK]",
        " the ",
    ]
    texts = ["".join(drawn.choices(pieces, k=drawn.randrange(120))) for _ in range(300)]
    for length in (5, text_only.context_length):
        assert torch.equal(text_only.tokenizer(texts, length), whole.tokenizer(texts, length))


def test_without_its_image_tower_a_clip_takes_no_images_and_is_not_saved(both, tmp_path):
    text_only, _ = both
    for call in (
        lambda: text_only.encode_image([Image.new("RGB", (8, 8))]),
        lambda: text_only.encode_pixels(torch.zeros(1, 3, 8, 8)),
        lambda: text_only.save_pretrained(tmp_path / "copy"),
    ):
        with pytest.raises(UserError, match="was loaded for texts only; load it without text_only=True"):
            call()


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "hidden_act", "relu"),
        ("open_clip_config.json", "hf_pooler_type", "cls_last_hidden_state_pooler"),
    ],
)
def test_a_text_tower_of_another_kind_is_loaded_with_the_whole_model(tmp_path, file, key, value):
    folder = write_tiny_clip(tmp_path / "clip")
    config = json.loads((folder / file).read_text())
    (config["model_cfg"]["text_cfg"] if "model_cfg" in config else config)[key] = value
    (folder / file).write_text(json.dumps(config))
    text_only, whole = Clip.from_pretrained(folder, text_only=True), Clip.from_pretrained(folder)
    assert not isinstance(text_only.model, TextTower)
    assert torch.equal(text_only.encode_text(TEXTS), whole.encode_text(TEXTS))


def test_a_tokenizer_with_other_settings_is_left_to_transformers(tmp_path):
    folder = write_tiny_clip(tmp_path / "clip")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"do_lower_case": False}))
    text_only, whole = Clip.from_pretrained(folder, text_only=True), Clip.from_pretrained(folder)
    assert not isinstance(text_only.tokenizer, BertTokenizer)
    assert torch.equal(text_only.tokenizer(["A Dog"]), whole.tokenizer(["A Dog"]))


@pytest.mark.parametrize(
    ("keys", "settings"),
    [(VISION_KEYS, CLIPVisionCfg), (TEXT_KEYS, CLIPTextCfg), (PREPROCESSING_KEYS, PreprocessCfg)],
)
def test_the_keys_of_open_clips_configs_are_those_of_its_classes(keys, settings):
    assert keys == {field.name for field in dataclasses.fields(settings)}


def test_the_keys_of_a_bert_config_are_those_that_transformers_takes():
    taken = set(BertConfig().to_dict()) | set(inspect.signature(BertConfig).parameters)
    assert taken - LEGACY_TRANSFORMERS_KEYS == BERT_KEYS
