"""Queries as they are written on a command line, in a call of the pipeline and in the JSON beside a sound."""

import json
import re

import pytest

from diffaudio.diffusion.settings import GenerationSettings
from diffaudio.errors import UserError
from diffaudio.queries.query import (
    Part,
    Query,
    check_settings,
    interpolation,
    mixture,
    parse_parts,
    parse_queries,
    queries_of,
)

DOG, RAIN = Part("text", "a dog barking", 0.7), Part("text", "rain", 0.3)


def test_a_part_is_parsed_with_its_weight():
    assert parse_parts("a dog barking::0.7") == (DOG,)
    assert parse_parts("rain") == (Part("text", "rain"),)
    assert parse_parts("C::photo.jpg::2", "image") == (Part("image", "C::photo.jpg", 2.0),)
    assert parse_parts("photo 1.jpg", "image") == (Part("image", "photo 1.jpg"),)


def test_one_text_may_contain_several_weighted_parts():
    assert parse_parts("a dog barking::0.7 rain::0.3") == (DOG, RAIN)
    assert parse_parts("a dog barking::0.7   rain::.3  ") == (DOG, RAIN)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("rain::much", r"the weight 'much' is not a number; write the text, '::' and a number above 0"),
        ("rain::", r"the weight '' is not a number"),
        ("rain:: 0.5", r"the weight '' is not a number"),
        ("rain::0,5", r"the weight '0,5' is not a number"),
        ("rain::-1", r"the weight is -1; a number above 0 is needed"),
        ("rain::0", r"the weight is 0; a number above 0 is needed"),
        ("rain::nan", r"the weight is nan; a number above 0 is needed"),
        ("rain::inf", r"the weight is inf; a number above 0 is needed"),
        ("rain::1e999", r"the weight is 1e999; a number above 0 is needed"),
        ("::0.5", r"the text is empty; write it before '::' and its weight"),
        ("rain::1 ::0.5", r"the text is empty"),
        ("rain::0.5 a dog", r"'a dog' has no weight; write '::' and a number above 0 after each part"),
        ("std::vector", r"the weight 'vector' is not a number"),
        ("  ", r"a prompt is empty; say in a few words what to hear"),
        ("rain\udcff::1", r"not valid UTF-8"),
    ],
)
def test_a_part_that_cannot_be_parsed_is_an_error_in_one_line(argument: str, message: str):
    with pytest.raises(UserError, match=message) as raised:
        parse_parts(argument)
    assert "\n" not in str(raised.value)


def test_without_weights_each_argument_is_a_query_and_with_weights_all_are_one():
    assert parse_queries(["rain", "a bell"], ["a.jpg"], ["b.mp4"]) == [
        Query((Part("text", "rain"),)),
        Query((Part("text", "a bell"),)),
        Query((Part("image", "a.jpg"),)),
        Query((Part("video", "b.mp4"),)),
    ]
    mixed = Query((DOG, RAIN, Part("image", "a.jpg", 2.0), Part("video", "b.mp4", 1.0)))
    assert parse_queries(["a dog barking::0.7", "rain::0.3"], ["a.jpg::2"], ["b.mp4::1"]) == [mixed]
    assert parse_queries(["a dog barking::0.7 rain::0.3"], ["a.jpg::2"], ["b.mp4::1"]) == [mixed]


def test_weights_on_some_parts_alone_are_refused():
    with pytest.raises(
        UserError, match=r"'rain::0.3' has a weight and 'a bell' has none; give every part .* 'a bell::1'"
    ):
        parse_queries(["a bell", "rain::0.3"])
    with pytest.raises(UserError, match=r"'rain::0.3' has a weight and 'a.jpg' has none"):
        mixture(["rain::0.3"], ["a.jpg"])


def test_a_row_without_weights_is_mixed_evenly():
    assert mixture(["rain"], ["a.jpg"]) == Query((Part("text", "rain"), Part("image", "a.jpg")))
    with pytest.raises(UserError, match="the query is empty; give a text, an image or a video"):
        mixture()


def test_an_interpolation_has_its_ends_and_equal_distances_between():
    queries = interpolation(5, ["rain"], ["a.jpg"])
    assert [query.position for query in queries] == [0, 0.25, 0.5, 0.75, 1]
    assert {(query.parts, query.to) for query in queries} == {((Part("text", "rain"),), (Part("image", "a.jpg"),))}
    assert interpolation(2, ["a dog barking::0.7 rain::0.3", "a bell"])[1] == Query(
        (DOG, RAIN), (Part("text", "a bell"),), 1
    )
    for arguments, message in (
        ((1, ["a", "b"]), "an interpolation of 1 has no two ends; give 2 or more"),
        ((3, ["a"]), "goes from one query to another, but 1 were given; give two"),
        ((3, ["a", "b"], ["c.jpg"]), "but 3 were given"),
    ):
        with pytest.raises(UserError, match=message):
            interpolation(*arguments)


def test_the_arguments_of_a_call_are_a_query_each_or_a_mixture():
    assert queries_of(["rain", Query((DOG,))]) == [Query((Part("text", "rain"),)), Query((DOG,))]
    assert queries_of(image="a.jpg") == queries_of(image=["a.jpg"]) == [Query((Part("image", "a.jpg"),))]
    assert queries_of(video=["1.png", "2.png"]) == [Query((Part("video", ["1.png", "2.png"]),))]
    assert queries_of(["a dog barking", "rain"], weights=[0.7, 0.3]) == [Query((DOG, RAIN))]
    assert queries_of("rain", ["a.jpg"], "b.mp4", weights=[0.3, 2, 1]) == [
        Query((RAIN, Part("image", "a.jpg", 2.0), Part("video", "b.mp4", 1.0)))
    ]
    for arguments, message in (
        (("rain", "a.jpg"), "not prompt and image; to mix them, give their weights"),
        ((), "not none$"),
        (("rain", "a.jpg", None, [1]), "1 weights for 2 texts, images and videos; give one for each"),
        (("rain", None, None, ["much"]), r"weights are \['much'\]; give a number above 0 for each"),
        (("rain", None, None, [0]), "the weight of a query's text is 0.0; a number above 0 is needed"),
        ((["rain", Query((DOG,))], None, None, [1, 1]), "a Query has its own weights"),
    ):
        with pytest.raises(UserError, match=message):
            queries_of(*arguments)


@pytest.mark.parametrize(
    ("query", "name", "prompt"),
    [
        (Query((Part("text", "rain"),)), "rain", "rain"),
        (Query((DOG, RAIN)), "a dog barking + rain", None),
        (Query((Part("image", "photos/dog.jpg"),)), "dog", None),
        (Query((Part("image", object()),)), "image", None),
        (Query((DOG,), (Part("video", "b.mp4"),), 0.5), "a dog barking to b", None),
    ],
)
def test_a_query_has_a_name_and_where_it_is_one_text_a_prompt(query: Query, name: str, prompt: str | None):
    assert (query.name, query.prompt) == (name, prompt)


def test_a_query_is_restored_from_its_json():
    for query in (
        Query((DOG, RAIN, Part("image", "a.jpg", 2.0))),
        Query((DOG,), (Part("video", "b.mp4"), RAIN), 0.25),
    ):
        assert Query.from_json(json.loads(json.dumps(query.to_json()))) == query


@pytest.mark.parametrize(
    "described",
    [
        None,
        [],
        {},
        {"parts": []},
        {"parts": [{"text": "rain"}]},
        {"parts": [{"text": "rain", "weight": -1}]},
        {"parts": [{"sound": "rain", "weight": 1}]},
        {"parts": [{"text": "rain", "image": "a.jpg", "weight": 1}]},
        {"parts": [{"text": 3, "weight": 1}]},
        {"parts": [{"text": "rain", "weight": 1}], "to": [{"text": "dog", "weight": 1}], "position": 2},
        {"parts": [{"text": "rain", "weight": 1}], "to": 3},
    ],
)
def test_what_does_not_describe_a_query_is_refused(described):
    with pytest.raises(UserError, match=r"^a\.json: is not the description of a query"):
        Query.from_json(described, "a.json")


@pytest.mark.parametrize(
    ("queries", "settings", "message"),
    [
        (
            parse_queries([], ["a.jpg"]),
            {"bridge": "shift"},
            "bridge 'shift' has no effect without a text; leave it out",
        ),
        (parse_queries([], ["a.jpg"]), {"templates": ["{}!"]}, "templates have no effect without a text; leave"),
        (
            parse_queries(["a"]),
            {"image_bridge": "retrieval"},
            "image bridge 'retrieval' has no effect without an image",
        ),
    ],
)
def test_settings_without_effect_on_the_queries_are_refused(queries, settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_settings(queries, GenerationSettings(**settings))
    check_settings([*queries, *parse_queries(["b"]), *parse_queries([], ["b.jpg"])], GenerationSettings(**settings))


def test_negative_queries_count_as_texts_and_images():
    images = parse_queries([], ["a.jpg"])
    check_settings(images, GenerationSettings(bridge="shift", negative_prompt="rain"))
    check_settings(parse_queries(["a"]), GenerationSettings(image_bridge="retrieval", negative_image="a.jpg"))


def test_templates_and_negative_queries_are_checked_as_settings():
    with pytest.raises(UserError, match=r"prompt template 'the sound' does not contain \{\} exactly once"):
        GenerationSettings(templates=["{}", "the sound"])
    with pytest.raises(UserError, match="give a negative prompt or a negative image, not both"):
        GenerationSettings(negative_prompt="rain", negative_image="a.jpg")
    assert GenerationSettings().to_json()["templates"] is None
    assert GenerationSettings(templates=["the sound of {}"]).to_json()["templates"] == ["the sound of {}"]
