"""The results of a sweep whose sounds have all been measured: table, plots, report and page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from diffaudio.evaluation.report import Report, Row, direction, write_report
from diffaudio.generation.batch import Item
from diffaudio.sweep.folder import Measured, Sweep, read_measured
from diffaudio.sweep.grid import Combination
from diffaudio.sweep.page import PageSound, sound_path, write_page
from diffaudio.sweep.plots import picture_names, write_pictures
from diffaudio.sweep.table import timing_columns, with_mean_of_shuffled, write_tables

__all__ = ["draw", "drawn_metrics", "table", "write_results"]


def table(sweep: Sweep, report: Report) -> list[dict[str, Any]]:
    """One row for each combination, for the real recordings, and for each combination's shuffled labels."""
    rows: dict[str, list[dict[str, Any]]] = {"evaluated": [], "real": [], "shuffled": []}
    for combination, items in sweep.sounds.items():
        costs = {"passes": combination.passes, **timing_columns([_sidecar(item) for item in items])}
        for row in _measured(sweep, combination).rows:
            head = {"kind": row.kind, "combination": row.name, **combination.values}
            head |= {"sounds": row.sounds, **(costs if row.kind == "evaluated" else {})}
            rows[row.kind].append(head | row.columns())
    for row in _recordings(sweep, report):
        rows["real"].append({"kind": row.kind, "combination": row.name, "sounds": row.sounds} | row.columns())
    return [*rows["evaluated"], *rows["real"], *rows["shuffled"]]


def drawn_metrics(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics to plot: those that are better when higher or lower, and differ between rows."""
    columns = dict.fromkeys(name for row in rows for name in row)
    metrics = [name for name in columns if f"{name}_n" in columns and direction(name)]
    return [name for name in metrics if len({row.get(name) for row in rows if row["kind"] == "evaluated"}) > 1]


def draw(sweep: Sweep, rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> None:
    """Draw the plots of some metrics."""
    folder = sweep.folder / "pictures"
    folder.mkdir(exist_ok=True)
    for metric in metrics:
        write_pictures(folder, with_mean_of_shuffled(rows), sweep.axes, metric)


def write_results(sweep: Sweep, rows: Sequence[Mapping[str, Any]], report: Report, facts: Mapping[str, Any]) -> None:
    """Write report, tables and page.

    Args:
        facts: properties that all sounds have in common, by name.
    """
    folder, sounds, reported = sweep.folder, list[PageSound](), list[Row]()
    for place, (combination, items) in enumerate(sweep.sounds.items()):
        measured = _measured(sweep, combination)
        reported += measured.rows
        for index, (item, recognised) in enumerate(zip(items, measured.recognised_as, strict=True)):
            take, prompt = divmod(index, len(sweep.prompts))
            path = sound_path(item.path, folder)
            sounds.append(PageSound(place, prompt, take + 1, path, item.path.suffix, recognised))
    write_report(folder / "report.json", replace(report, rows=[*reported, *_recordings(sweep, report)]))
    write_tables(folder, rows, facts)
    write_page(
        folder,
        facts=facts,
        axes=sweep.axes,
        rows=with_mean_of_shuffled(rows),
        pictures={metric: picture_names(sweep.axes, metric) for metric in drawn_metrics(rows)},
        prompts=[prompt.query.name for prompt in sweep.prompts],
        sounds=sounds,
        left_out=sweep.left_out,
    )


def _recordings(sweep: Sweep, report: Report) -> list[Row]:
    measured = read_measured(sweep.recordings_file()) if report.reference is not None else None
    return [] if measured is None else measured.rows


def _measured(sweep: Sweep, combination: Combination) -> Measured:
    measured = read_measured(sweep.measured_file(combination))
    assert measured is not None
    return measured


def _sidecar(item: Item) -> dict[str, Any]:
    return json.loads(item.path.with_suffix(".json").read_text(encoding="utf-8"))
