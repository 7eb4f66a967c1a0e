"""The report of `diffaudio evaluate` as one HTML page: every number with its interval, every sound with a player.

What all pages share, and this one's parts, are in diffaudio/pages.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from diffaudio import pages
from diffaudio.evaluation.embed import AudioEmbeddings
from diffaudio.evaluation.recognition import is_recognised
from diffaudio.evaluation.report import Report, direction

__all__ = ["recognised_as", "write_evaluation_page"]


def write_evaluation_page(path: Path, report: Report, embedded: AudioEmbeddings, files: Sequence[Path]) -> None:
    """Write the page.

    Args:
        path: of the .html file.
        embedded: the sounds of the report's first row.
        files: of those sounds, one each.
    """
    names = list(dict.fromkeys(metric.name for row in report.rows for metric in row.metrics))
    by_row = [{metric.name: metric for metric in row.metrics} for row in report.rows]
    facts = {
        "backbone": ", ".join(each.name for each in report.backbones),
        "reference": report.reference or "none",
        "seed": report.seed,
        "diffaudio": report.diffaudio_version,
    }
    data = {
        "title": f"Evaluation of {report.rows[0].name}",
        "facts": facts,
        "columns": [f"{row.kind} ({row.sounds} sounds)" for row in report.rows],
        "metrics": [
            {"name": name, "direction": direction(name), "cells": [_cell(metrics.get(name)) for metrics in by_row]}
            for name in names
        ],
        "notes": report.rows[0].warnings,
        "left_out": report.rows[0].left_out,
        "sounds": _sounds(path.parent, embedded, files),
    }
    pages.write_page(path, "evaluate", data)


def recognised_as(embedded: AudioEmbeddings) -> list[str]:
    """For each sound, the most probable class of the first classifier whose classes have names, or nothing."""
    for name, logits in embedded.logits.items():
        if embedded.classes[name]:
            scores = logits.sigmoid() if name in embedded.kinds else logits.softmax(dim=1)
            best = scores.max(dim=1)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            return [f"{embedded.classes[name][index]} ({value:.2f})" for index, value in pairs]
    return [""] * len(embedded)


def _is_right(embedded: AudioEmbeddings) -> list[bool | None]:
    """Whether that classifier recognises each sound as what it should be; None where that is not known."""
    for name in embedded.logits:
        if embedded.classes[name]:
            return is_recognised(embedded, name)
    return [None] * len(embedded)


def _sounds(folder: Path, embedded: AudioEmbeddings, files: Sequence[Path]) -> list[dict[str, Any]]:
    recognised, right, checks = recognised_as(embedded), _is_right(embedded), embedded.checks
    sounds = []
    for index, file in enumerate(files):
        loudness = float(checks.loudness[index])
        faults = [name for name in ("silent", "clipped") if bool(getattr(checks, name)[index])]
        sounds.append(
            {
                "address": quote(Path(os.path.relpath(file, folder)).as_posix()),
                "name": embedded.names[index],
                "wanted": embedded.wanted()[index],
                "recognised": recognised[index],
                "right": right[index],
                "loudness": loudness if math.isfinite(loudness) else None,
                "faults": ", ".join(faults),
            }
        )
    return sounds


def _cell(metric: Any) -> dict[str, Any] | None:
    return None if metric is None else {key: getattr(metric, key) for key in ("value", "low", "high", "n")}
