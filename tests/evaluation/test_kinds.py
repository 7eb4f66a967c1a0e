"""`diffaudio evaluate kinds`: recordings, round trip and generated sounds of every kind, in a table and on a page."""

import json
from pathlib import Path

import pytest
import torch
from browser import CHROME, Browser
from fake_backbone import BandBackbone, tones
from tiny_model import write_tiny_model

from diffaudio.cli.main import main
from diffaudio.evaluation.backbones.base import Kinds
from diffaudio.evaluation.embed import Embedder, Sound
from diffaudio.evaluation.kinds import choose_recordings
from diffaudio.evaluation.recognition import Recognised, by_kind, is_recognised, markdown_table
from diffaudio.evaluation.sound_files import SoundFile, Texts
from diffaudio.media.audio import read_audio, write_audio
from diffaudio.models.tagger import Tagger

LABELS = [f"band {index}" for index in range(8)]


def embedded_tones(labels, kinds=None):
    backbone = BandBackbone()
    backbone.kinds = kinds
    sounds = [
        Sound(sound.waveform, sound.sample_rate, sound.name, label=label)
        for sound, label in zip(tones(len(labels), 0), labels, strict=True)
    ]
    return Embedder([backbone]).embed(sounds)


def test_a_sound_is_recognised_when_its_kind_comes_first():
    right = [sound.label for sound in tones(8, 0)]
    wrong = [*right[1:], right[0]]
    assert is_recognised(embedded_tones(right), "bands") == [True] * 8
    assert is_recognised(embedded_tones(wrong), "bands") == [False] * 8
    assert is_recognised(embedded_tones(["a sound of no kind"] * 8), "bands") == [None] * 8


def test_by_a_table_of_kinds_one_of_its_classes_is_among_the_first_five():
    kinds = Kinds({label: [index] for index, label in enumerate(LABELS)}, [])
    labels = [sound.label for sound in tones(8, 0)]
    assert is_recognised(embedded_tones(labels, kinds), "bands") == [True] * 8
    ignored = Kinds({"anything": [0]}, list(range(1, 8)))
    assert is_recognised(embedded_tones(["anything"] * 8, ignored), "bands") == [True] * 8
    assert is_recognised(embedded_tones(["anything"] * 8, Kinds({"anything": []}, [])), "bands") == [None] * 8


def test_the_table_counts_each_kind_and_all_together():
    labels = [sound.label for sound in tones(8, 0)]
    counts = by_kind(embedded_tones([labels[0], labels[0], labels[2], *labels[3:]]), "bands")
    assert counts[labels[0]] == Recognised(1, 2) and counts[labels[2]] == Recognised(1, 1)
    table = markdown_table(
        {"a": {"x": Recognised(1, 2), "y": Recognised(3, 3)}, "b": {"x": Recognised(0, 1)}}, ["x", "y"]
    )
    assert table.splitlines() == [
        "| kind | a | b |",
        "|---|---|---|",
        "| x | 1 of 2 | 0 of 1 |",
        "| y | 3 of 3 | – |",
        "| **all** | 0.80 (0.38 to 0.96) of 5 | 0.00 (0.00 to 0.79) of 1 |",
    ]


def test_recordings_are_chosen_at_random_and_so_many_of_each_kind():
    files = [SoundFile(Path(f"{i}.wav"), str(i), Texts(label=["a", "b", None][i % 3])) for i in range(30)]
    chosen = choose_recordings(files, 4, seed=0)
    assert [file.texts.label for file in chosen] == ["a"] * 4 + ["b"] * 4
    assert len({file.name for file in chosen}) == 8
    assert chosen == choose_recordings(files, 4, seed=0) != choose_recordings(files, 4, seed=1)
    assert len(choose_recordings(files, 40, seed=0)) == 20
    with pytest.raises(ValueError, match="no recording has a label"):
        choose_recordings(files[2::3], 4, seed=0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model, a tagger of tones, labelled tones, and the result of the command."""
    folder = tmp_path_factory.mktemp("kinds")
    write_tiny_model(folder / "model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Tagger(LABELS, width=2, embedding_dim=8, name="tagger_tiny").eval().save_pretrained(folder / "tagger")
    (folder / "real").mkdir()
    rows = ["file,label"]
    for sound in tones(12, 0):
        write_audio(folder / "real" / f"{sound.name}.wav", sound.waveform, sound.sample_rate)
        rows.append(f"{sound.name}.wav,{sound.label}")
    (folder / "labels.csv").write_text("\n".join(rows))
    arguments = ["--labels", folder / "labels.csv", "--model", folder / "model", "--backbone", folder / "tagger"]
    arguments += ["-o", folder / "out", "--per-kind", "2", "--steps", "2", "--duration", "0.5", "--device", "cpu"]
    arguments += ["--takes", "2"]
    assert main(["evaluate", "kinds", str(folder / "real"), *map(str, arguments)]) == 0
    return folder, arguments


def test_the_command_writes_sounds_table_and_page(place):
    folder, _ = place
    out = folder / "out"
    result = json.loads((out / "kinds.json").read_text())
    kinds = list(result["kinds"])
    assert kinds and set(kinds) <= set(LABELS)
    for kind, counts in result["kinds"].items():
        name = kind.replace(" ", "-")
        for column in ("recordings", "round_trip"):
            assert len(list((out / column).glob(f"{name}-*.wav"))) == counts[column]["n"] <= 2
        assert counts["generated"]["n"] == 2 == len(list((out / "generated").glob(f"{name}-*.wav")))
        assert counts["recordings"]["n"] == counts["round_trip"]["n"]
    table = (out / "kinds.md").read_text().splitlines()
    assert len(table) == len(kinds) + 3
    assert table[0] == "| kind | recordings | after the round trip | generated |"
    original, rate = read_audio(next((out / "recordings").glob("*.wav")))
    again, again_rate = read_audio(out / "round_trip" / next((out / "recordings").glob("*.wav")).name)
    assert original.shape == again.shape and rate == again_rate and not torch.equal(original, again)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"-o": "out"}, "out: holds something already; name a folder that is new or empty"),
        ({"--labels": "nowhere.csv"}, "nowhere.csv: there is no such file or folder"),
        ({"--kinds": "thunder"}, "--kinds: no recording is labelled 'thunder'"),
        ({"--model": "nowhere"}, "nowhere: there is no such model folder"),
    ],
)
def test_what_cannot_be_compared_is_one_line(place, tmp_path, monkeypatch, capsys, changed, message):
    folder, arguments = place
    monkeypatch.chdir(folder)
    options = dict(zip(map(str, arguments[::2]), map(str, arguments[1::2]), strict=True)) | {
        "-o": str(tmp_path / "new")
    }
    given = [part for pair in (options | changed).items() for part in pair]
    assert main(["evaluate", "kinds", str(folder / "real"), *given]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROME is None:
        pytest.skip("no Chromium or Chrome here")
    with Browser.open(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def test_the_page_has_a_line_for_each_kind_and_plays_every_column(browser, place):
    folder, _ = place
    result = json.loads((folder / "out/kinds.json").read_text())
    browser.events.clear()
    browser.visit(folder / "out/index.html")
    lines = browser.run(
        "Array.from(document.querySelectorAll('#kinds tbody tr'), row => Array.from(row.cells, cell => "
        "[cell.querySelectorAll('.play').length, (cell.querySelector('small') ?? cell).textContent]))"
    )
    assert [line[0][1] for line in lines] == list(result["kinds"])
    for (_, *cells), counts in zip(lines, result["kinds"].values(), strict=True):
        for (buttons, text), count in zip(cells, counts.values(), strict=True):
            assert buttons == count["n"] and text == f"{count['count']} of {count['n']}"
    for column in (2, 3, 4):
        button = f"document.querySelector('#kinds tbody tr td:nth-child({column}) .play')"
        browser.run(f"{button}.click()")
        browser.until("document.getElementById('audio').currentTime > 0.05")
        assert browser.run(f"{button}.ariaPressed") == "true"
    assert browser.run("document.querySelectorAll('.play[aria-pressed=\"true\"]').length") == 1
    browser.run("document.getElementById('next').click()")
    assert browser.errors == []
    with browser.window(390, 800):
        assert browser.run("document.documentElement.scrollWidth") <= 390
