import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_model import tiny_parts

from diffaudio.errors import UserError
from diffaudio.generation.query_embedding import Part, encode_query, interpolate, parse_part
from diffaudio.pipeline import DiffAudioPipeline


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> DiffAudioPipeline:
    return DiffAudioPipeline(**tiny_parts(tmp_path_factory.mktemp("clip") / "clip"))


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.effect_noise((40, 30), 80).convert("RGB").save(path)
    return path


def test_a_part_is_read_with_its_weight():
    assert parse_part("a dog barking::0.7") == Part("text", "a dog barking", 0.7)
    assert parse_part("rain") == Part("text", "rain", 1.0)
    assert parse_part("C::photo.jpg::2", "image") == Part("image", "C::photo.jpg", 2.0)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("rain::much", r"the weight 'much' is not a number; write the text, '::' and a number above 0"),
        ("rain::", r"the weight '' is not a number"),
        ("rain::-1", r"the weight is -1; a number above 0 is needed"),
        ("rain::nan", r"the weight is nan; a number above 0 is needed"),
        ("rain::inf", r"the weight is inf; a number above 0 is needed"),
        ("::0.5", r"the text is empty"),
        ("  ", r"the text is empty"),
    ],
)
def test_a_part_that_cannot_be_read_is_one_line(argument: str, message: str):
    with pytest.raises(UserError, match=message):
        parse_part(argument)


def test_a_text_alone_is_its_prompt_and_a_picture_alone_its_embedding(pipe: DiffAudioPipeline, photo: Path):
    torch.testing.assert_close(encode_query(pipe, [Part("text", "rain", 3.0)]), pipe.encode_prompt(["rain"]))
    expected = pipe.clip.encode_image([Image.open(photo)])
    torch.testing.assert_close(encode_query(pipe, [Part("image", str(photo))]), expected)


def test_a_mixture_is_the_weighted_mean_of_its_parts(pipe: DiffAudioPipeline, photo: Path):
    text, picture = pipe.encode_prompt(["rain"]), pipe.clip.encode_image([Image.open(photo)])
    mixed = encode_query(pipe, [Part("image", str(photo), 0.25), Part("text", "rain", 0.75)])
    torch.testing.assert_close(mixed, F.normalize(0.75 * text + 0.25 * picture, dim=-1))


def test_a_file_that_is_no_picture_and_an_empty_query_are_refused(pipe: DiffAudioPipeline, tmp_path: Path):
    (tmp_path / "notes.jpg").write_text("no picture")
    with pytest.raises(UserError, match=r"notes.jpg"):
        encode_query(pipe, [Part("image", str(tmp_path / "notes.jpg"))])
    with pytest.raises(UserError, match=r"gone.mp4"):
        encode_query(pipe, [Part("video", str(tmp_path / "gone.mp4"))])
    with pytest.raises(UserError, match=r"the query is empty; give a text, a picture or a video"):
        encode_query(pipe, [])


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
        interpolate(first, -first, 3)
