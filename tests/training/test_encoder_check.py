"""A corpus is trained on with the models that encoded it, and with no others."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_model import tiny_parts
from torch import nn

from diffaudio.corpus.weights_digest import describe_weights
from diffaudio.errors import UserError
from diffaudio.training.encoder_check import check_encoders


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_parts(tmp_path_factory.mktemp("clip") / "clip")


def dataset(parts: dict[str, Any], **clip: Any) -> Any:
    """An encoded corpus, as its manifest describes it."""
    autoencoder = parts["autoencoder"]
    properties = {name: getattr(autoencoder, name) for name in ("name", "latent_rate", "latent_channels")}
    encoded_by = {"name": parts["clip"].name} | describe_weights(parts["clip"]) | clip
    made_by = properties | describe_weights(autoencoder)
    return SimpleNamespace(folders=[Path("encoded")], autoencoder=made_by, clip=encoded_by)


def changed(module: Any) -> Any:
    """A copy with other weights."""
    other = copy.deepcopy(module)
    nn.init.constant_(next(other.parameters()), 0.5)
    return other


def test_the_models_that_encoded_a_corpus_are_accepted_also_in_half_precision(parts):
    check_encoders(dataset(parts), parts["autoencoder"], parts["clip"])
    check_encoders(dataset(parts), parts["autoencoder"], copy.deepcopy(parts["clip"]).half().float())


def test_a_clip_of_another_name_is_refused_with_both_names(parts):
    with pytest.raises(UserError, match=r"encoded: embeddings were made by CLIP 'ViT-B-32/openai', .* wants 'tiny'"):
        check_encoders(dataset(parts, name="ViT-B-32/openai"), parts["autoencoder"], parts["clip"])


def test_models_of_the_same_name_with_other_weights_are_refused(parts):
    with pytest.raises(
        UserError, match=r"encoded: was encoded by another CLIP of the name 'tiny', with other weights; .*--clip"
    ):
        check_encoders(dataset(parts), parts["autoencoder"], changed(parts["clip"]))
    with pytest.raises(UserError, match=r"encoded by another autoencoder of the name .* --autoencoder"):
        check_encoders(dataset(parts), changed(parts["autoencoder"]), parts["clip"])
