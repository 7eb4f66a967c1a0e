"""The comparison of bridges: in CLIP's space, by sounds, and the share of the gap that each closes."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from browser import CHROME, Browser
from fake_backbone import BandBackbone, tones
from tiny_encoded import write_encoded_corpus
from tiny_model import tiny_parts

from diffaudio.cli import evaluate_bridge
from diffaudio.corpus.datasets.latents import LatentDataset
from diffaudio.errors import UserError
from diffaudio.evaluation.bridges.compare import Draws, compare_bridges
from diffaudio.evaluation.bridges.gap import add_gap_closed
from diffaudio.evaluation.bridges.queries import Queries, labelled_queries
from diffaudio.evaluation.bridges.space import measure_pictures, measure_texts
from diffaudio.evaluation.embed import Embedder
from diffaudio.evaluation.reference import split_reference
from diffaudio.evaluation.report import Metric, read_report
from diffaudio.evaluation.sound_files import Texts
from diffaudio.evaluation.table import Table
from diffaudio.media.audio import write_audio
from diffaudio.models.bridge.bridges import fit_bridge
from diffaudio.pipeline import DiffAudioPipeline

BANDS = [f"band {index}" for index in range(8)]


def queries_of(pictures: torch.Tensor, kinds: list[int], sources: list[str] | None = None) -> Queries:
    names = [f"{index}.mp4" for index in range(len(kinds))]
    return Queries(BANDS[: max(kinds) + 1], torch.tensor(kinds), pictures, names, sources or names)


def by_name(table: Table) -> dict[str, Metric]:
    return {metric.name: metric for metric in table.metrics}


def table() -> Table:
    return Table(seed=0, resamples=40)


def test_texts_apart_from_their_pictures_by_a_known_shift_measure_that_shift():
    """Kinds lie along axes 0 to 3, the gap along axis 4."""
    kinds = [0, 1, 2, 3] * 3
    angle = math.atan2(0.6, 0.8)
    pictures = F.normalize(torch.eye(6)[kinds] * math.cos(angle) + torch.eye(6)[[4] * 12] * math.sin(angle), dim=-1)
    texts = torch.eye(6)[:4]
    found = table()
    measure_texts(texts, queries_of(pictures, kinds), found)
    metrics = by_name(found)
    assert metrics["pair_cosine"].value == pytest.approx(0.8)
    # the mean text is 1/4 on each of four axes, the mean picture 0.8/4 on them and 0.6 on the fifth
    assert metrics["mean_distance"].value == pytest.approx(math.sqrt(4 * 0.05**2 + 0.6**2))
    assert metrics["recall_1"].value == metrics["recall_5"].value == metrics["kind_accuracy"].value == 1
    assert (metrics["recall_1"].n, metrics["kind_accuracy"].n) == (4, 12)


def test_recall_counts_texts_and_kind_accuracy_counts_clips():
    pictures = torch.eye(4)[[0, 0, 0, 1]]
    texts = torch.stack([torch.eye(4)[0], 0.9 * torch.eye(4)[0] + 0.1 * torch.eye(4)[1]])
    found = table()
    measure_texts(F.normalize(texts, dim=-1), queries_of(pictures, [0, 0, 0, 1]), found)
    metrics = by_name(found)
    assert metrics["recall_1"].value == 0.5  # the second text is nearest to pictures of the first kind
    assert metrics["recall_5"].value == 1
    assert metrics["kind_accuracy"].value == 1


def test_pictures_as_queries_are_compared_with_pictures_of_other_sources_only():
    pictures = F.normalize(torch.tensor([[1, 0, 0.2], [1, 0, 0.2], [1, 0.2, 0], [0, 1, 0], [0, 1, 0.1]]), dim=-1)
    sources = ["a", "a", "b", "c", "d"]
    queries = queries_of(pictures, [0, 0, 0, 1, 1], sources)
    partners = queries.partners(0).tolist()
    assert partners[0] == partners[1] == 2 and partners[2] in (0, 1) and partners[3:] == [4, 3]
    found = table()
    measure_pictures(queries, found, seed=0)
    expected = (pictures[partners] * pictures).sum(dim=1).mean().item()
    assert by_name(found)["pair_cosine"].value == pytest.approx(expected)
    assert by_name(found)["recall_1"].value == 1
    lonely = table()
    measure_pictures(queries_of(pictures[[0, 3]], [0, 1]), lonely, seed=0)
    assert lonely.left_out == {"pair_cosine": "no kind has clips of two sources"}


@pytest.mark.parametrize("sign", [1, -1])
def test_the_share_of_a_gap_is_0_for_no_bridge_and_1_for_pictures_whichever_way_is_better(sign: int):
    noise = torch.randn(40, generator=torch.Generator().manual_seed(0)) / 10

    def statistic(level: float) -> Any:
        return lambda some: sign * (level + float(noise[some].mean()))

    for level, share in ((1.0, 0.0), (2.0, 0.5), (3.0, 1.0), (0.0, -0.5)):
        found = table()
        add_gap_closed("kad", statistic(1.0), statistic(level), statistic(3.0), 40, found)
        assert by_name(found)["gap_closed_kad"].value == pytest.approx(share, abs=1e-6)


def test_where_there_is_no_gap_the_numbers_say_so():
    generator = torch.Generator().manual_seed(0)
    none, pictures = torch.randn(2, 30, generator=generator)

    def mean(values: torch.Tensor) -> Any:
        return lambda some: float(values[some].mean())

    found = table()
    add_gap_closed("kad", mean(none), mean(none), mean(pictures), 30, found)
    assert found.metrics == []
    assert found.left_out["gap_closed_kad"].startswith("no gap: ")
    assert (
        f"{none.mean():.3g} without a bridge, {pictures.mean():.3g} with pictures" in found.left_out["gap_closed_kad"]
    )
    add_gap_closed("fd", mean(none), mean(none), mean(pictures), 2, found)
    assert "2 queries are too few" in found.left_out["gap_closed_fd"]


def embedded_tones(right_share: float, seed: int) -> Any:
    """32 tones, a share of which lies in the band of its label; the others one band further."""
    sounds = []
    for index, sound in enumerate(tones(32, seed)):
        wrong = (index * 7) % 32 >= round(32 * right_share)
        label = BANDS[(index + wrong) % 8]
        sounds.append(type(sound)(sound.waveform, sound.sample_rate, sound.name, None, label))
    return Embedder([BandBackbone()]).embed(sounds)


def test_a_bridge_whose_sounds_are_half_as_often_wrong_closes_half_of_the_gap():
    kinds = [index % 8 for index in range(32)]
    pictures = torch.eye(16)[kinds]
    embedded = {"none": embedded_tones(0.25, 1), "prior": embedded_tones(0.625, 2), "pictures": embedded_tones(1, 3)}
    mapped = {"none": torch.eye(16)[8:], "prior": F.normalize(torch.eye(16)[8:] + torch.eye(16)[:8], dim=-1)}
    sounds = embedded["pictures"]
    reference = split_reference(Embedder([BandBackbone()]).embed(tones(96, 0)), sounds.wanted(), seed=0)
    rows = compare_bridges(mapped, queries_of(pictures, kinds), embedded, reference, Draws(0, 20))
    assert [(row.name, row.kind, row.sounds) for row in rows] == [
        ("none", "bridge", 32), ("prior", "bridge", 32), ("pictures", "pictures", 32), ("recordings", "real", 32)
    ]  # fmt: skip
    assert [row["accuracy_bands"].value for row in rows] == [0.25, 0.625, 1, 1]
    closed = rows[1]["gap_closed_accuracy_bands"]
    assert closed.value == pytest.approx(0.5)
    assert closed.low is not None and closed.high is not None and 0 < closed.low < 0.5 < closed.high < 1
    assert rows[1]["gap_closed_pair_cosine"].value == pytest.approx(0.5**0.5)  # 0 without, 1 for another picture
    for row in rows:
        assert row["kad_bands"].reference_n == 64
        assert {"fd_bands", "kad_bands"} <= {metric.name for metric in row.metrics}
    assert "gap_closed_fd_bands" not in rows[0].left_out and "no gap" in rows[1].left_out["gap_closed_kad_bands"]


def test_labelled_clips_are_found_by_their_file_and_chosen_evenly(tmp_path: Path):
    embeddings = F.normalize(torch.randn(6, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    dataset = LatentDataset(write_encoded_corpus(tmp_path / "corpus", embeddings=embeddings))
    texts = {f"{index}": Texts(None, "rain" if index < 4 else "a dog") for index in range(5)}
    queries = labelled_queries(dataset, texts)
    assert queries.labels == ["a dog", "rain"]
    assert [queries.label(index) for index in range(5)] == ["rain"] * 4 + ["a dog"]
    torch.testing.assert_close(queries.pictures, embeddings[:5], rtol=0, atol=1e-3)
    assert sorted(queries.choose(2, seed=0).kinds.tolist()) == [0, 1]
    with pytest.raises(UserError, match=r"corpus: the table of labels gives its clips 1 labels; at least 2 are needed"):
        labelled_queries(dataset, {"0": Texts(None, "rain")})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with three bridges, a corpus of six clips in two bands, recordings and labels."""
    folder = tmp_path_factory.mktemp("bridges")
    parts = tiny_parts(folder / "clip")
    embeddings = F.normalize(torch.randn(6, 16, generator=torch.Generator().manual_seed(1)), dim=1)
    own = fit_bridge("retrieval", embeddings, clip_name="tiny")
    own.alternatives["spread"] = fit_bridge("spread", embeddings, embeddings.flip(0), clip_name="tiny")
    DiffAudioPipeline(**parts | {"bridge": own}).save_pretrained(folder / "model")
    write_encoded_corpus(folder / "corpus", embeddings=embeddings)
    (folder / "recordings" / "videos").mkdir(parents=True)
    lines = ["file,label"]
    for index, sound in enumerate(tones(24, 0)):
        write_audio(folder / "recordings" / "videos" / f"{index}.wav", sound.waveform, sound.sample_rate)
        lines.append(f"{index}.wav,{BANDS[index % 2]}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffaudio.evaluation.rows.load_embedder", lambda *_, **__: Embedder([BandBackbone()]))


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    common = ["--data", folder / "corpus", "--labels", folder / "labels.csv", "--model", folder / "model", "-o", out]
    return [str(each) for each in common] + ["--steps", "2", "--duration", "1", *more]


def test_the_command_leaves_a_report_a_table_a_picture_and_sounds(
    folder: Path, tmp_path: Path, bands: None, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    reference = ["--reference", str(folder / "recordings"), "--resamples", "20", "--sounds", "4"]
    evaluate_bridge.run(arguments(folder, out, *reference))
    printed = capsys.readouterr().out
    names = ["none", "retrieval", "spread", "pictures", "recordings"]
    assert [row.name for row in read_report(out / "report.json").rows] == names
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == names
    assert all(row["fd_bands"] for row in rows)
    assert all(row["recall_1"] for row in rows[:4])
    assert (out / "bridges.svg").read_text().startswith("<?xml")
    made = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.wav"))
    assert len(made) == 16 and {name.split("/")[1] for name in made} == set(names[:4])
    assert "4 bridges" not in printed and "3 bridges, 6 queries, 16 sounds" in printed
    assert "note: without --held-out" in printed

    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.wav")}
    evaluate_bridge.run(arguments(folder, out, *reference))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.wav")} == times

    if CHROME is not None:
        with Browser.open(tmp_path / "profile") as browser:
            browser.visit(out / "index.html")
            assert browser.run("document.title") == "Bridges compared"
            heads = browser.run("Array.from(document.querySelectorAll('#metrics thead th'), cell => cell.textContent)")
            assert heads[1:3] == ["none (4 sounds)", "retrieval (4 sounds)"]
            first = "Array.from(document.querySelectorAll('#sounds-table tbody tr'), row => row.cells[1].textContent)"
            assert browser.run(first)[:5] == ["1. none", "1. retrieval", "1. spread", "1. pictures", "2. none"]
            assert browser.errors == []


def test_without_sounds_only_the_space_is_measured(
    folder: Path, tmp_path: Path, bands: None, capsys: pytest.CaptureFixture[str]
):
    evaluate_bridge.run(arguments(folder, tmp_path / "out", "--sounds", "0", "--bridge", "spread"))
    assert "spread" in capsys.readouterr().out
    rows = read_report(tmp_path / "out" / "report.json").rows
    assert [row.name for row in rows] == ["none", "spread", "pictures"]
    assert not list((tmp_path / "out").rglob("*.wav"))


def test_pictures_may_pass_a_retrieval_bridge_in_a_row_of_their_own(
    folder: Path, tmp_path: Path, bands: None, capsys: pytest.CaptureFixture[str]
):
    more = ["--sounds", "2", "--bridge", "none", "--image-bridge", "retrieval", "--resamples", "20"]
    evaluate_bridge.run(arguments(folder, tmp_path / "out", *more))
    rows = read_report(tmp_path / "out" / "report.json").rows
    assert [(row.name, row.kind) for row in rows] == [
        ("none", "bridge"), ("pictures", "pictures"), ("pictures_retrieval", "pictures")
    ]  # fmt: skip
    assert rows[1]["pair_cosine"].value != rows[2]["pair_cosine"].value
    assert len(list((tmp_path / "out" / "sounds" / "pictures_retrieval").glob("*.wav"))) == 2
    with pytest.raises(UserError, match=r"--image-bridge: 'spread' maps texts only; choose retrieval"):
        evaluate_bridge.run(arguments(folder, tmp_path / "out", "--image-bridge", "spread"))


def test_the_sounds_of_all_bridges_begin_with_the_same_noise(folder: Path, tmp_path: Path, bands: None):
    """With a guidance scale of 0 the embedding has no effect, so that all bridges make the same sound."""
    more = ["--sounds", "2", "--guidance-scale", "0", "--resamples", "20"]
    evaluate_bridge.run(arguments(folder, tmp_path / "out", *more))
    of_clip: dict[str, set[bytes]] = {}
    for path in (tmp_path / "out").rglob("*.wav"):
        of_clip.setdefault(path.name, set()).add(path.read_bytes())
    assert len(of_clip) == 2
    assert all(len(different) == 1 for different in of_clip.values())


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path, bands: None):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"--reference has no effect with --sounds 0"):
        evaluate_bridge.run(arguments(folder, out, "--sounds", "0", "--reference", str(folder / "recordings")))
    with pytest.raises(UserError, match=r"bridge 'prior' is not one of this model's \(none, retrieval, spread\)"):
        evaluate_bridge.run(arguments(folder, out, "--bridge", "prior"))
    with pytest.raises(UserError, match=r"nowhere: there is no such file or folder"):
        evaluate_bridge.run(arguments(folder, out, "--reference", "nowhere"))
    manifest = folder / "corpus" / "manifest.json"
    original = manifest.read_text()
    try:
        manifest.write_text(original.replace('"name": "tiny", "embedding_dim"', '"name": "x", "embedding_dim"'))
        if manifest.read_text() == original:  # written with line breaks
            manifest.write_text(original.replace('"clip": {\n    "name": "tiny"', '"clip": {\n    "name": "x"'))
        assert manifest.read_text() != original
        with pytest.raises(UserError, match=r"was encoded by CLIP 'x', the model's is 'tiny'; encode the corpus again"):
            evaluate_bridge.run(arguments(folder, out))
    finally:
        manifest.write_text(original)
