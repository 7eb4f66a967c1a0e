"""The folder of a sweep: its sounds, their measurements, the tables and the page.

    sounds/COMBINATION/       the sounds, each with its sidecar and a small spectrogram
    measured/                 the numbers of each combination
    recordings.json           the numbers of the real recordings
    report.json               all of that, as `diffaudio evaluate` writes it
    results.csv, .parquet     one row per combination
    pictures/, index.html

Every file is written atomically, and existing ones are kept: a sweep that was killed resumes where it stopped, and one
with other settings adds to the folder. Table and page show every combination in it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from diffaudio.atomic_io import atomic_file
from diffaudio.diffusion.settings import GenerationSettings
from diffaudio.errors import UserError
from diffaudio.evaluation.report import Metric, Row
from diffaudio.generation.batch import Item, is_generated
from diffaudio.generation.prompt_list import Prompt, items_of
from diffaudio.sweep.axes import AXES
from diffaudio.sweep.grid import Combination, apply_axes

__all__ = ["Measured", "Sweep", "read_measured", "write_measured"]


@dataclass(frozen=True)
class Measured:
    """The numbers of a combination's sounds, or of the real recordings.

    Attributes:
        by: everything they were measured with; if that changes, they are measured again.
        rows: rows of the report.
        recognised_as: the first classifier's label for each sound; empty if there is no classifier.
        values: the combination's values by axis; empty for recordings.
        passes: U-Net evaluations of each sound; 0 for recordings.
    """

    by: dict[str, Any]
    rows: list[Row]
    recognised_as: list[str]
    values: dict[str, Any]
    passes: int


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder and everything that belongs on its page.

    Attributes:
        prompts: the prompts of the list.
        axes: for each setting that a sweep varies, all values in the folder.
        sounds: the sounds of each combination, take by take in the order of the prompts.
        new: the combinations that this run requests; the others are from earlier runs.
        left_out: combinations that are not shown, each with the reason.
    """

    folder: Path
    prompts: list[Prompt]
    axes: Mapping[str, Sequence[Any]]
    sounds: dict[Combination, list[Item]]
    new: list[Combination]
    left_out: dict[str, str]

    @classmethod
    def plan(
        cls,
        folder: Path,
        prompts: list[Prompt],
        axes: Mapping[str, Sequence[Any]],
        combinations: Sequence[Combination],
        left_out: Mapping[str, str],
        *,
        base: GenerationSettings,
        seed: int,
        takes: int,
    ) -> "Sweep":
        """The combinations of this run, all from the same seeds, and those already in the folder.

        Args:
            base: the settings that do not vary.

        Raises:
            ValueError: the folder holds sounds of other prompts, of more takes or of other settings.
        """

        def items(name: str) -> list[Item]:
            return items_of(prompts, folder / "sounds" / name, seed, takes=takes, suffix=".flac")

        sounds = {each: items(each.name) for each in combinations}
        earlier, reasons = _earlier(folder, {each.name for each in combinations}, base, items)
        sounds = dict(chain(earlier.items(), sounds.items())) if earlier else sounds
        merged = {
            axis: _merged(values, [each.values.get(axis, AXES[axis].default) for each in earlier])  # an axis can be new
            for axis, values in axes.items()
        }
        return cls(folder, prompts, merged, sounds, list(combinations), {**left_out, **reasons})

    def measured_file(self, combination: Combination) -> Path:
        return self.folder / "measured" / f"{combination.name}.json"

    def recordings_file(self) -> Path:
        return self.folder / "recordings.json"


def read_measured(file: Path) -> Measured | None:
    """The numbers that `write_measured` wrote; None if there are none, or they are in an older format."""
    if not file.is_file():
        return None
    described = json.loads(file.read_text(encoding="utf-8"))
    if described.keys() != Measured.__dataclass_fields__.keys():
        return None
    rows = [Row(**row | {"metrics": [Metric(**metric) for metric in row["metrics"]]}) for row in described["rows"]]
    return Measured(**described | {"rows": rows})


def write_measured(file: Path, measured: Measured) -> None:
    """Write the numbers as JSON, atomically."""
    file.parent.mkdir(exist_ok=True)
    text = json.dumps(asdict(measured), ensure_ascii=False, allow_nan=False)
    with atomic_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _earlier(
    folder: Path, new: set[str], base: GenerationSettings, items: Any
) -> tuple[dict[Combination, list[Item]], dict[str, str]]:
    """Measured combinations that this run does not request, and why others are not shown."""
    found, reasons = dict[Combination, list[Item]](), dict[str, str]()
    for place in sorted((folder / "sounds").glob("*/")):
        name = place.name
        _check_names(place, {item.path.name for item in items(name)})
        if name in new:
            continue
        measured = read_measured(folder / "measured" / f"{name}.json")
        if measured is None:
            reasons[name] = "made by an earlier run, which did not measure it; run it again with these values"
            continue
        settings = apply_axes(base, measured.values)
        if all(is_generated(item, settings, None) for item in items(name)):
            found[Combination(name, measured.values, settings, measured.passes)] = items(name)
        else:
            reasons[name] = "made by an earlier run with fewer prompts or takes; run it again with these values"
    return found, reasons


def _check_names(place: Path, wanted: set[str]) -> None:
    """Refuse a run that would hide sounds in the folder."""
    others = sorted(path.name for path in place.glob("[!.]*.flac") if path.name not in wanted)
    if others:
        raise UserError(
            f"{place}: holds {len(others)} sounds, such as {others[0]}, of prompts or takes that this sweep lacks; "
            "give the same prompts and at least as many takes, or another folder"
        )


def _merged(values: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    merged = list(dict.fromkeys([*values, *others]))
    return sorted(merged) if all(isinstance(value, int | float) for value in merged) else merged
