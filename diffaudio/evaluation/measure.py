"""The metrics of one set of embedded sounds, each with its interval.

Distances compare the set with a reference; a classifier, a text or a check gives one value per sound, and their mean.

Some backbones give several embeddings per sound, one for each window. Those are not independent, so:

- the kernel distance, precision, recall, density, coverage and diversity take each sound's mean embedding;
- the Fréchet distance takes all embeddings, as published ones do; its extrapolation and all intervals draw sounds.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from diffaudio.evaluation.embed import AudioEmbeddings
from diffaudio.evaluation.reference import Reference
from diffaudio.evaluation.table import Table
from diffaudio.metrics.audio_checks import repeated
from diffaudio.metrics.classification import (
    class_indices,
    inception_score,
    is_correct,
    is_in_top,
    kl_as_audioldm_eval,
    kl_divergences,
    label_of_text,
    mean_log_probabilities_by_label,
)
from diffaudio.metrics.frechet import (
    MIN_SOUNDS_TO_EXTRAPOLATE,
    SIZES,
    Gaussian,
    fit_gaussian,
    frechet_between,
    frechet_infinity_as_fadtk,
    frechet_infinity_of_subsets,
    frechet_of_subsets,
)
from diffaudio.metrics.kernel import (
    KernelReference,
    distance_from_kernels,
    kernel_between,
    kernel_distance,
    median_distance,
)
from diffaudio.metrics.prdc import Balls, coverage_from_distances, densities, embedding_distances, is_precise
from diffaudio.metrics.similarity import cosines, diversities

__all__ = [
    "accuracy",
    "checks",
    "distances",
    "divergence",
    "diversity",
    "inception",
    "other_conventions",
    "text_similarity",
]

SIZES_IN_INTERVAL = 5  # subset sizes of the extrapolated distance, which its interval needs 137 times
AUDIOLDM_EVAL_SPLITS, AUDIOLDM_EVAL_SEED = 10, 2020
TOP = 5


def distances(embedded: AudioEmbeddings, reference: Reference, table: Table) -> None:
    """Fréchet distance and its extrapolation, kernel distance, precision, recall, density and coverage."""
    counts = len(embedded), len(reference.recordings)
    for name, windows in embedded.embeddings.items():
        fits, means = reference.fits[name], torch.stack([each.mean(dim=0) for each in windows])
        _add_frechet(name, windows, fits.gaussian, counts, table)
        _add_kernel(name, means, fits.kernel, counts, table)
        _add_coverage(name, means, fits.balls, counts, table)


def _add_frechet(name: str, windows: list[Tensor], reference: Gaussian, counts: tuple[int, int], table: Table) -> None:
    embeddings = torch.cat(windows)
    rows = torch.arange(len(embeddings)).split([len(each) for each in windows])
    of_rows = frechet_of_subsets(embeddings, reference)

    def frechet(sounds: Tensor) -> float:
        return of_rows(torch.cat([rows[index] for index in sounds.tolist()]))

    value = frechet_between(fit_gaussian(embeddings), reference) if len(embeddings) > 1 else math.nan
    table.add_whole(f"fd_{name}", frechet, *counts, value=value, bounds=(0, math.inf), pairs_matter=True)
    extrapolated, in_interval = (
        frechet_infinity_of_subsets(frechet, counts[0], generator=table.generator(f"fd_inf_{name}"), sizes=sizes)
        for sizes in (SIZES, SIZES_IN_INTERVAL)
    )
    min_sounds = MIN_SOUNDS_TO_EXTRAPOLATE
    table.add_extrapolated(f"fd_inf_{name}", extrapolated, in_interval, *counts, min_sounds=min_sounds)
    total, dim = embeddings.shape
    if total <= dim:
        table.warnings.append(
            f"fd_{name}: {total} embeddings of {dim} dimensions leave the covariance singular: the distance is too "
            f"high, and fd_inf_{name} may take off too little or too much; compare it only with sets of as many "
            f"sounds, such as the real row, or take kad_{name}, which few sounds make uncertain but not biased"
        )


def _add_kernel(name: str, means: Tensor, reference: KernelReference, counts: tuple[int, int], table: Table) -> None:
    within, across = kernel_between(means, reference)

    def kad(sounds: Tensor) -> float:
        return distance_from_kernels(within[sounds][:, sounds], across[sounds], reference)

    table.add_whole(f"kad_{name}", kad, *counts, pairs_matter=True)


def _add_coverage(name: str, means: Tensor, reference: Balls, counts: tuple[int, int], table: Table) -> None:
    """Precision and density are means over the evaluated sounds; recall and coverage belong to the set as a whole."""
    min_sounds = reference.neighbours + 1
    if len(means) < min_sounds:
        for which in ("precision", "recall", "density", "coverage"):
            table.left_out[f"{which}_{name}"] = f"{len(means)} sounds are too few; {min_sounds} are needed"
        return
    within = embedding_distances(means, means)
    across = embedding_distances(means, reference.embeddings)

    def share(which: str) -> Callable[[Tensor], float]:
        return lambda sounds: getattr(
            coverage_from_distances(within[sounds][:, sounds], across[sounds], reference), which
        )

    table.add_share(f"precision_{name}", is_precise(across, reference), counts[1])
    table.add_whole(f"recall_{name}", share("recall"), *counts, min_sounds=min_sounds, bounds=(0, 1))
    table.add_mean(f"density_{name}", densities(across, reference), counts[1])
    table.add_whole(f"coverage_{name}", share("coverage"), *counts, min_sounds=min_sounds, bounds=(0, 1))


def inception(embedded: AudioEmbeddings, table: Table) -> None:
    """Inception score by each classifier."""
    for name, logits in embedded.logits.items():

        def score(sounds: Tensor, logits: Tensor = logits) -> float:
            return inception_score(logits[sounds])

        table.add_whole(f"inception_score_{name}", score, len(embedded), bounds=(1, logits.shape[1]))


def accuracy(embedded: AudioEmbeddings, table: Table) -> None:
    """Share of sounds that a classifier recognises as what they should be.

    Where its classes are those of the labels, the most probable one has to be right. A backbone with a table of kinds
    knows other classes: one of those that stand for the kind has to be among its first five.
    """
    for name, logits in embedded.logits.items():
        kinds = embedded.kinds.get(name)
        if kinds is not None:
            names = list(kinds.classes)
            places = [label_of_text(text, names) for text in embedded.wanted()]
            known = [index for index, place in enumerate(places) if place >= 0]
            if known:
                wanted = [kinds.classes[names[places[index]]] for index in known]
                recognised = is_in_top(logits[known], wanted, ignored=kinds.ignored, top=TOP)
                table.add_share(f"recognised_at_{TOP}_{name}", recognised)
            else:
                table.left_out[f"recognised_at_{TOP}_{name}"] = "no label or prompt is in the table of kinds"
            continue
        indices = class_indices(embedded.wanted(), embedded.classes[name])
        known = indices >= 0
        if known.any():
            table.add_share(f"accuracy_{name}", is_correct(logits[known], indices[known]))
        else:
            table.left_out[f"accuracy_{name}"] = "no sound has a label, or a prompt, that is one of the classes"


def divergence(embedded: AudioEmbeddings, reference: Reference, table: Table, *, paired: bool = True) -> None:
    """KL from the recording of the same name, where each sound has one, and from the mean over those of its label.

    Args:
        paired: False for recordings of the reference, each of which is its own pair.
    """
    recordings, everything = reference.recordings, reference.everything
    names = {name: index for index, name in enumerate(everything.names)}
    all_paired = paired and all(sound in names for sound in embedded.names)
    for name, logits in embedded.logits.items():
        if all_paired:
            of_pairs = everything.logits[name][[names[sound] for sound in embedded.names]]
            table.add_mean(f"kl_{name}", kl_divergences(of_pairs, logits), len(everything))
        means = mean_log_probabilities_by_label(recordings.logits[name], recordings.labels)
        labels = list(means)
        places = [label_of_text(text, labels) for text in embedded.wanted()]
        known = [index for index, place in enumerate(places) if place >= 0]
        if known:
            of_label = torch.stack([means[labels[places[index]]] for index in known])
            table.add_mean(f"kl_label_{name}", kl_divergences(of_label, logits[known]), len(recordings))
        elif not all_paired:
            reason = "neither has each sound a recording of the same name in the reference, nor any of the same label"
            table.left_out[f"kl_{name}"] = reason


def other_conventions(embedded: AudioEmbeddings, reference: Reference | None, table: Table) -> None:
    """What other toolkits compute where they differ on purpose; sample/EVALUATION.md has a table.

    audioldm_eval: the inception score over 10 random parts, and its divergences of pairs. kadtk: the kernel distance
    with a bandwidth of the evaluated embeddings. fadtk: the distance extrapolated from draws with replacement.
    """
    names = {} if reference is None else {name: index for index, name in enumerate(reference.everything.names)}
    all_paired = all(sound in names for sound in embedded.names)
    for name, logits in embedded.logits.items():
        metric, count = f"inception_score_{AUDIOLDM_EVAL_SPLITS}_splits_{name}", len(logits)
        if count >= AUDIOLDM_EVAL_SPLITS:
            order = np.random.RandomState(AUDIOLDM_EVAL_SEED).permutation(count)  # theirs, whatever ours is
            score = inception_score(logits[torch.from_numpy(order)], splits=AUDIOLDM_EVAL_SPLITS)
            table.add_value(metric, score, count)
        else:
            table.left_out[metric] = f"{count} sounds are too few; {AUDIOLDM_EVAL_SPLITS} are needed"
        for activation in ("softmax", "sigmoid"):
            metric = f"kl_{activation}_audioldm_eval_{name}"
            if reference is not None and all_paired:
                of_pairs = reference.everything.logits[name][[names[sound] for sound in embedded.names]]
                table.add_mean(metric, kl_as_audioldm_eval(of_pairs, logits, activation=activation), len(names))
            else:
                table.left_out[metric] = "not each sound has a recording of the same name in the reference"
    if reference is None:
        return
    for name, windows in embedded.embeddings.items():
        embeddings, total = torch.cat(windows), torch.cat(reference.recordings.embeddings[name])
        if len(embeddings) > 2:
            width = median_distance(embeddings)
            table.add_value(f"kad_kadtk_{name}", kernel_distance(embeddings, total, bandwidth=width), len(embedded))
            metric = f"fd_inf_fadtk_{name}"
            extrapolated = frechet_infinity_as_fadtk(
                embeddings, reference.fits[name].gaussian, generator=table.generator(metric)
            )
            table.add_value(metric, extrapolated, len(embedded))


def text_similarity(embedded: AudioEmbeddings, table: Table) -> None:
    """Cosine of each sound and its prompt, in every space that has both."""
    for name, sounds in embedded.sounds_as_text.items():
        texts = embedded.texts[name]
        has_text = texts.isfinite().all(dim=1)
        if has_text.any():
            table.add_mean(name, cosines(sounds[has_text], texts[has_text]))
        else:
            table.left_out[name] = "no sound has a prompt or a label"


def diversity(embedded: AudioEmbeddings, table: Table) -> None:
    """How far apart takes of one prompt are, or sounds of one label where there are no prompts."""
    groups = [prompt or label for prompt, label in zip(embedded.prompts, embedded.labels, strict=True)]
    known = [index for index, text in enumerate(groups) if text is not None]
    for name, windows in embedded.embeddings.items():
        means = [windows[index].mean(dim=0) for index in known]
        values = diversities(torch.stack(means), [groups[index] for index in known]) if known else torch.empty(0)
        if len(values):
            table.add_mean(f"diversity_{name}", values)
        else:
            table.left_out[f"diversity_{name}"] = "no prompt has more than one take"


def checks(embedded: AudioEmbeddings, table: Table) -> None:
    """Shares of silent, clipped and repeated sounds, and the mean loudness of those that have one."""
    table.add_share("silent", embedded.checks.silent)
    table.add_share("clipped", embedded.checks.clipped)
    table.add_share("repeated", repeated(embedded.checks.fingerprints))
    loudness = embedded.checks.loudness[embedded.checks.loudness.isfinite()]
    if len(loudness):
        table.add_mean("loudness_lufs", loudness)
    else:
        table.left_out["loudness_lufs"] = "all sounds are silent, or shorter than 0.4 s"
