"""Prompts in time and layers as they are written."""

import pytest

from diffaudio.errors import UserError
from diffaudio.generation.prompt_list import read_prompts
from diffaudio.generation.timeline import Layer, TimedPrompt, check_timeline, join_timed, parse_layer, parse_timeline

TIMED = [TimedPrompt("rain", 0, 8), TimedPrompt("thunder", 5.5, 9)]


@pytest.mark.parametrize(
    "text", ["rain @0-8, thunder @5.5-9", "rain@0-8;thunder @ 5.5 - 9", "rain @0-8 , thunder @5.5-9.0;"]
)
def test_time_ranges_are_read_in_a_text(text):
    assert parse_timeline(text) == TIMED


@pytest.mark.parametrize("text", ["rain", "mail me @ noon", "rain at 0-8", "2-4 dogs", "rain, thunder"])
def test_a_text_without_ranges_is_an_ordinary_prompt(text):
    assert parse_timeline(text) is None


def test_prompts_with_ranges_become_one_and_others_stay():
    assert join_timed(["a dog", "rain"]) == ["a dog", "rain"]
    (joined,) = join_timed(["rain @0-8", "thunder @5.5-9"])
    assert parse_timeline(joined) == TIMED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rain @0-8, thunder", "'thunder' has no time range; write 'thunder @START-END'"),
        ("@0-8", "a prompt is empty"),
        ("rain @8-8", "'rain': the time range 8-8 is empty"),
        ("rain @9-8", "'rain': the time range 9-8 is empty"),
    ],
)
def test_ranges_that_say_nothing_are_errors(text, message):
    with pytest.raises(UserError, match=message):
        parse_timeline(text)


def test_a_prompt_without_a_range_among_others_is_an_error():
    with pytest.raises(UserError, match="'a dog' has no time range and another prompt has"):
        join_timed(["rain @0-8", "a dog"])


def test_a_range_beyond_the_sound_is_an_error():
    check_timeline(TIMED, 9)
    with pytest.raises(UserError, match="'thunder' ends at 9 s and the sound at 8.5 s; give a longer --duration"):
        check_timeline(TIMED, 8.5)


@pytest.mark.parametrize(
    ("text", "gain"), [("thunder", 0), ("thunder::-6dB", -6), ("thunder::+3.5 db", 3.5), ("thunder::-12", -12)]
)
def test_a_layer_has_a_gain(text, gain):
    assert parse_layer(text) == Layer("thunder", gain)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("thunder::loud", "the gain 'loud' is not a number from -60 to 60 dB"),
        ("thunder::-90", "the gain '-90' is not a number from -60 to 60 dB"),
        ("thunder::", "the gain '' is not a number"),
        ("::-6dB", "a layer is empty"),
    ],
)
def test_layers_that_cannot_be_read_are_errors(text, message):
    with pytest.raises(UserError, match=message):
        parse_layer(text)


def test_a_line_of_a_prompt_file_holds_prompts_in_time(tmp_path):
    (tmp_path / "prompts.txt").write_text("a dog\nrain @0-8, thunder @5.5-9|storm\n")
    (tmp_path / "prompts.csv").write_text('prompt,name\n"rain @0-8, thunder @5.5-9",storm\n')
    for file, index in (("prompts.txt", 1), ("prompts.csv", 0)):
        prompt = read_prompts(tmp_path / file)[index]
        assert prompt.name == "storm"
        assert parse_timeline(prompt.query.prompt) == TIMED
