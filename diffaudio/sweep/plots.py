"""Plots of a sweep: quality against steps, against guidance scale, and against time with the Pareto front."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffaudio.evaluation.report import direction
from diffaudio.pages.charts import COLOURS, write_svg
from diffaudio.sweep.table import pareto_line

__all__ = ["against_setting", "against_time", "picture_names", "write_pictures"]

Rows = Sequence[Mapping[str, Any]]

MARKERS = "osD^vPX*"
TITLES = {"sampler": "", "steps": "steps", "guidance_scale": "guidance scale"}
BASELINES = {"real": ("real recordings", "--"), "shuffled": ("shuffled labels", ":")}
PANELS_A_LINE = 4


def picture_names(axes: Mapping[str, Sequence[Any]], metric: str) -> dict[str, str]:
    """The files of a metric's plots by their x axis: steps, guidance, time. A setting with one value has no plot."""
    shown = [what for what, axis in (("steps", "steps"), ("guidance", "guidance_scale")) if len(axes[axis]) > 1]
    return {what: f"{metric}-{what}.svg" for what in [*shown, "time"]}


def write_pictures(folder: Path, rows: Rows, axes: Mapping[str, Sequence[Any]], metric: str) -> None:
    """Draw the plots of a metric that `picture_names` lists, as SVG files.

    Args:
        rows: rows of the table.
        axes: the values of each setting that the sweep varies.
    """
    for what, name in picture_names(axes, metric).items():
        if what == "time":
            figure = against_time(rows, axes, metric)
        else:
            along, across = ("steps", "guidance_scale") if what == "steps" else ("guidance_scale", "steps")
            figure = against_setting(rows, axes, metric, along=along, across=across)
        write_svg(folder / name, figure)


def against_setting(rows: Rows, axes: Mapping[str, Sequence[Any]], metric: str, *, along: str, across: str) -> Figure:
    """A metric, with intervals, against the setting `along`, in one panel for each value of the setting `across`."""
    panels = [value for value in axes[across] if any(row.get(across) == value for row in rows)]
    columns = min(len(panels), PANELS_A_LINE)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns + 1.2, 2.9 * lines + 0.3), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    groups = _series(rows, axes, without=(along, across))
    for panel, plot in zip(panels, grid.flat, strict=False):
        for index, (label, members) in enumerate(groups.items()):
            points = [row for row in members if row[across] == panel and row.get(metric) is not None]
            _line(plot, sorted(points, key=lambda row: row[along]), along, metric, label, index)
        _baselines(plot, rows, metric)
        plot.set_title(f"{TITLES[across]} {panel:g}", fontsize="medium")
        plot.set_xlabel(TITLES[along])
        _ticks(plot, axes[along])
    for spare in list(grid.flat)[len(panels) :]:
        spare.remove()
    for plot in grid[:, 0]:
        plot.set_ylabel(_axis_label(metric))
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def against_time(rows: Rows, axes: Mapping[str, Sequence[Any]], metric: str) -> Figure:
    """A metric, with intervals, against the seconds per sound; combinations on the Pareto front are labelled."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    plot = figure.add_subplot()
    groups = _series(rows, axes, without=("steps", "guidance_scale"))
    for index, (label, members) in enumerate(groups.items()):
        points = [row for row in members if row.get(metric) is not None]
        x, y = [row["seconds_per_sound"] for row in points], [row[metric] for row in points]
        plot.errorbar(
            x,
            y,
            yerr=_errors(points, metric),
            color=COLOURS[index % len(COLOURS)],
            fmt=MARKERS[index % len(MARKERS)],
            label=label,
            markersize=5,
            elinewidth=0.4,
            alpha=0.75,
        )
    everything = [row for members in groups.values() for row in members if row.get(metric) is not None]
    costs, values = [row["seconds_per_sound"] for row in everything], [row[metric] for row in everything]
    line = pareto_line(costs, values, higher_is_better=direction(metric) >= 0)
    plot.step(
        [costs[i] for i in line], [values[i] for i in line], where="post", color="0.35", lw=1, label="Pareto line"
    )
    for place in line:
        row = everything[place]
        name = f"{row['sampler']}, {row['steps']} steps, scale {row['guidance_scale']:g}"
        plot.annotate(name, (costs[place], values[place]), (4, 5), textcoords="offset points", fontsize=7, color="0.2")
    _baselines(plot, rows, metric)
    plot.set_xscale("log")
    _ticks(plot, _decades(costs))
    plot.set(xlabel="seconds a sound", ylabel=_axis_label(metric))
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _series(rows: Rows, axes: Mapping[str, Sequence[Any]], *, without: Sequence[str]) -> dict[str, list[Any]]:
    """The generated rows by what they share: the sampler, and all other settings that vary but those left out."""
    naming = [axis for axis in axes if axis not in without and (axis == "sampler" or len(axes[axis]) > 1)]
    groups: dict[str, list[Any]] = {}
    for row in rows:
        if row["kind"] == "evaluated":
            label = ", ".join(f"{TITLES.get(axis, axis)} {row[axis]}".strip() for axis in naming)
            groups.setdefault(label, []).append(row)
    return groups


def _line(plot: Axes, points: Rows, along: str, metric: str, label: str, index: int) -> None:
    x, y = [row[along] for row in points], [row[metric] for row in points]
    colour = COLOURS[index % len(COLOURS)]
    plot.plot(x, y, color=colour, marker=MARKERS[index % len(MARKERS)], markersize=4, lw=1.3, label=label)
    bounded = [row for row in points if row.get(f"{metric}_low") is not None]
    lows, highs = [row[f"{metric}_low"] for row in bounded], [row[f"{metric}_high"] for row in bounded]
    plot.fill_between([row[along] for row in bounded], lows, highs, color=colour, alpha=0.1, lw=0)


def _errors(points: Rows, metric: str) -> Any:
    """[2, points]: how far the interval reaches down and up."""
    down = [row[metric] - (row[metric] if row.get(f"{metric}_low") is None else row[f"{metric}_low"]) for row in points]
    up = [(row[metric] if row.get(f"{metric}_high") is None else row[f"{metric}_high"]) - row[metric] for row in points]
    return [down, up]


def _baselines(plot: Axes, rows: Rows, metric: str) -> None:
    """Levels of the real recordings and of the shuffled labels."""
    for kind, (label, style) in BASELINES.items():
        for row in rows:
            if row["kind"] == kind and row.get(metric) is not None:
                plot.axhline(row[metric], color="0.45", ls=style, lw=1, label=label)


def _ticks(plot: Axes, values: Sequence[float]) -> None:
    plot.set_xticks(values, [f"{value:g}" for value in values])
    plot.minorticks_off()
    plot.spines[["top", "right"]].set_visible(False)
    plot.grid(alpha=0.25, lw=0.5)


def _decades(values: Sequence[float]) -> list[float]:
    """Round numbers over the range of `values`."""
    marks = [digit * 10.0**power for power in range(-3, 5) for digit in (1, 2, 5)]
    return [mark for mark in marks if min(values) / 1.6 <= mark <= max(values) * 1.6]


def _axis_label(metric: str) -> str:
    return metric + {1: " (higher is better)", -1: " (lower is better)", 0: ""}[direction(metric)]
