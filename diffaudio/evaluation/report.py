"""The report: what was measured, of which sounds, by which backbone, and how certain it is. All commands share it.

A metric's name says its backbone: `fd_tagger_mini`, `accuracy_tagger_mini`. A row is one set of sounds:

    evaluated       a folder, or one combination of a sweep
    real            recordings held out of the reference, compared with the others: what real sound reaches
    shuffled        the evaluated sounds with labels and prompts permuted at random: what is reached by chance
    reconstructed   recordings after a round trip through an autoencoder
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diffaudio import __version__
from diffaudio.atomic_io import atomic_file
from diffaudio.errors import UserError
from diffaudio.metrics.confidence import CONFIDENCE

__all__ = ["BackboneInfo", "Metric", "Report", "Row", "direction", "read_report", "write_report"]

FORMAT = "diffaudio-report"
HIGHER_IS_BETTER = (
    "accuracy", "agreement", "clap_score", "clip_score", "coverage", "diversity", "inception_score", "precision",
    "recall", "recognised_at_5", "si_sdr_db",
)  # fmt: skip
LOWER_IS_BETTER = ("clipped", "fd", "kad", "kl", "log_mel_distance_db", "repeated", "silent")
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Metric:
    """One number.

    Attributes:
        name: what it is, with its backbone.
        value: the number for the sounds at hand.
        low, high: the interval (`diffaudio.metrics.confidence`); None where there is none.
        method: how the interval was computed.
        n: how many evaluated sounds are in it; fewer than the row has where some lack a label, a prompt, …
        reference_n: how many recordings of the reference are in it; None where it needs none.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    method: str | None
    n: int
    reference_n: int | None = None


@dataclass(frozen=True)
class Row:
    """The numbers of one set of sounds.

    Attributes:
        name: the folder, or the combination.
        kind: "evaluated", "real", "shuffled" or "reconstructed".
        sounds: how many there are.
        seconds: how long they are together.
        metrics: in the order of the table.
        left_out: metrics that could not be measured, each with the reason.
        warnings: what to consider when reading the numbers.
    """

    name: str
    kind: str
    sounds: int
    seconds: float
    metrics: list[Metric]
    left_out: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Metric:
        """The metric of that name; KeyError where it was left out."""
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise KeyError(name)

    def columns(self) -> dict[str, float | int | None]:
        """One flat table row: each metric as NAME, NAME_low, NAME_high and NAME_n."""
        flat: dict[str, float | int | None] = {}
        for metric in self.metrics:
            flat |= {metric.name: metric.value, f"{metric.name}_low": metric.low, f"{metric.name}_high": metric.high}
            flat[f"{metric.name}_n"] = metric.n
        return flat


@dataclass(frozen=True)
class BackboneInfo:
    """A backbone: what turned sounds into embeddings.

    Attributes:
        name: as in the metrics' names.
        checkpoint: sha256 of the weights file, in hexadecimal.
        sample_rate: of its input, in Hz.
        resampler: how sounds of other rates were converted; it alone can move a Fréchet distance.
        embedding_dim: size of an embedding.
    """

    name: str
    checkpoint: str
    sample_rate: int
    resampler: str
    embedding_dim: int


@dataclass(frozen=True)
class Report:
    """All rows, and what they have in common.

    Attributes:
        reference: the folder of real recordings; None where there was none.
        labels: the file of labels, where one was given.
        clip: whose text embeddings the CLIP-space score uses; None where it was not measured.
        clip_checkpoint: sha256 of its weights file; None where that is not a local one.
        seed: of everything random: intervals, subsets, the split of the reference, the permutation of labels.
        resamples: draws for each interval.
    """

    backbones: list[BackboneInfo]
    rows: list[Row]
    seed: int
    resamples: int
    reference: str | None = None
    labels: str | None = None
    clip: str | None = None
    clip_checkpoint: str | None = None
    confidence: float = CONFIDENCE
    diffaudio_version: str = __version__


def write_report(path: Path, report: Report) -> None:
    """Write a report as JSON, whole or not at all."""
    described: dict[str, Any] = {"format": FORMAT, "version": FORMAT_VERSION, **asdict(report)}
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(described, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def read_report(path: Path) -> Report:
    """Read what `write_report` wrote.

    Raises:
        ValueError: there is no such file, it is no report, damaged, or of a newer version.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such report")
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        form, version = described.pop("format"), described.pop("version")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: is no report of `diffaudio evaluate`") from error
    if form != FORMAT or version != FORMAT_VERSION:
        raise UserError(f"{path}: is '{form}' version {version}; this diffaudio reads {FORMAT} {FORMAT_VERSION}")
    try:
        described["backbones"] = [BackboneInfo(**each) for each in described["backbones"]]
        described["rows"] = [
            Row(**row | {"metrics": [Metric(**metric) for metric in row["metrics"]]}) for row in described["rows"]
        ]
        return Report(**described)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged: {error}") from error


def direction(metric: str) -> int:
    """1 where more is better, -1 where less is, 0 where neither holds (density, loudness)."""
    for sign, families in ((1, HIGHER_IS_BETTER), (-1, LOWER_IS_BETTER)):
        if any(metric == family or metric.startswith(f"{family}_") for family in families):
            return sign
    return 0
