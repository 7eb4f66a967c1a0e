"""The commands, lists and Python of sample/QUERIES.md, word for word, on a tiny model."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from media import numbered_pictures, tone, write_media
from PIL import Image
from scripts import REPO
from tiny_model import write_tiny_model

from diffaudio.cli.main import main
from diffaudio.errors import UserError
from diffaudio.generation.prompt_list import read_prompts
from diffaudio.queries.query import parse_queries

GUIDE = (REPO / "sample/QUERIES.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a photograph and a video."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "red").save("photo.jpg")
    write_media(Path("clip.mp4"), sound=tone(1, 44100), pictures=numbered_pictures(1))
    return tmp_path


def test_the_commands_of_the_guide_run(model: Path, folder: Path):
    for line in block("bash").splitlines():
        program, command, *arguments = shlex.split(line)
        quick = ["--steps", "1", "--model", str(model)]
        quick += [] if "clip.mp4" in arguments else ["--duration", "0.5"]
        assert (program, main([command, *arguments, *quick])) == ("diffaudio", 0), line
    made = {path.name for path in folder.glob("*.wav")} | {path.name for path in folder.glob("*.mp4")}
    expected = {"dog.wav", "photo.wav", "both.wav", "clip.mp4", "clip-with-sound.mp4"}
    assert made == expected | {"morph.wav", *(f"morph-{index}.wav" for index in range(2, 6))}


def test_the_table_of_mixtures_says_how_many_sounds_a_command_makes():
    rows = re.findall(r'^\| `(".*?)` \| (.*?) \|$', GUIDE, re.MULTILINE)
    assert len(rows) == 6
    for written, sounds in rows:
        texts, images, videos = list[str](), list[str](), list[str]()
        group = texts
        for argument in shlex.split(written):
            group = {"--image": images, "--video": videos}.get(argument, group)
            group += [] if argument.startswith("--") else [argument]
        if sounds.startswith("an error"):
            with pytest.raises(UserError):
                parse_queries(texts, images, videos)
        else:
            count = {"two": 2, "three": 3}.get(sounds, 1)
            assert len(parse_queries(texts, images, videos)) == count, written


def test_the_list_of_the_guide_is_read(folder: Path):
    for name in ("photos/cello.jpg", "photos/roof.jpg", "clips/harbour.mp4"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    Path("list.csv").write_text(block("csv"), encoding="utf-8")
    queries = [prompt.query.name for prompt in read_prompts(Path("list.csv"))]
    assert queries == ["a dog barking", "a dog barking + rain", "cello", "rain + roof", "harbour"]
    line = re.findall(r'`(\{"prompt".*?\})`', GUIDE)[0]
    Path("list.jsonl").write_text(line, encoding="utf-8")
    assert read_prompts(Path("list.jsonl"))[0].query.name == "a dog barking + rain"


def test_the_python_of_the_guide_runs(model: Path, folder: Path):
    from diffaudio.pipeline import DiffAudioPipeline

    original = DiffAudioPipeline.__call__

    def quick(pipe: Any, *arguments: Any, **options: Any) -> Any:
        sounds.append(original(pipe, *arguments, num_inference_steps=1, audio_length_in_s=0.5, **options).audios)
        return sounds[-1]

    sounds: list[Any] = []
    source = block("python").replace("bundled_model())", f"{str(model)!r})")
    names: dict[str, Any] = {"photo": "photo.jpg", "frames": numbered_pictures(1)}
    DiffAudioPipeline.__call__ = quick  # type: ignore[method-assign]
    try:
        exec(source, names)
    finally:
        DiffAudioPipeline.__call__ = original  # type: ignore[method-assign]
    assert [len(each) for each in sounds] == [1, 1, 1, 1, 2, 5]
