"""A sweep as one HTML page: table, plots, spectrograms and players, with filters and sorting.

The templates of this page, and those shared by all pages, are in diffaudio/pages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffaudio import pages
from diffaudio.evaluation.report import direction

__all__ = ["PageSound", "sound_path", "write_page"]

UNITS = {"steps": "steps"}
SHORT = {"guidance_scale": "scale"}
COSTS = {
    "passes": "U-Net evaluations a sound takes",
    "seconds_per_sound": "its share of a batch, from embedding to waveform; the median",
    "real_time_factor": "seconds over the sound's duration; below 1 is faster than it plays",
}
SETTINGS = ("sampler", "steps", "guidance_scale")  # columns that are always shown at first
SHOWN = ("accuracy_", "recognised_at_5_", "clap_score_", "clip_score_", "fd_", "kad_")  # if there are any


@dataclass(frozen=True)
class PageSound:
    """One sound of the page.

    Attributes:
        row: index of its combination among the rows.
        prompt: index of its prompt among the prompts.
        take: from 1.
        path: relative to the page, URL-encoded, without suffix; its picture has the same with .png.
        suffix: of the sound's file.
        recognised: what a classifier takes it for; empty where there is none.
    """

    row: int
    prompt: int
    take: int
    path: str
    suffix: str
    recognised: str = ""


def sound_path(file: Path, folder: Path) -> str:
    """A `PageSound.path`."""
    return pages.address(file.with_suffix(""), folder)


def write_page(
    folder: Path,
    *,
    facts: Mapping[str, Any],
    axes: Mapping[str, Sequence[Any]],
    rows: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, Mapping[str, str]],
    prompts: Sequence[str],
    sounds: Sequence[PageSound],
    left_out: Mapping[str, str],
) -> None:
    """Write index.html.

    Args:
        facts: properties that all sounds have in common, by name, including `model`.
        axes: the values of each setting that varies or may vary.
        rows: of the table, those of the real recordings and shuffled labels among them.
        pictures: by metric and by what they show, the names of the files in pictures/.
        prompts: their texts.
        left_out: combinations that are not shown, with the reason.
    """
    data = {
        "title": f"Sweep of {facts['model']}",
        "facts": facts,
        "left_out": left_out,
        "axes": [
            {
                "name": name,
                "title": name.replace("_", " "),
                "values": values,
                "unit": UNITS.get(name),
                "short": SHORT.get(name),
            }
            for name, values in axes.items()
        ],
        "columns": _columns(rows, axes),
        "metrics": [{"name": metric, "pictures": of_metric} for metric, of_metric in pictures.items()],
        "rows": rows,
        "prompts": [{"text": prompt} for prompt in prompts],
        "sounds": [asdict(sound) for sound in sounds],
    }
    pages.write_page(folder / "index.html", "sweep", data)


def _columns(rows: Sequence[Mapping[str, Any]], axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The table's columns: settings, costs, metrics."""
    columns = [
        _column(name, visible=len(values) > 1 or name in SETTINGS, exact=True, text=isinstance(values[0], str))
        for name, values in axes.items()
    ]
    columns += [_column(name, direction=-1, exact=name == "passes", help=help) for name, help in COSTS.items()]
    names = list(dict.fromkeys(name for row in rows for name in row))
    metrics = [name for name in names if f"{name}_n" in names]
    shown = [name for name in metrics if name.startswith(SHOWN)] or metrics
    for name in metrics:
        better = {1: "higher is better", -1: "lower is better", 0: ""}[direction(name)]
        columns.append(_column(name, direction=direction(name), visible=name in shown, help=better))
    return columns


def _column(
    name: str, *, direction: int = 0, visible: bool = True, exact: bool = False, text: bool = False, help: str = ""
) -> dict[str, Any]:
    """The page's description of a column; the numbers of an `exact` column are not rounded."""
    title = name.replace("_", " ")
    return {
        "name": name,
        "title": title,
        "direction": direction,
        "visible": visible,
        "exact": exact,
        "text": text,
        "help": help,
    }
