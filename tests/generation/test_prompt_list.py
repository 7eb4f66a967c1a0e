"""Prompt files: text, CSV and JSONL, and the sounds that are to be made of them."""

from pathlib import Path

import pytest

from diffaudio.errors import UserError
from diffaudio.generation.prompt_list import Prompt, items_of, read_prompts
from diffaudio.queries.query import Part, Query


def prompt(text: str, name: str, label: str | None = None) -> Prompt:
    return Prompt(Query((Part("text", text),)), name, label)


READ = [prompt("rain, on a roof", "00000-rain-on-a-roof", "rain"), prompt("a bell", "bell")]
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
        prompt("rain", "00000-rain"),
        prompt("a bell", "bell.flac"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "", "p.csv, line 1: has no 'prompt'; the columns are prompt, image, video, label, name, and one of"),
        ("p.csv", "prompt,labels\nrain,rain\n", "p.csv, line 1: has 'labels'; the columns are prompt, image, video"),
        ("p.csv", "prompt,name\nrain,a\ndog,b,c\n", "p.csv, line 3: has 3 cells, the header 2"),
        ("p.csv", "prompt,name\n,a\n", "p.csv, line 2: a prompt is empty"),
        ("p.jsonl", '{"prompt": "rain"}\nrain\n', "p.jsonl, line 2: is not JSON"),
        ("p.jsonl", "[]\n", "p.jsonl, line 1: is not an object; write one a line, such as {"),
        ("p.jsonl", '{"prompt": "rain", "seed": "3"}\n', "p.jsonl, line 1: has 'seed'; the columns are"),
        ("p.jsonl", '{"label": "rain"}\n', "p.jsonl, line 1: has no 'prompt'"),
        ("p.jsonl", '{"prompt": ["rain", 3]}\n', "p.jsonl, line 1: 'prompt' has a value that is not a text"),
        ("p.jsonl", '{"prompt": "rain", "name": ["a"]}\n', "p.jsonl, line 1: 'name' has a value that is not a text"),
        ("p.txt", "rain::much\n", "p.txt, line 1: 'rain::much': the weight 'much' is not a number"),
        ("p.csv", "prompt,image\nrain,gone.jpg\n", "gone.jpg: there is no such image"),
        ("p.csv", "prompt,image\nrain::1,gone.jpg\n", "line 2: 'rain::1' has a weight and 'gone.jpg' has none"),
        ("p.csv", "image,video\n,\n", "p.csv, line 2: a prompt is empty; say in a few words what to hear, or name"),
        ("p.jsonl", '{"prompt": "a", "name": "b"}\n{"prompt": "a", "name": "b"}\n', "lines 1 and 2 are both named 'b'"),
    ],
)
def test_a_bad_list_is_refused_with_its_line(read, name, text, message):
    with pytest.raises(ValueError) as refused:
        read(name, text)
    assert message in str(refused.value)


def test_a_row_mixes_its_texts_images_and_videos_with_paths_from_the_folder_of_the_list(read, tmp_path):
    for name in ("a.jpg", "b 1.jpg", "c.mp4"):
        (tmp_path / name).touch()
    rain, dog = Part("text", "rain", 0.3), Part("text", "a dog", 0.7)
    image, other = Part("image", str(tmp_path / "a.jpg")), Part("image", str(tmp_path / "b 1.jpg"), 0.5)
    video = Part("video", str(tmp_path / "c.mp4"))
    assert read("p.csv", "prompt,image,video\na dog::0.7 rain::0.3,,\n,a.jpg,\n,,c.mp4\nrain,a.jpg,c.mp4\n") == [
        Prompt(Query((dog, rain)), "00000-a-dog-rain"),
        Prompt(Query((image,)), "00001-a"),
        Prompt(Query((video,)), "00002-c"),
        Prompt(Query((Part("text", "rain"), image, video)), "00003-rain-a-c"),
    ]
    lines = ['{"prompt": ["a dog::0.7", "rain::0.3"], "image": "b 1.jpg::0.5"}', f'{{"image": ["{tmp_path}/a.jpg"]}}']
    assert [each.query for each in read("p.jsonl", "\n".join(lines))] == [Query((dog, rain, other)), Query((image,))]
    assert read("p.txt", "a dog::0.7 rain::0.3|both\n") == [Prompt(Query((dog, rain)), "both")]


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
    prompts = [prompt("rain", "a"), prompt("a dog", name)]
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
