"""What a classifier says of sounds. Probabilities are [n, classes] with rows that sum to 1.

A classifier of one class a sound gives them by softmax; the same is done, as in AudioLDM's and MMAudio's
evaluations, with the logits of those that were trained on several classes a sound (PANNs).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["class_indices", "inception_score", "is_correct", "kl_divergences", "label_key", "mean_by_label"]

_TINY = 1e-12  # a probability of 0 in the approximating distribution would make any divergence infinite


def class_indices(labels: Sequence[str | None], classes: Sequence[str]) -> Tensor:
    """The class number of each label [n] (int64); -1 where a sound has none or it is no class."""
    numbers = {label_key(name): number for number, name in enumerate(classes)}
    return torch.tensor([numbers.get(label_key(label), -1) for label in labels], dtype=torch.int64)


def is_correct(probabilities: Tensor, indices: Tensor) -> Tensor:
    """1 where the most probable class is the labelled one, else 0: [n], its mean is the accuracy."""
    return (probabilities.argmax(dim=1) == indices).double()


def kl_divergences(reference: Tensor, probabilities: Tensor) -> Tensor:
    """KL(reference ‖ evaluated) of each row, in nats: [n].

    The direction is that of AudioGen (Kreuk et al. 2022, arXiv:2209.15352, sec. 4.2), AudioLDM and MMAudio.
    """
    p, q = reference.double(), probabilities.double().clamp(min=_TINY)
    return (torch.xlogy(p, p) - p * q.log()).sum(dim=1)


def mean_by_label(probabilities: Tensor, labels: Sequence[str | None]) -> dict[str, Tensor]:
    """Mean probabilities [classes] of the sounds of each label, by the label as `label_key` gives it."""
    members: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        if label is not None:
            members.setdefault(label_key(label), []).append(index)
    return {name: probabilities[indices].mean(dim=0) for name, indices in members.items()}


def label_key(label: str | None) -> str:
    """What labels are compared by: case and outer spaces do not count."""
    return (label or "").strip().casefold()


def inception_score(probabilities: Tensor) -> float:
    """exp mean KL(p(y|x) ‖ p(y)) (Salimans et al. 2016, arXiv:1606.03498, sec. 4), over all sounds at once.

    From 1 (all sounds get the same answer) to the number of classes, or of sounds where those are fewer: each
    sure, all classes equally often.
    """
    p = probabilities.double()
    return float(kl_divergences(p, p.mean(dim=0, keepdim=True).expand_as(p)).mean().exp())
