"""What `diffaudio evaluate bridge` leaves behind: a report, a table, a picture and a page to listen.

OUT/report.json   as `diffaudio evaluate` writes it
OUT/results.csv   a line for each bridge, for pictures and for real recordings
OUT/bridges.svg   the measures with their intervals
OUT/index.html    the table, and the sounds of each query side by side
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from diffaudio import pages
from diffaudio.atomic_io import atomic_file
from diffaudio.evaluation.bridges.sounds import PICTURES
from diffaudio.evaluation.embed import AudioEmbeddings
from diffaudio.evaluation.page import recognised_as
from diffaudio.evaluation.report import Report, Row, direction, write_report
from diffaudio.generation.batch import Item
from diffaudio.pages.charts import COLOURS, write_svg

__all__ = ["draw_rows", "write_results"]

PANELS_A_LINE = 4
DIRECTIONS = {"mean_distance": -1, "pair_cosine": 1, "recall_1": 1, "recall_5": 1, "kind_accuracy": 1}


def write_results(
    out: Path,
    report: Report,
    sounds: Mapping[str, Sequence[Item]],
    embedded: Mapping[str, AudioEmbeddings],
    facts: Mapping[str, Any],
) -> None:
    """Write everything.

    Args:
        sounds, embedded: by bridge and under `pictures`, in the order of the queries; may be empty.
        facts: shown at the top of the page.
    """
    write_report(out / "report.json", report)
    _write_table(out / "results.csv", report.rows)
    write_svg(out / "bridges.svg", draw_rows(report.rows))
    names = list(dict.fromkeys(metric.name for row in report.rows for metric in row.metrics))
    by_row = [{metric.name: metric for metric in row.metrics} for row in report.rows]
    left_out = {f"{row.name}: {name}": reason for row in report.rows for name, reason in row.left_out.items()}
    data = {
        "title": "Bridges compared",
        "facts": {**facts, "seed": report.seed, "diffaudio": report.diffaudio_version},
        "columns": [f"{row.name} ({row.sounds} {'sounds' if embedded else 'queries'})" for row in report.rows],
        "metrics": [
            {
                "name": name,
                "direction": measure_direction(name),
                "cells": [_cell(metrics.get(name)) for metrics in by_row],
            }
            for name in names
        ],
        "notes": list(dict.fromkeys(warning for row in report.rows for warning in row.warnings)),
        "left_out": left_out,
        "sounds": _listening(out, sounds, embedded),
    }
    pages.write_page(out / "index.html", "evaluate", data)


def measure_direction(metric: str) -> int:
    """1 where more is better, -1 where less is."""
    return 1 if metric.startswith("gap_closed_") else DIRECTIONS.get(metric, direction(metric))


def draw_rows(rows: Sequence[Row]) -> Figure:
    """A panel for each measure: its value and interval for each bridge, pictures and recordings."""
    names = list(dict.fromkeys(metric.name for row in rows for metric in row.metrics))
    columns = min(len(names), PANELS_A_LINE)
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3.1 * columns + 1, (0.28 * len(rows) + 0.9) * lines), layout="constrained")
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for name, plot in zip(names, grid.flat, strict=False):
        for place, row in enumerate(rows):
            metric = next((metric for metric in row.metrics if metric.name == name), None)
            if metric is None or not math.isfinite(metric.value):
                continue
            colour = COLOURS[0] if row.kind == "bridge" else COLOURS[1] if row.kind == PICTURES else "0.4"
            plot.plot(metric.value, place, "o", color=colour)
            if metric.low is not None and metric.high is not None:
                plot.plot([metric.low, metric.high], [place, place], color=colour, linewidth=1)
        arrow = {1: " (higher is better)", -1: " (lower is better)"}.get(measure_direction(name), "")
        plot.set_title(f"{name}\n{arrow.strip()}", fontsize="small")
        plot.set_yticks(range(len(rows)), [row.name for row in rows])
    grid[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    for spare in list(grid.flat)[len(names) :]:
        spare.remove()
    return figure


def _write_table(path: Path, rows: Sequence[Row]) -> None:
    lines = [{"name": row.name, "kind": row.kind, "sounds": row.sounds, **row.columns()} for row in rows]
    columns = list(dict.fromkeys(column for line in lines for column in line))
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(lines)


def _listening(
    out: Path, sounds: Mapping[str, Sequence[Item]], embedded: Mapping[str, AudioEmbeddings]
) -> list[dict[str, Any]]:
    """The page's sounds: those of one query one after the other."""
    recognised = {name: recognised_as(each) for name, each in embedded.items()}
    listed = []
    for query in range(len(next(iter(sounds.values()), ()))):
        for name, items in sounds.items():
            item, checks = items[query], embedded[name].checks
            loudness = float(checks.loudness[query])
            faults = [fault for fault in ("silent", "clipped") if bool(getattr(checks, fault)[query])]
            listed.append(
                {
                    "address": pages.address(item.path, out),
                    "name": f"{query + 1}. {name}",
                    "wanted": item.label,
                    "recognised": recognised[name][query],
                    "right": None,
                    "loudness": loudness if math.isfinite(loudness) else None,
                    "faults": ", ".join(faults),
                }
            )
    return listed


def _cell(metric: Any) -> dict[str, Any] | None:
    return None if metric is None else {key: getattr(metric, key) for key in ("value", "low", "high", "n")}
