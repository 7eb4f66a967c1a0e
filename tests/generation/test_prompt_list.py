"""Prompt files: text, CSV and JSONL, and the sounds that are to be made of them."""

from pathlib import Path

import pytest

from diffaudio.errors import UserError
from diffaudio.generation.prompt_list import Prompt, items_of, read_prompts

READ = [Prompt("rain, on a roof", "00000-rain-on-a-roof", "rain"), Prompt("a bell", "bell")]
FILES = {
    "prompts.csv": 'prompt,label,name\n"rain, on a roof",rain,\na bell,,bell\n',
    "prompts.jsonl": '{"prompt": "rain, on a roof", "label": "rain"}\n\n{"name": "bell", "prompt": "a bell"}\n',
}


@pytest.fixture
def read(tmp_path):
    def run(name: str, text: str) -> list[Prompt]:
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return read_prompts(file)

    return run


@pytest.mark.parametrize("name", FILES)
def test_csv_and_jsonl_hold_prompts_labels_and_names(read, name):
    assert read(name, FILES[name]) == READ


def test_a_line_of_text_is_a_prompt_with_or_without_a_name(read):
    assert read("p.txt", "\ufeffrain\n\n a bell | bell.flac \n") == [
        Prompt("rain", "00000-rain"),
        Prompt("a bell", "bell.flac"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "", "p.csv, line 1: has no 'prompt'; the columns are prompt, label, name, and prompt is needed"),
        ("p.csv", "prompt,labels\nrain,rain\n", "p.csv, line 1: has 'labels'; the columns are prompt, label, name"),
        ("p.csv", "prompt,name\nrain,a\ndog,b,c\n", "p.csv, line 3: has 3 cells, the header 2"),
        ("p.csv", "prompt,name\n,a\n", "p.csv, line 2: a prompt is empty"),
        ("p.jsonl", '{"prompt": "rain"}\nrain\n', "p.jsonl, line 2: is not JSON"),
        ("p.jsonl", "[]\n", "p.jsonl, line 1: is not an object; write one a line, such as {"),
        ("p.jsonl", '{"prompt": "rain", "seed": "3"}\n', "p.jsonl, line 1: has 'seed'; the columns are"),
        ("p.jsonl", '{"label": "rain"}\n', "p.jsonl, line 1: has no 'prompt'"),
        ("p.jsonl", '{"prompt": "a", "name": "b"}\n{"prompt": "a", "name": "b"}\n', "lines 1 and 2 are both named 'b'"),
    ],
)
def test_a_bad_list_is_refused_with_its_line(read, name, text, message):
    with pytest.raises(ValueError) as refused:
        read(name, text)
    assert message in str(refused.value)


def test_takes_have_seeds_of_their_own_and_leave_the_first_as_it_was(tmp_path):
    one = items_of(READ, tmp_path, seed=0)
    three = items_of(READ, tmp_path, seed=0, takes=3, suffix=".flac")
    assert [item.path.name for item in one] == ["00000-rain-on-a-roof.wav", "bell.wav"]
    assert [item.path.name for item in three][1::2] == ["bell.flac", "bell-take2.flac", "bell-take3.flac"]
    assert [item.seed for item in three[:2]] == [item.seed for item in one]
    assert len({item.seed for item in three}) == 6
    assert {item.label for item in three} == {"rain", None}


@pytest.mark.parametrize("name", ["a-take2", "A-Take2", "a-take2.flac"])
def test_names_that_meet_because_of_a_take_are_refused(name):
    prompts = [Prompt("rain", "a"), Prompt("a dog", name)]
    items_of(prompts, Path(), seed=0)
    with pytest.raises(UserError, match="are both named 'a-take2'; give one of them another name"):
        items_of(prompts, Path(), seed=0, takes=2)


def test_names_that_differ_in_case_alone_are_refused(read):
    with pytest.raises(UserError, match="lines 1 and 2 are both named 'Rain'"):
        read("p.txt", "rain|rain\nmore rain|Rain\n")


def test_the_seed_depends_on_the_place_and_not_on_the_folder():
    here, there = items_of(READ, Path("here"), seed=3), items_of(READ, Path("there"), seed=3)
    assert [item.seed for item in here] == [item.seed for item in there]
    assert [item.seed for item in items_of(READ, Path("here"), seed=4)] != [item.seed for item in here]
