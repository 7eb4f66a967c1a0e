"""`diffaudio inspect`: numbers of known sounds, samples, and the page in a real browser."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from browser import CHROME, Browser
from corpora import RATE, clip_row, dropped_row, latent_row, sine, write_clips_corpus, write_latents_corpus
from PIL import Image

from diffaudio.cli.main import main
from diffaudio.corpus import store
from diffaudio.corpus.inspect import spectrum
from diffaudio.corpus.inspect.sample_rows import draw_rows, embedding_statistics
from diffaudio.corpus.inspect.summary import (
    Inspection,
    format_bytes,
    format_duration,
    format_number,
    inspect,
    quantile_table,
)
from diffaudio.corpus.inspect.totals import EXAMPLES, Histogram, count, counted_quantiles
from diffaudio.corpus.snapshot import open_corpus

NAUGHTY = "rain </script><b> #5 & 100%.mp4"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Two tones of a source, a soft one, one that is marked; 40 files dropped."""
    parts = [
        [clip_row("a", 0, sine(440)), clip_row("a", 1, sine(3000, duration_s=2.0), caption="a whistle")],
        [clip_row(NAUGHTY, 0, sine(100, 0.01)), clip_row("c", 0, sine(440, 0.0), reason="silent")],
    ]
    dropped = [dropped_row(f"{index}.mp4", "no_sound", "the file has no sound track") for index in range(38)]
    dropped += [dropped_row("e"), dropped_row("<d>", "black", "all 4 pictures are black") | {"duration_s": None}]
    return write_clips_corpus(tmp_path_factory.mktemp("corpora") / "clips", parts, dropped)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> Path:
    """Channel 2 is still, in two sources and a copy."""
    rows = [latent_row("a"), latent_row("a", copy=1, seed=1), latent_row("b", seed=2)]
    for row in rows:
        row["latents"][20:30] = 0
    return write_latents_corpus(tmp_path_factory.mktemp("corpora") / "latents", [rows])


@pytest.fixture(scope="module")
def inspection(corpus) -> Inspection:
    return inspect(open_corpus(corpus), num_clips=10)


def test_all_power_of_a_sine_is_in_its_band():
    frequencies, power = spectrum.power_spectrum(sine(1000, duration_s=2.0)[None], RATE)
    assert power.sum() == pytest.approx(1)
    levels = dict(zip(spectrum.OCTAVES_HZ, spectrum.octave_levels_db(frequencies, power), strict=True))
    assert levels[1000.0] == pytest.approx(0, abs=0.01)
    assert max(levels[250.0], levels[4000.0]) < -60
    assert math.isnan(levels[8000.0])
    assert spectrum.bandwidth_hz(frequencies, power) == pytest.approx(1000, abs=3)


def test_white_noise_gains_three_decibels_an_octave_and_fills_the_band():
    noise = np.random.default_rng(0).standard_normal((2, 20 * RATE))
    frequencies, power = spectrum.power_spectrum(noise, RATE)
    levels = spectrum.octave_levels_db(frequencies, power, (500.0, 1000.0, 2000.0))
    assert np.diff(levels) == pytest.approx([3, 3], abs=0.2)
    assert spectrum.bandwidth_hz(frequencies, power) == pytest.approx(0.99 * RATE / 2, rel=0.01)


def test_digital_silence_has_no_bandwidth_and_no_level():
    frequencies, power = spectrum.power_spectrum(np.zeros((1, 100)), RATE)
    assert spectrum.bandwidth_hz(frequencies, power) == 0
    assert set(spectrum.octave_levels_db(frequencies, power, (63.0, 1000.0))) == {-100.0}


def test_third_octaves_lie_a_third_of_an_octave_apart_up_to_the_highest_frequency():
    centres = spectrum.third_octaves_hz(4000)
    assert 1000.0 in centres and centres[-1] == 4000
    assert np.diff(np.log2(centres)) == pytest.approx([1 / 3] * (len(centres) - 1))


def test_a_histogram_knows_quantiles_to_a_per_cent_and_never_grows():
    values = np.random.default_rng(0).lognormal(size=20000)
    histogram = Histogram()
    for some in np.split(values, 4):
        histogram.add(some)
    assert histogram.quantiles() == pytest.approx(np.quantile(values, (0, 0.1, 0.5, 0.9, 1)), rel=0.01)
    assert histogram.total == pytest.approx(values.sum()) and histogram.n == 20000
    assert len(histogram.counts) < 1000


def test_quantiles_of_counted_numbers_are_those_of_the_numbers():
    assert counted_quantiles(Counter({1: 5, 2: 4, 7: 2})) == [1, 1, 2, 7, 7]


def test_totals_are_those_of_the_rows_and_marked_ones_stand_apart(corpus):
    totals = count(open_corpus(corpus))
    assert (totals.rows, totals.captions, totals.sources) == (3, 1, 43)
    assert totals.durations.total == 4
    assert totals.rejected == {"silent": 1}
    assert totals.pictures == {2: 3} and totals.rows_a_source == {2: 1, 1: 1}
    size = sum(part.stat().st_size for part in corpus.glob("clips-*.parquet"))
    assert totals.bytes_of.total() == size
    assert totals.bytes_of["audio"] > totals.bytes_of["id"] > 0


def test_of_what_was_left_out_each_line_counts_and_a_sample_is_shown(corpus):
    dropped = count(open_corpus(corpus)).dropped
    assert {reason: (drops.lines, drops.seconds) for reason, drops in dropped.items()} == {
        "no_sound": (38, 38.0),
        "silent": (1, 1.0),
        "black": (1, 0.0),
    }
    examples = [row["source"] for row in dropped["no_sound"].examples]
    assert len(set(examples)) == EXAMPLES
    assert examples != [f"{index}.mp4" for index in range(EXAMPLES)]
    again, other = (count(open_corpus(corpus), seed=seed).dropped["no_sound"].examples for seed in (0, 1))
    assert again == dropped["no_sound"].examples != other


def test_a_sample_depends_on_its_seed_alone_and_has_every_row_once(tmp_path):
    parts = [[clip_row(f"{part}-{index}") for index in range(part)] for part in (5, 0, 3, 1)]
    corpus = open_corpus(write_clips_corpus(tmp_path / "corpus", parts))

    def drawn(number: int, seed: int = 0) -> list[str]:
        return [row["source"] for row in draw_rows(corpus, number, seed=seed)]

    everything = [row["source"] for part in parts for row in part]
    assert drawn(9) == drawn(100) == everything
    assert drawn(4) == drawn(4) and len(set(drawn(4))) == 4
    assert drawn(4) == sorted(drawn(4), key=everything.index)
    assert {tuple(drawn(4)), tuple(drawn(4, 1)), tuple(drawn(4, 2))} != {tuple(drawn(4))}
    assert {name for seed in range(40) for name in drawn(2, seed)} == set(everything)


def test_a_clip_is_described_by_its_level_and_spectrum(inspection):
    first, whistle, soft, silent = inspection.sample
    assert first["loudness_lufs"] == pytest.approx(20 * math.log10(0.5) - 3.01 - 0.69, abs=0.1)
    assert soft["peak_db"] == pytest.approx(-40, abs=0.1)
    assert whistle["bandwidth_hz"] == pytest.approx(3000, abs=5) and whistle["caption"] == "a whistle"
    assert math.isnan(silent["loudness_lufs"])
    assert [row["id"] for row in inspection.usable] == ["a-0", "a-1", f"{NAUGHTY}-0"]


def test_numbers_say_the_quantiles_of_all_and_of_the_sample(inspection):
    told = quantile_table(inspection)
    assert told["duration, s"] == pytest.approx([1, 1, 1, 2, 2], rel=0.01)
    assert told["pictures a clip"] == [2, 2, 2, 2, 2]
    assert told["peak, dB *"][0] == pytest.approx(-40, abs=0.1)


def test_constant_channels_of_latents_and_the_spread_of_embeddings_are_reported(encoded):
    found = inspect(open_corpus(encoded), num_clips=10)
    assert [warning for warning in found.warnings if "dead" in warning] == [
        warning for warning in found.warnings if warning.startswith("channel 2 is dead")
    ]
    assert found.totals.copies == {0: 2, 1: 1} and found.totals.pictures == {2: 3}
    assert found.embeddings["norm"] == pytest.approx(1, abs=1e-3)
    x, y = np.eye(2)
    lie = embedding_statistics([np.stack([x, x]), np.stack([y, y]), y[None]], ["a", "b", "b"])
    assert lie["cosine_in_a_clip"] == 1 and lie["cosine_of_different"] == 0
    assert lie["mean_direction"] == pytest.approx(math.hypot(2 / 5, 3 / 5))


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (format_duration(4.5), "4.5 s"),
        (format_duration(200), "3 min 20 s"),
        (format_duration(3_600_000 + 720), "1,000 h 12 min"),
        (format_bytes(999), "999 bytes"),
        (format_bytes(12_345_678), "12.3 MB"),
        (format_bytes(4e15), "4000 TB"),
        (format_number(1234.5), "1,234"),
        (format_number(-0.00027), "0.00"),
        (format_number(3), "3"),
        (format_number(math.nan), "–"),
    ],
)
def test_numbers_are_formatted_for_readers(told, text):
    assert told == text


def test_the_command_reports_the_contents_and_why_the_rest_was_dropped(corpus, encoded, capsys):
    assert main(["inspect", str(corpus)]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"{corpus}: 3 clips from 43 sources, 4.0 s, ")
    assert "dropped as black: 1, such as <d> (all 4 pictures are black)" in told
    assert "rejected as silent, but kept: 1" in told and "* of 3 drawn with seed 0" in told
    assert main(["inspect", str(encoded)]) == 0
    assert "warning: channel 2 is dead" in capsys.readouterr().out


def test_an_empty_or_unfinished_corpus_is_reported_as_such(tmp_path, capsys):
    folder = write_clips_corpus(tmp_path / "corpus", [[]], finished=False)
    assert main(["inspect", str(folder), "-o", str(tmp_path / "page")]) == 0
    told = capsys.readouterr().out
    assert "not finished: `diffaudio prepare` continues it" in told and "dropped: nothing" in told
    assert "Not finished: this is the state so far" in (tmp_path / "page" / "index.html").read_text()


def test_a_page_takes_the_place_of_an_earlier_one_and_of_nothing_else(corpus, page_folder, tmp_path, capsys):
    assert main(["inspect", str(corpus), "-o", str(corpus)]) == 2
    assert "holds something else; name a folder that is new, empty, or of an earlier" in capsys.readouterr().err
    assert main(["inspect", str(corpus), "-o", str(corpus / "manifest.json")]) == 2
    assert "manifest.json: is a file; name a folder" in capsys.readouterr().err
    (page_folder / "clips" / "99999.flac").write_bytes(b"of an earlier sample")
    assert main(["inspect", str(corpus), "-o", str(page_folder)]) == 0
    assert not (page_folder / "clips" / "99999.flac").exists()


def test_a_damaged_corpus_is_refused_with_what_to_do(tmp_path, capsys):
    folder = write_clips_corpus(tmp_path / "corpus", [[clip_row("a", audio=b"fLaC")]])
    assert main(["inspect", str(folder)]) == 2
    assert "the sound of a-0 does not decode; run `diffaudio validate`" in capsys.readouterr().err
    store.part_path(folder, "clips", 0).write_bytes(b"PAR1")
    assert main(["inspect", str(folder)]) == 2
    assert "clips-00000.parquet: is damaged" in capsys.readouterr().err


@pytest.fixture(scope="module")
def page_folder(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inspected") / "page"
    assert main(["inspect", str(corpus), "-o", str(folder)]) == 0
    return folder


def test_the_folder_holds_the_numbers_and_the_media_as_the_corpus_has_them(corpus, page_folder):
    report = json.loads((page_folder / "inspection.json").read_text(encoding="utf-8"))
    assert report["rows"] == 3 and report["dropped"]["no_sound"]["lines"] == 38
    assert report["sample"][3]["loudness_lufs"] is None
    (row, *_) = next(store.read_groups(corpus / "clips-00000.parquet"))
    assert (page_folder / "clips" / "00000.flac").read_bytes() == row["audio"]
    assert (page_folder / "clips" / "00000-1.jpg").read_bytes() == row["frames"][1]["image"]


def test_latents_are_shown_as_pictures(encoded, tmp_path):
    assert main(["inspect", str(encoded), "-o", str(tmp_path / "page")]) == 0
    with Image.open(tmp_path / "page" / "clips" / "00000.png") as picture:
        assert picture.size == (10, 4)
        assert picture.getpixel((0, 2)) == picture.getpixel((9, 2))
    assert not list((tmp_path / "page" / "clips").glob("*.flac"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROME is None:
        pytest.skip("no Chromium or Chrome here")
    with Browser.open(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser, page_folder):
    browser.events.clear()
    browser.visit(page_folder / "index.html")
    yield browser
    assert browser.errors == []
    assert {address.split(":")[0] for address in browser.requests} <= {"file", "data"}


def texts(page, selector: str) -> list[str]:
    return page.run(f"Array.from(document.querySelectorAll({json.dumps(selector)}), each => each.textContent)")


def click(page, selector: str) -> None:
    page.run(f"document.querySelector({json.dumps(selector)}).click()")


def test_the_page_shows_each_clip_with_pictures_spectrogram_and_sound(page):
    assert texts(page, "#sounds b") == ["a", "a", NAUGHTY, "c"]
    page.until("Array.from(document.querySelectorAll('#sounds img, #pictures img')).every(img => img.naturalWidth)")
    assert page.run("document.querySelectorAll('#sounds .frames img').length") == 8
    click(page, "#sounds li:nth-child(2) .play")
    page.until("document.getElementById('audio').currentTime > 0.2")
    assert page.run("document.getElementById('audio').duration") == 2
    assert texts(page, "#now") == ["a, 1 to 3 s"]
    assert texts(page, "#sounds .mark") == ["silent"] and texts(page, "#sounds q") == ["a whistle"]
    assert texts(page, "#tiles dd")[:3] == ["3", "4.0 s", "43"]
    assert page.run("document.querySelectorAll('b b, td d').length") == 0  # texts of users stay texts


def test_clips_can_be_filtered_searched_and_put_in_order(page):
    page.run("document.getElementById('wanted').value = 'WHISTLE'")
    page.run("document.getElementById('wanted').dispatchEvent(new Event('input'))")
    assert texts(page, "#sounds b") == ["a"] and texts(page, "#count") == ["1 of 4 clips"]
    click(page, "#reset")
    click(page, "input[name=class_reason][value='not rejected']")
    assert texts(page, "#sounds b") == ["c"]
    click(page, "#reset")
    click(page, "#clips th[data-column=peak_db] button")
    assert texts(page, "#sounds b")[:2] == ["c", NAUGHTY]
    assert page.run("document.getElementById('order').value") == "peak_db"
    click(page, "#downward")
    assert texts(page, "#sounds b")[-1] == "c" and texts(page, "#clips tbody tr:last-child td:first-child") == ["c"]


def test_what_was_left_out_can_be_sorted_and_filtered_by_reason(page):
    assert texts(page, "#reasons tbody td:first-child")[0] == "no_sound"
    click(page, "#reasons th[data-column=reason] button")
    assert texts(page, "#reasons tbody td:first-child") == ["black", "no_sound", "silent"]
    assert len(texts(page, "#examples tbody tr")) == EXAMPLES + 2
    click(page, "#reason-filters input[value=no_sound]")
    assert sorted(texts(page, "#examples tbody td:first-child")) == ["<d>", "e"]


def wide_elements(page) -> list[str]:
    """Elements that reach beyond the screen, those inside a box that scrolls aside."""
    return page.run(
        "Array.from(document.querySelectorAll('body *')).filter(each => !each.parentElement.closest('.scroll')"
        " && each.getBoundingClientRect().right > innerWidth + 0.5).map(each => each.tagName + '#' + each.id)"
    )


def test_on_a_phone_nothing_is_wider_than_the_screen(browser, page_folder, encoded, tmp_path):
    assert main(["inspect", str(encoded), "-o", str(tmp_path / "encoded")]) == 0
    for folder in (page_folder, tmp_path / "encoded"):
        browser.visit(folder / "index.html", width=390, height=844)
        browser.until("document.querySelector('#sounds li') !== null")
        browser.run("document.getElementById('as-table').open = true")
        assert wide_elements(browser) == []
        assert browser.run("document.documentElement.scrollWidth") <= 390
        browser.until("Array.from(document.querySelectorAll('.scroll-hint')).some(hint => !hint.hidden)")


def test_in_the_dark_texts_stand_out_from_their_background(browser, page_folder):
    """Contrast of 4.5 to 1 (WCAG 2.1, 1.4.3) for the page's own colours."""
    contrast = """(selector) => {
        const style = getComputedStyle(document.querySelector(selector));
        const light = (colour) => colour.match(/[0-9.]+/g).slice(0, 3).map((x) => x / 255)
            .map((x) => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
            .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0.05);
        const [a, b] = [light(style.color), light(style.backgroundColor)];
        return Math.max(a, b) / Math.min(a, b);
    }"""
    for scheme in ("light", "dark"):
        browser.prefer_colours(scheme)
        browser.visit(page_folder / "index.html")
        browser.until("document.querySelector('#sounds .mark') !== null")
        assert browser.run(f"({contrast})('#sounds .mark')") > 4.5
    browser.prefer_colours("light")
