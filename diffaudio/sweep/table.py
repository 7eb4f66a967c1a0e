"""The table of a sweep: one row per combination, with its cost and its quality.

    passes               U-Net evaluations per sound
    seconds_per_sound    from prompt embedding to waveform: a batch's time over its size; the median over the sounds
    real_time_factor     those seconds over the sound's duration; below 1 is faster than real time

Metrics follow as NAME, NAME_low, NAME_high (the interval) and NAME_n (number of sounds). The rows `real` and `shuffled`
have only metrics: those of recordings, and those of each combination with its prompts permuted at random.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffaudio.atomic_io import atomic_file

__all__ = ["pareto_line", "timing_columns", "with_mean_of_shuffled", "write_tables"]


def timing_columns(sidecars: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The cost of a combination's sounds, from their sidecars."""
    seconds = median(each["timing"]["batch_seconds"] / each["timing"]["batch_size"] for each in sidecars)
    return {"seconds_per_sound": seconds, "real_time_factor": seconds / sidecars[0]["duration_s"]}


def with_mean_of_shuffled(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of a table with all shuffled rows replaced by their mean, for plots and page."""
    shuffled = [row for row in rows if row["kind"] == "shuffled"]
    mean: dict[str, Any] = {"kind": "shuffled", "combination": "shuffled labels, mean"}
    for name in shuffled[0] if shuffled else ():
        if f"{name}_n" in shuffled[0]:
            mean[name] = sum(row[name] for row in shuffled) / len(shuffled)
    return [row for row in rows if row["kind"] != "shuffled"] + [mean] * bool(shuffled)


def pareto_line(costs: Sequence[float], values: Sequence[float], *, higher_is_better: bool) -> list[int]:
    """Indices of the points that no other beats at the same or lower cost, cheapest first."""
    sign = 1 if higher_is_better else -1
    line, best = [], float("-inf")
    for place in sorted(range(len(costs)), key=lambda place: (costs[place], -sign * values[place])):
        if sign * values[place] > best:
            line.append(place)
            best = sign * values[place]
    return line


def write_tables(folder: Path, rows: Sequence[Mapping[str, Any]], described: Mapping[str, Any]) -> None:
    """Write results.csv and results.parquet; missing values are empty.

    Args:
        described: facts about the sweep as a whole, stored as JSON in the Parquet metadata under `diffaudio`.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with atomic_file(folder / "results.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    table = pa.Table.from_pylist([{column: row.get(column) for column in columns} for row in rows])
    table = table.replace_schema_metadata({"diffaudio": json.dumps(described, ensure_ascii=False)})
    with atomic_file(folder / "results.parquet") as temporary:
        pq.write_table(table, temporary)
