"""A corpus in numbers: totals of all rows, and a sample that is measured."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffaudio.corpus.inspect import spectrum
from diffaudio.corpus.inspect.latent_statistics import LatentStatistics, latent_warnings
from diffaudio.corpus.inspect.sample_rows import describe_clip, describe_latents, draw_rows, embedding_statistics
from diffaudio.corpus.inspect.totals import QUANTILES, Totals, count, counted_quantiles
from diffaudio.corpus.snapshot import Corpus

__all__ = [
    "QUANTILE_NAMES",
    "Inspection",
    "as_json",
    "format_bytes",
    "format_duration",
    "format_number",
    "inspect",
    "quantile_table",
]

QUANTILE_NAMES = ("minimum", "10 %", "median", "90 %", "maximum")
HIGHEST_HZ = 24000.0
SAMPLE_COLUMNS = {  # shown of the sample: key in its rows, and title
    "clips": {
        "loudness_lufs": "loudness, LUFS *",
        "peak_db": "peak, dB *",
        "bandwidth_hz": "99 % of the power below, Hz *",
    },
    "latents": {"std": "standard deviation of a row's latents *", "largest": "largest latent of a row *"},
}


@dataclass(frozen=True)
class Inspection:
    """A corpus in numbers.

    Attributes:
        sample: rows drawn at random, as `describe_clip` or `describe_latents` returns them.
        seed: of the sample.
        third_octaves_hz: centre frequencies of the bands of `third_octaves_db`.
        channels: statistics of the latents by channel, of an encoded corpus.
        embeddings: as `embedding_statistics` returns them, of an encoded corpus.
    """

    corpus: Corpus
    totals: Totals
    sample: list[dict[str, Any]]
    seed: int
    third_octaves_hz: tuple[float, ...] = ()
    channels: LatentStatistics | None = None
    embeddings: Mapping[str, float] | None = None

    @property
    def unit(self) -> str:
        """What a row is called."""
        return "clips" if self.corpus.kind == "clips" else "rows"

    @property
    def usable(self) -> list[dict[str, Any]]:
        """The sample without the rows that a filter rejected."""
        return [row for row in self.sample if row.get("reason") is None]

    @property
    def warnings(self) -> list[str]:
        """What is wrong with the latents, a sentence each."""
        return latent_warnings(self.channels) if self.channels is not None and self.sample else []


def inspect(
    corpus: Corpus,
    *,
    num_clips: int = 100,
    seed: int = 0,
    on_row: Callable[[int, Mapping[str, Any]], None] = lambda index, row: None,
) -> Inspection:
    """Count and measure a corpus, finished or not.

    Args:
        num_clips: rows of the sample.
        seed: of the sample, and of the examples of what was dropped.
        on_row: called with the index and the row of each row of the sample, while it is in memory.

    Raises:
        ValueError: a part is damaged.
    """
    totals = count(corpus, seed=seed)
    rows = enumerate(draw_rows(corpus, num_clips, seed=seed))
    sample: list[dict[str, Any]] = []
    if corpus.kind == "clips":
        third_octaves_hz = spectrum.third_octaves_hz(
            min(HIGHEST_HZ, corpus.manifest["settings"].get("sample_rate", 48000) / 2)
        )
        for index, row in rows:
            sample.append(describe_clip(row, third_octaves_hz))
            on_row(index, row)
        return Inspection(corpus, totals, sample, seed, third_octaves_hz)
    num_channels = corpus.manifest["autoencoder"]["latent_channels"]
    channels = LatentStatistics(num_channels)
    embeddings: list[np.ndarray] = []
    for index, row in rows:
        channels.add(row["latents"].reshape(num_channels, -1))
        embeddings.append(row["embeddings"])
        sample.append(describe_latents(row))
        on_row(index, row)
    embedding_numbers = embedding_statistics(embeddings, [row["source"] for row in sample]) if sample else None
    return Inspection(corpus, totals, sample, seed, channels=channels, embeddings=embedding_numbers)


def quantile_table(inspection: Inspection) -> dict[str, list[float]]:
    """Quantiles (QUANTILE_NAMES) of each quantity by its title, which ends in a star where the sample was measured."""
    totals, unit = inspection.totals, inspection.unit
    result: dict[str, list[float]] = {}
    if totals.rows:
        result["duration, s"] = totals.durations.quantiles()
        result[f"{unit} a source"] = counted_quantiles(totals.rows_a_source)
    if totals.pictures:
        result[f"pictures a {unit[:-1]}"] = counted_quantiles(totals.pictures)
    for key, title in SAMPLE_COLUMNS[inspection.corpus.kind].items():
        known = [row[key] for row in inspection.usable if math.isfinite(row[key])]
        if known:
            result[title] = np.quantile(known, QUANTILES).tolist()
    return result


def as_json(inspection: Inspection) -> dict[str, Any]:
    """The inspection in JSON's types; numbers that are not finite become null."""
    corpus, totals, channels = inspection.corpus, inspection.totals, inspection.channels
    result: dict[str, Any] = {
        "corpus": str(corpus.folder),
        "finished": corpus.finished,
        "manifest": corpus.manifest,
        "rows": totals.rows,
        "seconds": totals.durations.total,
        "sources": totals.sources,
        "captions": totals.captions,
        "rejected": dict(totals.rejected),
        "copies": {str(copy): rows for copy, rows in sorted(totals.copies.items())},
        "bytes": dict(totals.bytes_of),
        "dropped": {
            reason: {"lines": drops.lines, "seconds": drops.seconds, "examples": drops.examples}
            for reason, drops in totals.dropped.items()
        },
        "quantiles": {
            name: dict(zip(QUANTILE_NAMES, values, strict=True)) for name, values in quantile_table(inspection).items()
        },
        "seed": inspection.seed,
        "sample": inspection.sample,
    }
    if inspection.third_octaves_hz:
        result |= {"octaves_hz": spectrum.OCTAVES_HZ, "third_octaves_hz": inspection.third_octaves_hz}
    if channels is not None:
        result["channels"] = {"mean": channels.mean, "std": channels.std}
        result["warnings"] = inspection.warnings
        result["embeddings"] = inspection.embeddings
    return _to_builtin(result)


def format_number(value: float) -> str:
    """A number for reading, with about three digits."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    if float(value).is_integer() or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{round(value, 2) + 0.0:.2f}"


def format_duration(seconds: float) -> str:
    """Such as 1 h 12 min, 3 min 20 s or 4.5 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(round(seconds / 60), 60)
    return f"{minutes} min {rest} s" if seconds < 3600 else f"{hours:,} h {minutes_left} min"


def format_bytes(size: float) -> str:
    """Such as 12.3 MB; a MB is a million."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def _to_builtin(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _to_builtin(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_to_builtin(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
