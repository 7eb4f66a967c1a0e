"""Charts of a corpus: durations, loudness and spectrum; of an encoded one, its channels and values."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from diffaudio.corpus.inspect.totals import BIN, Histogram
from diffaudio.pages.charts import COLOURS

__all__ = ["bars", "channels", "counted", "histogram", "spectrum"]

BLUE, ORANGE = COLOURS[:2]
SIZE = (4.6, 2.5)
COUNTED = ("clips", "rows", "clips or files")  # counted, so that axes have whole numbers only


def histogram(values: Sequence[float], *, title: str, label: str) -> Figure:
    """Histogram of the finite values of a sample."""
    figure, axes = _axes(title, label, "clips")
    known = np.asarray(values)[np.isfinite(values)]
    if len(known):
        axes.hist(known, bins=min(30, max(5, len(known) // 4)), color=BLUE)
    return figure


def counted(values: Histogram, *, title: str, label: str, of: str) -> Figure:
    """Histogram of the values of all rows: the bins of a `Histogram`, merged into 40 of equal width."""
    figure, axes = _axes(title, label, of)
    if values.n:
        minimum, *_, maximum = values.quantiles()
        edges = np.linspace(minimum, maximum, 41) if maximum > minimum else np.array([0.5 * minimum, 1.5 * minimum])
        middles = np.clip([np.exp((each + 0.5) * BIN) for each in values.counts], minimum, maximum)
        heights, _ = np.histogram(middles, edges, weights=list(values.counts.values()))
        axes.bar(edges[:-1], heights, np.diff(edges), align="edge", color=BLUE)
    return figure


def bars(values: Mapping[str, float], *, title: str, label: str) -> Figure:
    """A bar for each name, the first at the top."""
    figure, axes = _axes(title, label, "")
    axes.barh(list(values)[::-1], list(values.values())[::-1], color=BLUE, height=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", alpha=0.25, lw=0.5)
    return figure


def spectrum(centres_hz: Sequence[float], levels_db: np.ndarray) -> Figure:
    """Share of the power in third-octave bands [clips, bands]: median, and range of the middle 80 % of clips."""
    figure, axes = _axes("Spectrum", "Hz", "share of the power, dB")
    low, median, high = np.nanquantile(levels_db, (0.1, 0.5, 0.9), axis=0)
    axes.fill_between(centres_hz, low, high, color=BLUE, alpha=0.2, lw=0, label="10 to 90 % of clips")
    axes.plot(centres_hz, median, color=BLUE, lw=1.6, label="median")
    axes.set_xscale("log")
    marks = [mark for mark in (63, 250, 1000, 4000, 16000) if centres_hz[0] <= mark <= centres_hz[-1] * 1.3]
    axes.set_xticks(marks, [f"{mark / 1000:g}k" if mark >= 1000 else str(mark) for mark in marks])
    axes.minorticks_off()
    axes.set_ylim(max(-80, np.nanmin(low) - 3), 0)
    axes.legend(frameon=False, fontsize=8)
    return figure


def channels(mean: np.ndarray, std: np.ndarray) -> Figure:
    """Mean and standard deviation of each latent channel."""
    figure, axes = _axes("Latent channels", "channel", "")
    axes.plot(std, color=BLUE, lw=1.3, label="standard deviation")
    axes.plot(mean, color=ORANGE, lw=1.3, label="mean")
    axes.axhline(1, color="0.6", lw=0.8, ls=":")
    axes.axhline(0, color="0.6", lw=0.8, ls=":")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _axes(title: str, across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11, loc="left", fontweight="bold")
    axes.set_xlabel(across, fontsize=9)
    axes.set_ylabel(up, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25, lw=0.5)
    axes.set_axisbelow(True)
    if up in COUNTED:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes
