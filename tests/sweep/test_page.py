"""A sweep's table, its Pareto line, its pictures, and the page in a real browser."""

import csv
import json
import math
import re
from itertools import product
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from browser import CHROME, Browser

from diffaudio.evaluation.report import direction
from diffaudio.media.audio import write_audio
from diffaudio.media.spectrogram_plot import spectrogram_image
from diffaudio.sweep.page import PageSound, sound_path, write_page
from diffaudio.sweep.plots import picture_names, write_pictures
from diffaudio.sweep.table import pareto_line, timing_columns, with_mean_of_shuffled, write_tables

AXES = {"sampler": ["ddim", "heun"], "steps": [5, 10], "guidance_scale": [1.0, 3.0]}
PROMPTS = ["a dog", "rain </script><b> #5 & 100%"]


def table() -> list[dict]:
    rows = []
    for place, (sampler, steps, scale) in enumerate(product(*AXES.values())):
        name, quality = f"{sampler}-steps{steps}-scale{scale:g}", (0.5, 0.9, 0.1, 0.8, 0.3, 0.6, 0.2, 0.7)[place]
        row = {"kind": "evaluated", "combination": name, "sampler": sampler, "steps": steps, "guidance_scale": scale}
        row |= {"sounds": 2, "passes": steps, "seconds_per_sound": 0.1 * (place + 1), "real_time_factor": 0.1}
        row |= {"accuracy_bands": quality, "accuracy_bands_low": quality / 2, "accuracy_bands_high": quality}
        rows.append(row | {"accuracy_bands_n": 2, "fd_bands": None if place == 3 else 10.0 + place, "fd_bands_n": 2})
    rows.append({"kind": "real", "combination": "real recordings", "accuracy_bands": 0.95, "accuracy_bands_n": 9})
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A sweep's folder around two seconds of tone for each combination and prompt."""
    folder, rows, sounds = tmp_path_factory.mktemp("sweep"), table(), []
    (folder / "pictures").mkdir()
    for place, row in enumerate(rows[:-1]):
        (folder / "sounds" / row["combination"]).mkdir(parents=True)
        for prompt in range(2):
            file = folder / "sounds" / row["combination"] / f"{prompt} 100% #.flac"
            waveform = 0.5 * torch.sin(torch.arange(16000) * (prompt + 1) * 0.2)[None]
            write_audio(file, waveform, 8000)
            spectrogram_image(waveform, 8000).save(file.with_suffix(".png"))
            sounds.append(PageSound(place, prompt, 1, sound_path(file, folder), ".flac", recognised="dog (0.93)"))
    metrics = ("accuracy_bands", "fd_bands")
    for metric in metrics:
        write_pictures(folder / "pictures", rows, AXES, metric)
    write_page(
        folder,
        facts={"model": "some/model", "seed": 0},
        axes=AXES,
        rows=rows,
        pictures={metric: picture_names(AXES, metric) for metric in metrics},
        prompts=PROMPTS,
        sounds=sounds,
        left_out={"ddim-steps5-scale9": "<reason>"},
    )
    return folder


def test_the_pareto_line_holds_what_nothing_beats_at_the_same_or_lower_cost():
    costs, values = [1, 2, 2, 3, 4], [0.2, 0.1, 0.5, 0.5, 0.9]
    assert pareto_line(costs, values, higher_is_better=True) == [0, 2, 4]
    assert pareto_line(costs, values, higher_is_better=False) == [0, 1]
    assert pareto_line([1, 1], [3, 4], higher_is_better=True) == [1]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("accuracy_tagger_mini", 1), ("fd_inf_x", -1), ("kl_label_x", -1), ("silent", -1), ("loudness_lufs", 0)],
)
def test_each_metric_says_which_way_is_better(metric, expected):
    assert direction(metric) == expected


def test_a_sound_costs_its_share_of_the_batch_and_one_slow_batch_does_not_count():
    times = [(4.0, 4)] * 4 + [(30.0, 3)] * 3
    sidecars = [{"timing": {"batch_seconds": s, "batch_size": n}, "duration_s": 5.0} for s, n in times]
    assert timing_columns(sidecars) == {"seconds_per_sound": 1.0, "real_time_factor": 0.2}


def test_csv_and_parquet_hold_the_same_table(tmp_path):
    rows = table()
    write_tables(tmp_path, rows, {"model": "some/model"})
    read = pq.read_table(tmp_path / "results.parquet")
    assert [{k: v for k, v in row.items() if v is not None} for row in read.to_pylist()] == [
        {k: v for k, v in row.items() if v is not None} for row in rows
    ]
    assert json.loads(read.schema.metadata[b"diffaudio"]) == {"model": "some/model"}
    with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as file:
        told = list(csv.DictReader(file))
    assert [row["combination"] for row in told] == [row["combination"] for row in rows]
    assert float(told[1]["accuracy_bands"]) == 0.9
    assert told[3]["fd_bands"] == told[-1]["steps"] == ""


def test_pictures_show_steps_guidance_and_time_and_are_the_same_each_time(folder, tmp_path):
    write_pictures(tmp_path, table(), AXES, "accuracy_bands")
    names = picture_names(AXES, "accuracy_bands")
    assert list(names) == ["steps", "guidance", "time"]
    for name in names.values():
        assert (tmp_path / name).read_bytes() == (folder / "pictures" / name).read_bytes()
    drawn = (tmp_path / names["time"]).read_text()
    assert "heun" in drawn and "Pareto line" in drawn and "real recordings" in drawn
    assert "ddim, 5 steps, scale 3" in drawn  # 0.9 after 0.2 s: nothing beats it
    assert "heun, 10 steps" not in drawn


def test_what_takes_one_value_is_not_drawn_against(tmp_path):
    axes, rows = AXES | {"steps": [5]}, [row for row in table() if row.get("steps") in (5, None)]
    write_pictures(tmp_path, rows, axes, "accuracy_bands")
    drawn = {f"accuracy_bands-{what}.svg" for what in ("guidance", "time")}
    assert {path.name for path in tmp_path.iterdir()} == set(picture_names(axes, "accuracy_bands").values()) == drawn


def test_shuffled_rows_become_their_mean():
    shuffled = [
        {"kind": "shuffled", "steps": n, "accuracy_bands": a, "accuracy_bands_n": 2} for n, a in ((5, 0), (9, 1))
    ]
    kept, mean = with_mean_of_shuffled([*shuffled, table()[0]])
    assert kept == table()[0]
    assert mean == {"kind": "shuffled", "combination": "shuffled labels, mean", "accuracy_bands": 0.5}
    assert with_mean_of_shuffled(table()) == table()


def test_a_spectrogram_shows_a_tone_at_its_height():
    tone = torch.sin(2 * math.pi * 2000 * torch.arange(40000) / 8000)[None]
    image = spectrogram_image(tone, 8000, width=100)
    assert image.size == (100, 96)
    brightest = [max(range(96), key=lambda y: image.getpixel((x, y))) for x in (10, 50, 90)]
    expected = 95 - 96 * math.log(1 + 2000 / 700) / math.log(1 + 4000 / 700)
    assert all(abs(y - expected) < 2 for y in brightest)


def test_all_that_the_page_names_lies_beside_it(folder):
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://", page)
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert [prompt["text"] for prompt in data["prompts"]] == PROMPTS
    assert sorted(sound_path(file, folder) for file in folder.rglob("*.flac")) == sorted(
        s["path"] for s in data["sounds"]
    )
    assert all((folder / "pictures" / file).is_file() for m in data["metrics"] for file in m["pictures"].values())


@pytest.fixture(scope="module")
def browser(folder, tmp_path_factory):
    if CHROME is None:
        pytest.skip("no Chromium or Chrome here")
    with Browser.open(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser, folder):
    browser.events.clear()
    browser.visit(folder / "index.html")
    yield browser
    assert browser.errors == []
    assert {address.split(":")[0] for address in browser.requests} <= {"file", "data"}


def column(page, name: str) -> list[str]:
    cells = "Array.from(document.querySelectorAll('#results tbody tr'), row => row.cells[place].firstChild?.data ?? '')"
    find = (
        f"Array.from(document.querySelectorAll('#results thead tr > *'), cell => cell.dataset.column).indexOf('{name}')"
    )
    return page.run(f"(place => {cells})({find})")


def sounds(page) -> list[str]:
    return page.run("Array.from(document.querySelectorAll('#sounds .play'), play => play.ariaLabel)")


def click(page, selector: str) -> None:
    page.run(f"document.querySelector({json.dumps(selector)}).click()")


def test_the_table_sorts_both_ways_with_what_is_missing_last(page):
    assert len(column(page, "sampler")) == 8
    button = "#results th[data-column='fd_bands'] button"
    click(page, button)
    rising = column(page, "fd_bands")
    assert rising == ["10.0", "11.0", "12.0", "14.0", "15.0", "16.0", "17.0", ""]
    assert page.run("document.activeElement.textContent") == "fd bands"  # the focus stays for the keyboard
    page.press("Enter", 13)
    assert column(page, "fd_bands") == [*rising[-2::-1], ""]
    assert page.run("document.querySelector('th[data-column=fd_bands]').ariaSort") == "descending"
    click(page, "#results th[data-column='accuracy_bands'] button")
    assert column(page, "accuracy_bands")[0] == "0.90"  # the better end first


def test_filters_hold_for_table_and_sounds(page):
    assert len(sounds(page)) == 16
    click(page, "input[name=sampler][value=heun]")
    click(page, "input[name=steps][value='5']")
    assert column(page, "sampler") == ["ddim", "ddim"]
    assert sounds(page) == [f"Play {p}, ddim, 10 steps, scale {scale}" for p in PROMPTS for scale in (1, 3)]
    page.run("(box => {box.value = 'RAIN'; box.dispatchEvent(new Event('input'))})(document.getElementById('wanted'))")
    assert len(sounds(page)) == 2
    click(page, "#results tbody button")
    assert len(sounds(page)) == 1
    click(page, "#reset")
    assert len(sounds(page)) == 16


def test_a_sound_plays_and_the_next_one_follows(page):
    click(page, "#sounds .play")
    page.until("document.getElementById('audio').currentTime > 0.2")
    assert page.run("document.querySelector('#sounds .play').ariaPressed") == "true"
    assert page.run("document.getElementById('audio').duration") == 2
    assert page.run("document.getElementById('now').textContent") == "a dog – ddim, 5 steps, scale 1"
    assert page.run("document.querySelector('#sounds img').naturalHeight") == 96
    click(page, "#next")
    page.until("!document.getElementById('audio').paused && document.getElementById('audio').currentTime > 0.1")
    assert page.run("document.querySelectorAll('#sounds .play')[1].ariaPressed") == "true"
    assert page.run("document.querySelectorAll('#sounds .play[aria-pressed=true]').length") == 1
    click(page, "#sounds li:nth-child(2) .play")
    page.until("document.getElementById('audio').paused")


def test_another_metric_shows_its_pictures(page):
    page.run(
        "(box => {box.value = 'fd_bands'; box.dispatchEvent(new Event('change'))})(document.getElementById('metric'))"
    )
    page.until("Array.from(document.querySelectorAll('#pictures img')).every(img => img.complete)")
    shown = page.run("Array.from(document.querySelectorAll('#pictures img'), img => [img.alt, img.naturalWidth > 100])")
    assert [alt.split(";")[0] for alt, _ in shown] == [
        f"fd_bands against {what}" for what in ("steps", "guidance", "time")
    ]
    assert all(drawn for _, drawn in shown)


def test_texts_of_users_stay_texts(page):
    assert page.run("document.querySelectorAll('#sounds b b, #left-out b').length") == 0
    assert page.run("document.querySelector('#left-out li').textContent") == "ddim-steps5-scale9: <reason>"


@pytest.mark.parametrize("width", [360, 390, 768])
def test_the_page_is_no_wider_than_a_phone_and_its_table_says_that_it_scrolls(page, width):
    with page.window(width, 800):
        assert page.run("document.documentElement.scrollWidth") <= width
        page.until("!document.querySelector('.scroll-hint').hidden")
    with page.window(4000, 800):
        page.until("document.querySelector('.scroll-hint').hidden")


def test_the_buttons_of_the_table_are_in_sight_on_a_laptop(page):
    with page.window(1280, 800):
        right = page.run(
            "Math.max(...Array.from(document.querySelectorAll('#results tbody button'), "
            "button => button.getBoundingClientRect().right))"
        )
        assert right < 1280


def test_in_dark_mode_the_page_is_dark(page):
    colour = "getComputedStyle(document.body).backgroundColor"
    assert page.run(colour) == "rgb(255, 255, 255)"
    with page.window(800, 800, dark=True):
        assert page.run(colour) == "rgb(20, 24, 30)"


def test_n_stands_beside_every_measured_number_with_a_word_where_it_is_small(page):
    texts = page.run("Array.from(document.querySelectorAll('#results tbody td.few'), cell => cell.textContent)")
    assert texts and all(text.endswith(", few") for text in texts)
    assert "with few (fewer than 30)" in page.run("document.getElementById('results-note').textContent")
