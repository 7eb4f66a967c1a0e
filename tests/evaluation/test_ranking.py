"""`diffaudio evaluate ranking`: whether backbones put systems in the same order, by hand-made reports."""

import math

import pytest

from diffaudio.cli.main import main
from diffaudio.evaluation.ranking import markdown, rank_systems
from diffaudio.evaluation.report import BackboneInfo, Metric, Report, Row, write_report

BACKBONES = [BackboneInfo(name, "0" * 64, 16000, "x", 8) for name in ("ears", "tagger_a")]


def report(name, kind="evaluated", **values):
    metrics = [Metric(metric, value, None, None, None, 10) for metric, value in values.items()]
    rows = [Row(name, kind, 10, 50.0, metrics), Row("recordings", "real", 10, 50.0, metrics[:1])]
    return Report(BACKBONES, rows, 0, 20)


def reports(fd_ears, fd_tagger, right_ears, right_tagger):
    columns = zip(fd_ears, fd_tagger, right_ears, right_tagger, strict=True)
    return [
        report(
            f"step {index}", fd_ears=a, fd_tagger_a=b, recognised_at_5_ears=c, accuracy_tagger_a=d, silent=0.0,
            density_ears=1.0, density_tagger_a=2.0,
        )
        for index, (a, b, c, d) in enumerate(columns)
    ]  # fmt: skip


def test_the_same_order_correlates_with_1_and_the_opposite_with_minus_1():
    ranking = rank_systems(reports([5, 4, 3, 2, 1], [500, 90, 80, 7, 6], [0.1, 0.2, 0.3, 0.4, 0.5], [5, 4, 3, 2, 1]))
    by_metric = {each.metric: each for each in ranking.agreements}
    assert set(by_metric) == {"fd", "recognised"}  # neither what has no better nor what has no backbone
    assert (by_metric["fd"].spearman, by_metric["fd"].kendall, by_metric["fd"].n) == (
        pytest.approx(1),
        pytest.approx(1),
        5,
    )
    assert by_metric["recognised"].spearman == pytest.approx(-1) == by_metric["recognised"].kendall
    assert by_metric["fd"].backbones == ("ears", "tagger_a")
    assert ranking.systems == [f"step {index}" for index in range(5)]


def test_correlations_by_hand():
    """Ranks 1 2 3 4 and 1 3 2 4: rho = 1 - 6 * 2 / (4 * 15) = 0.8; five of six pairs in the same order, one not."""
    fd = next(each for each in rank_systems(reports([1, 2, 3, 4], [1, 3, 2, 4], [0] * 4, [0] * 4)).agreements)
    assert fd.spearman == pytest.approx(0.8) and fd.kendall == pytest.approx(4 / 6)


def test_what_does_not_vary_has_no_order():
    ranking = rank_systems(reports([1, 2, 3], [1, 2, 3], [0.5, 0.5, 0.5], [0.1, 0.2, 0.3]))
    found = next(each for each in ranking.agreements if each.metric == "recognised")
    assert math.isnan(found.spearman) and "nan" in markdown(ranking)


def test_the_command_prints_and_writes_both_tables(tmp_path, capsys):
    paths = []
    for index, each in enumerate(reports([3, 2, 1], [3, 2, 1], [0.1, 0.2, 0.3], [0.1, 0.3, 0.2])):
        paths.append(tmp_path / f"{index}.json")
        write_report(paths[-1], each)
    assert main(["evaluate", "ranking", *map(str, paths), "-o", str(tmp_path / "ranking.md")]) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "ranking.md").read_text()
    lines = printed.splitlines()
    assert lines[0] == "| system | fd, ears | fd, tagger_a | recognised, ears | recognised, tagger_a |"
    assert lines[2] == "| step 0 | 3 | 3 | 0.1 | 0.1 |"
    assert "| fd | ears and tagger_a | 3 | 1.00 | 1.00 |" in lines
    assert "| recognised | ears and tagger_a | 3 | 0.50 | 0.33 |" in lines


def test_rows_of_one_report_are_systems_too():
    """As those of `diffaudio evaluate reconstruction`, an autoencoder each."""
    rows = [
        row for index in range(3) for row in report(f"{index}", "reconstructed", fd_ears=index, fd_tagger_a=index).rows
    ]
    ranking = rank_systems([Report(BACKBONES, [row for row in rows if row.kind == "reconstructed"], 0, 20)])
    assert ranking.systems == ["0", "1", "2"] and ranking.agreements[0].spearman == pytest.approx(1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (reports([1, 2], [1, 2], [0, 1], [0, 1]), "the reports have 2 systems; an order of at least 3 can be compared"),
        (reports([1] * 3, [1] * 3, [0] * 3, [0] * 3)[:1] * 3, "two rows are named 'step 0'; give each system once"),
        ([Report(BACKBONES[:1], [row], 0, 20) for each in reports(*[[1] * 3] * 4) for row in each.rows[:1]],
         "all reports are by ears; measure by two backbones"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        rank_systems(given)
