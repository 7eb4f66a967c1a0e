"""The page of `diffaudio evaluate` in a real browser."""

import pytest
from browser import CHROME, Browser
from fake_backbone import BandBackbone, tones

from diffaudio.evaluation.embed import Embedder
from diffaudio.evaluation.page import write_evaluation_page
from diffaudio.evaluation.reference import split_reference
from diffaudio.evaluation.rows import evaluated_row, make_report, real_row, shuffled_row
from diffaudio.media.audio import write_audio


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    embedder, sounds = Embedder([BandBackbone()]), tones(24, 1, labelled="prompt")
    files = [folder / f"made/{sound.name}.wav" for sound in sounds]
    files[0].parent.mkdir()
    for file, sound in zip(files, sounds, strict=True):
        write_audio(file, sound.waveform, sound.sample_rate)
    embedded = embedder.embed(sounds)
    reference = split_reference(embedder.embed(tones(64, 0)), embedded.wanted(), seed=0)
    draws = {"seed": 0, "resamples": 20}
    rows = [
        evaluated_row(embedded, reference, name="<made>", **draws),
        real_row(reference, name="real", **draws),
        shuffled_row(embedded, reference, name="shuffled", **draws),
    ]
    report = make_report(embedder, rows, **draws, reference="real")
    (folder / "report").mkdir()
    write_evaluation_page(folder / "report/report.html", report, embedded, files)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROME is None:
        pytest.skip("no Chromium or Chrome here")
    with Browser.open(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser, folder):
    browser.events.clear()
    browser.visit(folder / "report/report.html")
    yield browser
    assert browser.errors == []


def test_every_metric_has_its_interval_and_its_n(page):
    lines = page.run(
        "Array.from(document.querySelectorAll('#metrics tbody tr'), "
        "row => Array.from(row.cells, cell => cell.textContent))"
    )
    by_name = {line[0].replace("higher is better", "").replace("lower is better", ""): line[1:] for line in lines}
    assert by_name["accuracy_bands"][0].endswith("n 24, few") and by_name["accuracy_bands"][1].endswith("n 64")
    assert " to " in by_name["fd_bands"][0] and by_name["fd_bands"][2] == "–"
    assert page.run("document.title") == "Evaluation of <made>"


def test_every_sound_is_listed_with_what_it_was_recognised_as_and_plays(page):
    assert page.run("document.getElementById('count').textContent") == "24 sounds"
    assert page.run("document.querySelectorAll('#sounds-table tbody td.wrong').length") == 0
    page.run("document.querySelector('#sounds-table .play').click()")
    page.until("document.getElementById('audio').currentTime > 0.1")
    assert page.run("document.querySelector('#sounds-table .play').ariaPressed") == "true"
    page.run(
        "(box => {box.value = 'band 3'; box.dispatchEvent(new Event('input'))})(document.getElementById('wanted'))"
    )
    assert page.run("document.getElementById('count').textContent") == "3 sounds"


def test_it_fits_a_phone(page):
    with page.window(390, 800):
        assert page.run("document.documentElement.scrollWidth") <= 390
