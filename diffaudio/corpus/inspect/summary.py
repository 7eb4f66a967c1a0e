"""What is in a corpus, in numbers: totals of all rows, and a sample that is looked at closely."""

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

__all__ = ["HEAD", "Inspection", "as_json", "inspect", "numbers", "told_bytes", "told_number", "told_time"]

HEAD = ("least", "10 %", "median", "90 %", "most")
HIGHEST_HZ = 24000.0
SAMPLED = {  # what is told of the sample: entry of its rows, and title
    "clips": {
        "loudness_lufs": "loudness, LUFS *",
        "peak_db": "peak, dB *",
        "bandwidth_hz": "99 % of the power below, Hz *",
    },
    "latents": {"deviation": "deviation of a row's latents *", "largest": "largest latent of a row *"},
}


@dataclass(frozen=True)
class Inspection:
    """A corpus in numbers.

    Attributes:
        sample: of its rows, as `describe_clip` or `describe_latents` tells of them.
        seed: that it was drawn with.
        thirds_hz: centres of the bands of `thirds_db`.
        channels: statistics of the latents' channels, for latents.
        embeddings: as `embedding_statistics` has them, for latents.
    """

    corpus: Corpus
    totals: Totals
    sample: list[dict[str, Any]]
    seed: int
    thirds_hz: tuple[float, ...] = ()
    channels: LatentStatistics | None = None
    embeddings: Mapping[str, float] | None = None

    @property
    def unit(self) -> str:
        """What a row is."""
        return "clips" if self.corpus.kind == "clips" else "rows"

    @property
    def kept(self) -> list[dict[str, Any]]:
        """The sample without the rows that are marked."""
        return [row for row in self.sample if row.get("reason") is None]

    @property
    def warnings(self) -> list[str]:
        """What is wrong with the latents, as sentences."""
        return latent_warnings(self.channels) if self.channels is not None and self.sample else []


def inspect(
    corpus: Corpus,
    *,
    num_clips: int = 100,
    seed: int = 0,
    seen: Callable[[int, Mapping[str, Any]], None] = lambda index, row: None,
) -> Inspection:
    """Look at a corpus, whether it is finished or not.

    Args:
        num_clips: rows of the sample.
        seed: that the sample is drawn with, and the examples of what was left out.
        seen: called with each row of the sample and its place there, while it is in memory.

    Raises:
        ValueError: a part is damaged.
    """
    totals = count(corpus, seed=seed)
    rows = enumerate(draw_rows(corpus, num_clips, seed=seed))
    sample: list[dict[str, Any]] = []
    if corpus.kind == "clips":
        thirds_hz = spectrum.third_octaves_hz(
            min(HIGHEST_HZ, corpus.manifest["settings"].get("sample_rate", 48000) / 2)
        )
        for index, row in rows:
            sample.append(describe_clip(row, thirds_hz))
            seen(index, row)
        return Inspection(corpus, totals, sample, seed, thirds_hz)
    num_channels = corpus.manifest["autoencoder"]["latent_channels"]
    channels = LatentStatistics(num_channels)
    embeddings: list[np.ndarray] = []
    for index, row in rows:
        channels.add(row["latents"].reshape(num_channels, -1))
        embeddings.append(row["embeddings"])
        sample.append(describe_latents(row))
        seen(index, row)
    lie = embedding_statistics(embeddings, [row["source"] for row in sample]) if sample else None
    return Inspection(corpus, totals, sample, seed, channels=channels, embeddings=lie)


def numbers(inspection: Inspection) -> dict[str, list[float]]:
    """Quantiles as in `HEAD` by what they are of; the names of what only the sample tells end in a star."""
    totals, unit = inspection.totals, inspection.unit
    told: dict[str, list[float]] = {}
    if totals.rows:
        told["duration, s"] = totals.durations.quantiles()
        told[f"{unit} a source"] = counted_quantiles(totals.rows_a_source)
    if totals.pictures:
        told[f"pictures a {unit[:-1]}"] = counted_quantiles(totals.pictures)
    for key, title in SAMPLED[inspection.corpus.kind].items():
        known = [row[key] for row in inspection.kept if math.isfinite(row[key])]
        if known:
            told[title] = np.quantile(known, QUANTILES).tolist()
    return told


def as_json(inspection: Inspection) -> dict[str, Any]:
    """All of it, in types that JSON has; what is not finite is null."""
    corpus, totals, channels = inspection.corpus, inspection.totals, inspection.channels
    told: dict[str, Any] = {
        "corpus": str(corpus.folder),
        "finished": corpus.finished,
        "manifest": corpus.manifest,
        "rows": totals.rows,
        "seconds": totals.durations.total,
        "sources": totals.sources,
        "captions": totals.captions,
        "marked": dict(totals.marked),
        "copies": {str(copy): rows for copy, rows in sorted(totals.copies.items())},
        "bytes": dict(totals.bytes_of),
        "left_out": {
            reason: {"lines": left.lines, "seconds": left.seconds, "examples": left.examples}
            for reason, left in totals.left_out.items()
        },
        "quantiles": {name: dict(zip(HEAD, values, strict=True)) for name, values in numbers(inspection).items()},
        "seed": inspection.seed,
        "sample": inspection.sample,
    }
    if inspection.thirds_hz:
        told |= {"octaves_hz": spectrum.OCTAVES_HZ, "thirds_hz": inspection.thirds_hz}
    if channels is not None:
        told["channels"] = {"mean": channels.mean, "deviation": channels.deviation}
        told["warnings"] = inspection.warnings
        told["embeddings"] = inspection.embeddings
    return _plain(told)


def told_number(value: float) -> str:
    """A number as a reader wants it: three digits or so."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    if float(value).is_integer() or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{round(value, 2) + 0.0:.2f}"


def told_time(seconds: float) -> str:
    """Such as 1 h 12 min, 3 min 20 s or 4.5 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(round(seconds / 60), 60)
    return f"{minutes} min {rest} s" if seconds < 3600 else f"{hours:,} h {minutes_left} min"


def told_bytes(size: float) -> str:
    """Such as 12.3 MB; a MB is a million."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
