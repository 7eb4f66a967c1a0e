"""Embeddings of queries, with tiny random weights."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from media import numbered_pictures, tone, write_media
from PIL import Image
from tiny_model import EMBEDDING_DIM, tiny_parts

from diffaudio.errors import UserError
from diffaudio.models.bridge.bridges import fit_bridge
from diffaudio.pipeline import DiffAudioPipeline
from diffaudio.queries.embedding import QueryEncoder, interpolate, slerp
from diffaudio.queries.query import Part, Query, mixture

RAIN, DOG = Part("text", "rain"), Part("text", "a dog")


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> DiffAudioPipeline:
    return DiffAudioPipeline(**tiny_parts(tmp_path_factory.mktemp("clip") / "clip"))


@pytest.fixture(scope="module")
def encoder(pipe: DiffAudioPipeline) -> QueryEncoder:
    return pipe.query_encoder()


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.effect_noise((40, 30), 80).convert("RGB").save(path)
    return path


def encoded(encoder: QueryEncoder, *parts: Part, **interpolation: Any) -> torch.Tensor:
    return encoder.encode_queries([Query(parts, **interpolation)])


def test_a_text_alone_is_its_prompt_and_an_image_alone_its_embedding(pipe, encoder, photo):
    assert torch.equal(encoded(encoder, Part("text", "rain", 3.0)), pipe.encode_prompt(["rain"]))
    expected = pipe.clip.encode_image([Image.open(photo)])
    for image in (photo, str(photo), Image.open(photo), np.asarray(Image.open(photo))):
        assert torch.equal(encoded(encoder, Part("image", image, 0.2)), expected)


def test_a_mixture_is_the_weighted_mean_of_its_parts(pipe, encoder, photo):
    text, picture = pipe.encode_prompt(["rain"]), pipe.clip.encode_image([Image.open(photo)])
    for scale in (1, 3):
        mixed = encoded(encoder, Part("image", photo, scale * 0.25), Part("text", "rain", scale * 0.75))
        torch.testing.assert_close(mixed, F.normalize(0.75 * text + 0.25 * picture, dim=-1))


def test_a_batch_of_all_kinds_has_the_embeddings_that_each_has_alone(encoder, photo, tmp_path):
    video = write_media(tmp_path / "a.mp4", sound=tone(1, 44100), pictures=numbered_pictures(2))
    queries = [
        Query((RAIN,)),
        Query((Part("image", photo, 2.0), Part("video", video), DOG)),
        Query((DOG,), (Part("image", photo),), 0.3),
        Query((Part("video", video),)),
    ]
    together = encoder.encode_queries(queries)
    alone = torch.cat([encoder.encode_queries([query]) for query in queries])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(4))


def test_the_frames_of_a_video_and_of_an_animation_are_averaged(pipe, encoder, tmp_path):
    frames = numbered_pictures(2)
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=250)
    video = write_media(tmp_path / "a.mp4", sound=tone(1, 44100), pictures=frames)
    expected = pipe.clip.encode_video(frames)
    assert torch.equal(encoded(encoder, Part("video", frames)), expected)
    for part in (Part("image", tmp_path / "a.gif"), Part("video", tmp_path / "a.gif"), Part("video", video)):
        assert (encoded(encoder, part) * expected).sum() > 0.999


def test_an_interpolation_moves_between_the_embeddings_of_its_ends(pipe, encoder):
    first, last = pipe.encode_prompt(["rain"]), pipe.encode_prompt(["a dog"])
    points = torch.cat([encoded(encoder, RAIN, to=(DOG,), position=p) for p in (0.0, 0.25, 1.0)])
    torch.testing.assert_close(points[[0, 2]], torch.cat([first, last]))
    angles = torch.acos((points @ first.T).clamp(-1, 1))[:, 0]
    torch.testing.assert_close(angles[1], angles[2] / 4, atol=1e-3, rtol=1e-3)


def test_templates_are_averaged_and_texts_alone_pass_them(pipe, photo):
    encoder = pipe.query_encoder(templates=["{}", "the sound of {}"])
    texts = pipe.clip.encode_text(["rain", "the sound of rain"]).mean(dim=0, keepdim=True)
    torch.testing.assert_close(encoded(encoder, RAIN), pipe.bridge(F.normalize(texts, dim=-1)))
    torch.testing.assert_close(pipe.encode_prompt("rain", templates=["{}", "the sound of {}"]), encoded(encoder, RAIN))
    expected = pipe.clip.encode_image([Image.open(photo)])
    assert torch.equal(encoded(encoder, Part("image", photo)), expected)


def test_the_model_s_own_templates_are_used_unless_others_are_given(tmp_path):
    pipe = DiffAudioPipeline(**tiny_parts(tmp_path / "clip"))
    plain = pipe.encode_prompt("rain")
    pipe.clip.templates = ("a photo of {}",)
    pipe.save_pretrained(tmp_path / "model")
    loaded = DiffAudioPipeline.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(loaded.encode_prompt("rain"), pipe.bridge(pipe.clip.encode_text(["a photo of rain"])))
    torch.testing.assert_close(loaded.encode_prompt("rain", templates=["{}"]), plain)
    described = {"text_bridge": "retrieval", "text_templates": ["a photo of {}"]}
    assert loaded.query_encoder().describe() == described


def test_the_bridge_is_chosen_by_name_and_is_the_one_that_was_saved(pipe, tmp_path, photo):
    images, texts = (
        F.normalize(torch.randn(20, EMBEDDING_DIM, generator=torch.Generator().manual_seed(s))) for s in (0, 1)
    )
    pipe = DiffAudioPipeline(**pipe.components | {"bridge": copy.deepcopy(pipe.bridge)})
    pipe.bridge.alternatives["shift"] = shift = fit_bridge("shift", images, texts)
    pipe.save_pretrained(tmp_path / "model")
    loaded = DiffAudioPipeline.from_pretrained(tmp_path / "model")
    text = pipe.clip.encode_text(["rain"])
    for model in (pipe, loaded):
        assert torch.equal(model.encode_prompt("rain", bridge="none"), text)
        assert torch.equal(model.encode_prompt("rain", bridge="shift"), shift(text))
        assert torch.equal(model.encode_prompt("rain", bridge="retrieval"), model.encode_prompt("rain"))
        assert model.query_encoder(bridge="shift").describe()["text_bridge"] == "shift"
    image = Part("image", photo)
    assert torch.equal(encoded(loaded.query_encoder(bridge="shift"), image), encoded(loaded.query_encoder(), image))
    with pytest.raises(UserError, match=r"bridge 'prior' is not one of this model's \(none, retrieval, shift\)"):
        loaded.encode_prompt("rain", bridge="prior")


def test_a_bridge_made_for_another_clip_is_refused_with_both_names(pipe, tmp_path):
    images = F.normalize(torch.randn(20, EMBEDDING_DIM), dim=-1)
    fit_bridge("shift", images, images, clip_name="ViT-B-32/openai").save_pretrained(tmp_path / "shift")
    with pytest.raises(UserError, match=r"made for CLIP 'ViT-B-32/openai', the model's is 'tiny'"):
        pipe.encode_prompt("rain", bridge=str(tmp_path / "shift"))


def test_the_image_bridge_gives_the_training_images_that_resemble_an_image(pipe, photo):
    encoder = pipe.query_encoder(image_bridge="retrieval")
    image, memory = pipe.clip.encode_image([Image.open(photo)]), pipe.bridge.memory
    weights = torch.softmax(image @ memory.T / pipe.bridge.config["temperature"], dim=-1)
    torch.testing.assert_close(encoded(encoder, Part("image", photo)), F.normalize(weights @ memory, dim=-1))
    assert torch.equal(encoded(encoder, RAIN), pipe.encode_prompt("rain"))
    with pytest.raises(UserError, match="image bridge 'none' maps texts only; a retrieval bridge has training images"):
        pipe.query_encoder(image_bridge="none")


def test_files_that_cannot_be_read_and_parts_that_cancel_out_are_refused(encoder, tmp_path, monkeypatch):
    (tmp_path / "notes.jpg").write_text("no picture")
    with pytest.raises(UserError, match=r"notes\.jpg"):
        encoded(encoder, Part("image", tmp_path / "notes.jpg"))
    with pytest.raises(UserError, match=r"gone\.mp4"):
        encoded(encoder, Part("video", str(tmp_path / "gone.mp4")))
    with pytest.raises(UserError, match="the list of queries is empty"):
        encoder.encode_queries([])
    opposite = torch.eye(EMBEDDING_DIM)[:1] * torch.tensor([[1.0], [-1.0]])
    monkeypatch.setattr(QueryEncoder, "encode_texts", lambda *_, **__: opposite)
    with pytest.raises(UserError, match="the parts of the query cancel each other out; change the weights"):
        encoder.encode_queries([mixture(["rain", "a dog"])])
    with pytest.raises(UserError, match="opposite to each other; nothing lies between them"):
        encoded(encoder, RAIN, to=(DOG,), position=0.5)


def test_interpolation_moves_at_a_steady_pace_along_the_great_circle():
    first, last = torch.eye(3)[:1], F.normalize(torch.tensor([[1.0, 1.0, 0.0]]), dim=-1)
    points = interpolate(first, last, 4)
    torch.testing.assert_close(points[[0, -1]], torch.cat([first, last]))
    cosines = (points[1:] * points[:-1]).sum(dim=-1)
    torch.testing.assert_close(cosines, torch.full((3,), math.cos(math.pi / 4 / 3)))
    torch.testing.assert_close(interpolate(first, first, 3), first.expand(3, -1))


def test_an_interpolation_without_two_ends_is_refused():
    first = torch.eye(2)[:1]
    with pytest.raises(UserError, match=r"an interpolation of 1 has no two ends; give 2 or more"):
        interpolate(first, first, 1)
    with pytest.raises(UserError, match=r"opposite to each other"):
        slerp(first[0], -first[0], 0.5)
