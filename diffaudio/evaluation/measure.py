"""The numbers of one set of sounds that was embedded, each with its interval.

Distances hold the set against a reference; what a classifier, a text or a check says is a value a sound, and its mean.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffaudio.errors import UserError
from diffaudio.evaluation.embed import AudioEmbeddings
from diffaudio.evaluation.report import Metric
from diffaudio.metrics.audio_checks import repeated
from diffaudio.metrics.classification import (
    class_indices,
    inception_score,
    is_correct,
    kl_divergences,
    label_key,
    mean_by_label,
)
from diffaudio.metrics.confidence import Interval, bootstrap_mean, half_samples, wilson
from diffaudio.metrics.frechet import SIZES, Gaussian, fit_gaussian, frechet_between, frechet_infinity
from diffaudio.metrics.kernel import KernelReference, distance_from_kernels, fit_kernel, kernel_between
from diffaudio.metrics.prdc import Balls, coverage_from_distances, embedding_distances, fit_balls
from diffaudio.metrics.similarity import cosines, diversities

__all__ = [
    "Reference",
    "Table",
    "accuracy",
    "distances",
    "divergence",
    "faults",
    "inception",
    "likeness_to_text",
    "variety",
]

FEWEST_TO_EXTRAPOLATE = 8
SIZES_IN_INTERVAL = 5  # of the extrapolated distance: it is found anew for each half-sample


@dataclass(frozen=True)
class _Fits:
    """What the distances need to know of the reference in one backbone's space."""

    gaussian: Gaussian
    kernel: KernelReference
    balls: Balls


class Reference:
    """Recordings that were embedded, with what the distances need of them, found once.

    Args:
        fewest: how many there have to be; of 12, half can be held against the others.

    Raises:
        ValueError: there are fewer, or a backbone hears no difference between them.
    """

    def __init__(self, recordings: AudioEmbeddings, *, fewest: int = 12) -> None:
        if len(recordings) < fewest:
            raise UserError(f"the reference has {len(recordings)} recordings; give at least {fewest}")
        self.recordings = recordings
        self.fits = {name: _fit(torch.cat(windows)) for name, windows in recordings.embeddings.items()}


def _fit(embeddings: Tensor) -> _Fits:
    return _Fits(fit_gaussian(embeddings), fit_kernel(embeddings), fit_balls(embeddings))


@dataclass
class Table:
    """Metrics as they are found; each has a generator of its own, so that none depends on which others are asked for.

    Attributes:
        seed, resamples: of the intervals.
    """

    seed: int
    resamples: int
    metrics: list[Metric] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def generator(self, name: str) -> torch.Generator:
        """The one of a metric."""
        return torch.Generator().manual_seed((self.seed + zlib.crc32(name.encode())) % 2**63)

    def add_mean(self, name: str, values: Tensor, reference_n: int | None = None) -> None:
        """The mean of a value a sound [n]; a share where the values are 0 and 1."""
        mean = float(values.double().mean())
        if bool(((values == 0) | (values == 1)).all()):
            interval = wilson(mean, len(values))
        else:
            interval = bootstrap_mean(values, generator=self.generator(name), resamples=self.resamples)
        self._add(name, mean, interval, len(values), reference_n)

    def add_whole(
        self,
        name: str,
        statistic: Callable[[Tensor], float],
        n: int,
        reference_n: int | None = None,
        *,
        value: float | None = None,
        fewest: int = 2,
        bounds: tuple[float, float] = (-math.inf, math.inf),
    ) -> None:
        """A number of the set as a whole, which `statistic` gives for some of the n sounds by their indices.

        Args:
            value: for all of them, where it is not found as for half of them.
            fewest, bounds: see `half_samples`.
        """
        if n < fewest:
            self.left_out[name] = f"{n} sounds are too few; {fewest} are needed"
            return
        value = statistic(torch.arange(n)) if value is None else value
        interval = half_samples(
            statistic,
            value,
            n,
            generator=self.generator(name),
            resamples=self.resamples,
            fewest=fewest,
            bounds=bounds,
        )
        self._add(name, value, interval, n, reference_n)

    def add_value(self, name: str, value: float, n: int) -> None:
        """A number without an interval."""
        self._add(name, value, None, n, None)

    def _add(self, name: str, value: float, interval: Interval | None, n: int, reference_n: int | None) -> None:
        low, high, method = (interval.low, interval.high, interval.method) if interval else (None, None, None)
        self.metrics.append(Metric(name, value, low, high, method, n, reference_n))


class _Windows:
    """All embeddings of a set of sounds [total, dim], and which sound each is of."""

    def __init__(self, windows: list[Tensor]) -> None:
        self.embeddings = torch.cat(windows)
        self._owner = torch.repeat_interleave(torch.tensor([len(each) for each in windows]))

    def rows(self, sounds: Tensor) -> Tensor:
        """The rows of some of the sounds, given by their indices."""
        return torch.isin(self._owner, sounds).nonzero()[:, 0]


def distances(embedded: AudioEmbeddings, reference: Reference, table: Table) -> None:
    """Fréchet distance and its extrapolation, kernel distance, precision, recall, density and coverage."""
    counts = len(embedded), len(reference.recordings)
    for name, of_each in embedded.embeddings.items():
        windows, fits = _Windows(of_each), reference.fits[name]
        _add_frechet(name, windows, fits.gaussian, counts, table)
        _add_kernel(name, windows, fits.kernel, counts, table)
        _add_coverage(name, windows, fits.balls, counts, table)


def _add_frechet(name: str, windows: _Windows, reference: Gaussian, counts: tuple[int, int], table: Table) -> None:
    def frechet(sounds: Tensor) -> float:
        return frechet_between(fit_gaussian(windows.embeddings[windows.rows(sounds)]), reference)

    def extrapolated(sounds: Tensor, sizes: int = SIZES_IN_INTERVAL) -> float:
        generator = table.generator(f"fd_inf_{name}")
        embeddings = windows.embeddings[windows.rows(sounds)]
        return frechet_infinity(embeddings, reference, generator=generator, sizes=sizes)

    table.add_whole(f"fd_{name}", frechet, *counts, bounds=(0, math.inf))
    everything = torch.arange(counts[0])
    value = extrapolated(everything, sizes=SIZES) if counts[0] >= FEWEST_TO_EXTRAPOLATE else None
    table.add_whole(f"fd_inf_{name}", extrapolated, *counts, value=value, fewest=FEWEST_TO_EXTRAPOLATE)
    total, dim = windows.embeddings.shape
    if total <= dim:
        table.warnings.append(
            f"fd_{name}: {total} embeddings of {dim} dimensions leave the covariance singular: the distance is too "
            f"high, and fd_inf_{name} may take off too little or too much; compare it only with sets of as many "
            f"sounds, such as the real row, or take kad_{name}, which few sounds make uncertain but not biased"
        )


def _add_kernel(
    name: str, windows: _Windows, reference: KernelReference, counts: tuple[int, int], table: Table
) -> None:
    within, across = kernel_between(windows.embeddings, reference)

    def kad(sounds: Tensor) -> float:
        rows = windows.rows(sounds)
        return distance_from_kernels(within[rows][:, rows], across[rows], reference)

    table.add_whole(f"kad_{name}", kad, *counts)


def _add_coverage(name: str, windows: _Windows, reference: Balls, counts: tuple[int, int], table: Table) -> None:
    within = embedding_distances(windows.embeddings, windows.embeddings)
    across = embedding_distances(windows.embeddings, reference.embeddings)
    for which in ("precision", "recall", "density", "coverage"):

        def share(sounds: Tensor, which: str = which) -> float:
            rows = windows.rows(sounds)
            return getattr(coverage_from_distances(within[rows][:, rows], across[rows], reference), which)

        most = math.inf if which == "density" else 1
        fewest = reference.neighbours + 1
        table.add_whole(f"{which}_{name}", share, *counts, fewest=fewest, bounds=(0, most))


def inception(embedded: AudioEmbeddings, table: Table) -> None:
    """Inception score by each classifier."""
    for name, logits in embedded.logits.items():
        probabilities = logits.softmax(dim=1)

        def score(sounds: Tensor, probabilities: Tensor = probabilities) -> float:
            return inception_score(probabilities[sounds])

        table.add_whole(f"inception_score_{name}", score, len(embedded), bounds=(1, logits.shape[1]))


def accuracy(embedded: AudioEmbeddings, table: Table) -> None:
    """Share of sounds that each classifier takes for what they should be."""
    for name, logits in embedded.logits.items():
        indices = class_indices(embedded.wanted(), embedded.classes[name])
        known = indices >= 0
        if known.any():
            table.add_mean(f"accuracy_{name}", is_correct(logits[known], indices[known]))
        else:
            table.left_out[f"accuracy_{name}"] = "no sound has a label, or a prompt, that is one of the classes"


def divergence(embedded: AudioEmbeddings, reference: Reference, table: Table) -> None:
    """KL from the recording of the same name where each sound has one, else from the mean over those of its label."""
    recordings = reference.recordings
    place = {name: index for index, name in enumerate(recordings.names)}
    for name, logits in embedded.logits.items():
        probabilities, of_reference = logits.softmax(dim=1), recordings.logits[name].softmax(dim=1)
        if all(sound in place for sound in embedded.names):
            partners = of_reference[[place[sound] for sound in embedded.names]]
            table.add_mean(f"kl_{name}", kl_divergences(partners, probabilities), len(recordings))
            continue
        means = mean_by_label(of_reference, recordings.labels)
        wanted = [label_key(label) for label in embedded.wanted()]
        paired = [index for index, label in enumerate(wanted) if label in means]
        if paired:
            partners = torch.stack([means[wanted[index]] for index in paired])
            table.add_mean(f"kl_label_{name}", kl_divergences(partners, probabilities[paired]), len(recordings))
        else:
            reason = "neither has each sound a recording of the same name in the reference, nor any of the same label"
            table.left_out[f"kl_{name}"] = reason


def likeness_to_text(embedded: AudioEmbeddings, table: Table) -> None:
    """Cosine of each sound and its prompt, in every space that has both."""
    for name, sounds in embedded.sounds_as_text.items():
        texts = embedded.texts[name]
        has_text = texts.isfinite().all(dim=1)
        if has_text.any():
            table.add_mean(name, cosines(sounds[has_text], texts[has_text]))
        else:
            table.left_out[name] = "no sound has a prompt or a label"


def variety(embedded: AudioEmbeddings, table: Table) -> None:
    """How far takes of one prompt, or sounds of one label where there are no prompts, lie from each other."""
    said = [prompt or label for prompt, label in zip(embedded.prompts, embedded.labels, strict=True)]
    known = [index for index, text in enumerate(said) if text is not None]
    for name, windows in embedded.embeddings.items():
        means = [windows[index].mean(dim=0) for index in known]
        values = diversities(torch.stack(means), [said[index] for index in known]) if known else torch.empty(0)
        if len(values):
            table.add_mean(f"diversity_{name}", values)
        else:
            table.left_out[f"diversity_{name}"] = "no prompt has more than one take"


def faults(embedded: AudioEmbeddings, table: Table) -> None:
    """Shares of silent, clipped and repeated sounds, and the mean loudness of those that are not silent."""
    table.add_mean("silent", embedded.checks.silent)
    table.add_mean("clipped", embedded.checks.clipped)
    table.add_mean("repeated", repeated(embedded.checks.fingerprints))
    loud = embedded.checks.loudness[embedded.checks.loudness.isfinite()]
    if len(loud):
        table.add_mean("loudness_lufs", loud)
    else:
        table.left_out["loudness_lufs"] = "all sounds are silent, or shorter than 0.4 s"
