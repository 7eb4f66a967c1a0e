"""The recordings that sounds are compared with, and those held out of them to show what real sound reaches.

A distance depends on how many sounds it is of and on the reference. So that the rows of a report can be compared, one
split is made for all of them: as many recordings as there are sounds, of the same labels as far as there are any, are
held out for the real row; the rest is the reference of every row. Where the recordings are not twice as many as the
sounds, half of them are held out, and distances take only so many of the sounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffaudio.errors import UserError
from diffaudio.evaluation.embed import AudioEmbeddings
from diffaudio.evaluation.table import seeded_generator
from diffaudio.metrics.classification import label_key, label_of_text
from diffaudio.metrics.frechet import Gaussian, fit_gaussian
from diffaudio.metrics.kernel import KernelReference, fit_kernel
from diffaudio.metrics.prdc import Balls, fit_balls

__all__ = ["Reference", "choose_evenly", "split_reference"]

MIN_RECORDINGS = 12  # half of them can be compared with the others


@dataclass(frozen=True)
class _Fits:
    """What the distances need of the reference in one backbone's space."""

    gaussian: Gaussian
    kernel: KernelReference
    balls: Balls


class Reference:
    """Embedded recordings, with what the distances need of them, computed once.

    Args:
        everything: all recordings.
        held_out: indices of those for the real row; the others are what sounds are compared with.

    Raises:
        ValueError: fewer than 12 in all, or a backbone finds no difference between them.
    """

    def __init__(self, everything: AudioEmbeddings, held_out: Sequence[int] = ()) -> None:
        if len(everything) < MIN_RECORDINGS:
            raise UserError(f"the reference has {len(everything)} recordings; give at least {MIN_RECORDINGS}")
        self.everything = everything
        self.held_out = everything.pick(sorted(held_out)) if held_out else None
        taken = set(held_out)
        self.recordings = everything.pick([index for index in range(len(everything)) if index not in taken])
        self.fits = {name: _fit(windows) for name, windows in self.recordings.embeddings.items()}

    def compared(self, sounds: AudioEmbeddings, seed: int) -> AudioEmbeddings:
        """As many of the sounds as the real row has, evenly of all labels; all of them where there is no real row."""
        if self.held_out is None or len(sounds) <= len(self.held_out):
            return sounds
        return sounds.pick(choose_evenly(sounds.wanted(), len(self.held_out), seed))


def split_reference(recordings: AudioEmbeddings, wanted: Sequence[str | None], *, seed: int) -> Reference:
    """Hold recordings out for the real row, as many and of the same labels as the sounds that will be evaluated.

    Args:
        wanted: what each of those sounds should be, as `AudioEmbeddings.wanted` gives it.

    Raises:
        ValueError: fewer than 12 recordings, or a backbone finds no difference between them.
    """
    count = min(len(wanted), len(recordings) // 2)
    labels = sorted({label_key(label) for label in recordings.labels if label is not None})
    by_label: dict[str, list[int]] = {}
    order = torch.randperm(len(recordings), generator=seeded_generator(seed, "real")).tolist()
    for index in order:
        by_label.setdefault(label_key(recordings.labels[index]), []).append(index)
    chosen = []
    for sound in choose_evenly(wanted, count, seed):
        place = label_of_text(wanted[sound], labels)
        members = by_label.get(labels[place], []) if place >= 0 else []
        if len(members) > 1:  # one stays, for the divergence from the label's recordings
            chosen.append(members.pop())
    taken = set(chosen)
    chosen += [index for index in order if index not in taken][: count - len(chosen)]
    return Reference(recordings, chosen)


def choose_evenly(wanted: Sequence[str | None], count: int, seed: int) -> list[int]:
    """Indices of `count` sounds, in order, from every label as evenly as can be, at random within a label."""
    order = torch.randperm(len(wanted), generator=seeded_generator(seed, "compared")).tolist()
    seen: dict[str, int] = {}
    rank = {}
    for index in order:
        key = label_key(wanted[index])
        rank[index] = seen[key] = seen.get(key, 0) + 1
    return sorted(sorted(order, key=lambda index: rank[index])[:count])


def _fit(windows: list[Tensor]) -> _Fits:
    means = torch.stack([each.mean(dim=0) for each in windows])
    return _Fits(fit_gaussian(torch.cat(windows)), fit_kernel(means), fit_balls(means))
