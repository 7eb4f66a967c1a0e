"""`diffaudio inspect`: the contents of a corpus, as tables and as an HTML page with pictures and players."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaudio.cli.options import check_exists
from diffaudio.config import Count, Seed, parse_command
from diffaudio.errors import UserError

if TYPE_CHECKING:
    from diffaudio.corpus.inspect.summary import Inspection

__all__ = ["run"]

MAX_CLIPS = 10000
REPORT = "inspection.json"  # its presence marks a folder that may be overwritten


@dataclass(kw_only=True)
class Options:
    """The options of `diffaudio inspect`.

    Attributes:
        corpus: folder written by `diffaudio prepare` or `diffaudio encode`.
        output: folder for an HTML page (index.html) with pictures and players.
        clips: number of clips sampled at random to be measured and shown.
        seed: random seed of the sample.
    """

    corpus: Path
    output: Path | None = None
    clips: Count = 100
    seed: Seed = 0


def run(arguments: list[str]) -> None:
    given = parse_command(
        Options,
        arguments,
        program="diffaudio inspect",
        description="Say what is in a corpus of clips or of latents, finished or not: counts, durations, loudness, "
        "spectrum, what was left out and why.",
        flags={"corpus": ("corpus",), "output": ("-o", "--output")},
    )
    if given.clips > MAX_CLIPS:
        raise UserError(f"--clips is {given.clips}; a page holds {MAX_CLIPS} at most")
    check_exists(given.corpus)
    if given.output is not None:
        _check_output(given.output)

    from diffaudio.corpus.inspect.summary import inspect
    from diffaudio.corpus.snapshot import open_corpus

    corpus = open_corpus(given.corpus)
    if given.output is None:
        inspection = inspect(corpus, num_clips=given.clips, seed=given.seed)
    else:
        inspection = _write(given.output, corpus, given.clips, given.seed)
    for line in _told(inspection):
        print(line)
    if given.output is not None:
        print(f"{given.output / 'index.html'}: to look and listen")


def _check_output(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / REPORT).is_file():
        raise UserError(
            f"{folder}: holds something else; name a folder that is new, empty, or of an earlier inspection"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder")


def _write(folder: Path, corpus: Any, num_clips: int, seed: int) -> "Inspection":
    """Inspect the corpus and write the page's folder atomically."""
    from diffaudio.atomic_io import atomic_folder
    from diffaudio.corpus.inspect.page import write_media, write_page
    from diffaudio.corpus.inspect.summary import as_json, inspect

    times_s: list[list[float]] = []
    with atomic_folder(folder) as temporary:

        def save_row(index: int, row: Mapping[str, Any]) -> None:
            times_s.append([frame["time_s"] for frame in row.get("frames") or []])
            write_media(temporary, index, row, corpus.kind)

        inspection = inspect(corpus, num_clips=num_clips, seed=seed, on_row=save_row)
        write_page(temporary, inspection, times_s)
        report = json.dumps(as_json(inspection), indent=1, ensure_ascii=False, allow_nan=False)
        (temporary / REPORT).write_text(report + "\n", encoding="utf-8")
    return inspection


def _told(inspection: "Inspection") -> Iterator[str]:
    """The lines printed to the terminal."""
    from diffaudio.corpus.inspect.summary import (
        QUANTILE_NAMES,
        format_bytes,
        format_duration,
        format_number,
        quantile_table,
    )

    corpus, totals = inspection.corpus, inspection.totals
    size = format_bytes(totals.bytes_of.total())
    parts = "1 part" if len(corpus.parts) == 1 else f"{len(corpus.parts)} parts"
    yield (
        f"{corpus.folder}: {totals.rows:,} {inspection.unit} from {totals.sources:,} sources, "
        f"{format_duration(totals.durations.total)}, {size} in {parts}"
    )
    if not corpus.finished:
        yield f"not finished: `{corpus.made_by}` continues it"
    table = [
        ["", *QUANTILE_NAMES],
        *([name, *map(format_number, row)] for name, row in quantile_table(inspection).items()),
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for name, *values in table:
        yield "  ".join(
            [f"{name:{widths[0]}}", *(f"{v:>{w}}" for v, w in zip(values, widths[1:], strict=True))]
        ).rstrip()
    yield f"* of {len(inspection.usable)} drawn with seed {inspection.seed}"
    if inspection.third_octaves_hz and inspection.usable:
        yield from _octaves(inspection)
    for name, value in (inspection.embeddings or {}).items():
        yield f"embeddings, {name.replace('_', ' ')}: {value:.3f} *"
    yield from (f"warning: {warning}" for warning in inspection.warnings)
    if any(totals.copies):
        yield f"augmented copies: {totals.rows - totals.copies[0]:,}"
    yield f"with a caption: {totals.captions:,}"
    for reason, number in totals.rejected.most_common():
        yield f"rejected as {reason}, but kept: {number:,}"
    dropped = sorted(totals.dropped.items(), key=lambda each: -each[1].lines)
    for reason, drops in dropped:
        example = drops.examples[0]
        yield f"dropped as {reason}: {drops.lines:,}, such as {example['source']} ({example['detail']})"
    if corpus.kind == "clips" and not dropped:
        yield "dropped: nothing"
    shares = ", ".join(
        f"{name or 'all else'} {format_bytes(number)}" for name, number in totals.bytes_of.most_common(4)
    )
    yield f"bytes: {shares}"


def _octaves(inspection: "Inspection") -> Iterator[str]:
    """The share of the power in each octave band, as the median over the sample."""
    import numpy as np

    from diffaudio.corpus.inspect.spectrum import OCTAVES_HZ

    levels = np.median([row["octaves_db"] for row in inspection.usable], axis=0)
    known = [(centre, level) for centre, level in zip(OCTAVES_HZ, levels, strict=True) if not np.isnan(level)]
    yield f"{'octave band, Hz':26}" + "".join(f"{centre:>7g}" for centre, _ in known)
    yield "share of the power, dB * " + "".join(f"{level:>7.1f}" for _, level in known)
