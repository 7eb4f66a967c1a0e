"""Classification: what a classifier's logits [n, classes] say of sounds.

Probabilities are their softmax; as in AudioLDM's and MMAudio's evaluations, that is also done with the logits of
classifiers that were trained on several classes per sound (PANNs, YAMNet). Divergences are computed from log
probabilities, so that none is cut off however sure the classifier is.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from diffaudio.errors import UserError

__all__ = [
    "class_indices",
    "inception_score",
    "is_correct",
    "is_in_top",
    "kl_as_audioldm_eval",
    "kl_divergences",
    "label_key",
    "label_of_text",
    "mean_log_probabilities_by_label",
]

AUDIOLDM_EVAL_OFFSET = 1e-6
ARTICLES = {"a", "an", "some", "the"}


def label_key(label: str | None) -> str:
    """What labels are compared by: their words in lower case, without articles and punctuation."""
    return " ".join(word for word in re.findall(r"\w+", (label or "").casefold()) if word not in ARTICLES)


def label_of_text(text: str | None, labels: Sequence[str]) -> int:
    """Which label a text means: the one it equals, or the one whose words it contains; -1 where that is none.

    "a dog barking loudly" is "dog barking". Of several labels, one whose words include those of all the others counts;
    a text that contains two different labels, such as "rain and a dog barking", means neither.
    """
    key = label_key(text)
    if not key:
        return -1
    keys = [label_key(label) for label in labels]
    if key in keys:
        return keys.index(key)
    words = set(key.split())
    contained = {index: set(other.split()) for index, other in enumerate(keys) if other and set(other.split()) <= words}
    best = max(contained, key=lambda index: len(contained[index]), default=-1)
    return best if all(other <= contained[best] for other in contained.values()) else -1


def class_indices(texts: Sequence[str | None], classes: Sequence[str]) -> Tensor:
    """The class that each label or prompt means [n] (int64), see `label_of_text`; -1 where it is none."""
    known: dict[str | None, int] = {}
    for text in texts:
        if text not in known:
            known[text] = label_of_text(text, classes)
    return torch.tensor([known[text] for text in texts], dtype=torch.int64)


def is_correct(logits: Tensor, indices: Tensor) -> Tensor:
    """1 where the most probable class is the labelled one, else 0: [n]; its mean is the accuracy."""
    return (logits.argmax(dim=1) == indices).double()


def is_in_top(logits: Tensor, wanted: Sequence[Sequence[int]], *, ignored: Sequence[int] = (), top: int = 5) -> Tensor:
    """1 where one of the wanted classes is among the `top` most probable ones, else 0: [n].

    Args:
        logits: [n, classes].
        wanted: for each sound, the classes that would be right.
        ignored: classes that are left out of the ranking, such as generic parents; those wanted are always in it.
    """
    results = []
    for row, right in zip(logits, wanted, strict=True):
        scores = row.clone()
        scores[[index for index in ignored if index not in right]] = -torch.inf
        results.append(bool(set(scores.topk(min(top, len(scores))).indices.tolist()) & set(right)))
    return torch.tensor(results, dtype=torch.float64)


def kl_divergences(reference: Tensor, evaluated: Tensor) -> Tensor:
    """KL(reference ‖ evaluated) of each row, in nats: [n].

    The direction is that of AudioGen (Kreuk et al. 2022, arXiv:2209.15352, sec. 4.2), AudioLDM and MMAudio.

    Args:
        reference, evaluated: logits or log probabilities [n, classes].
    """
    log_p, log_q = reference.double().log_softmax(dim=1), evaluated.double().log_softmax(dim=1)
    p = log_p.exp()
    return (p * (log_p - log_q)).where(p > 0, 0).sum(dim=1).clamp(min=0)  # below 0 by rounding only


def kl_as_audioldm_eval(reference: Tensor, evaluated: Tensor, *, activation: str = "softmax") -> Tensor:
    """The divergences [n] that the toolkit audioldm_eval publishes: 1e-6 is added to each evaluated probability.

    Args:
        reference, evaluated: logits [n, classes] of sounds that are pairs.
        activation: "softmax", or "sigmoid": the classes' probabilities by themselves, which sum to anything.
    """
    p, q = (
        logits.double().softmax(dim=1) if activation == "softmax" else logits.double().sigmoid()
        for logits in (reference, evaluated)
    )
    return kl_div((q + AUDIOLDM_EVAL_OFFSET).log(), p, reduction="none").sum(dim=1)


def mean_log_probabilities_by_label(logits: Tensor, labels: Sequence[str | None]) -> dict[str, Tensor]:
    """Logarithm of the mean probabilities [classes] of the sounds of each label, by `label_key`."""
    members: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        if label is not None:
            members.setdefault(label_key(label), []).append(index)
    return {name: _log_mean(logits.double().log_softmax(dim=1)[indices]) for name, indices in members.items()}


def inception_score(logits: Tensor, *, splits: int = 1) -> float:
    """exp mean KL(p(y|x) ‖ p(y)) (Salimans et al. 2016, arXiv:1606.03498, sec. 4).

    From 1 (all sounds get the same answer) to the number of classes, or of sounds where those are fewer: each
    sure, all classes equally often.

    Args:
        logits: [n, classes].
        splits: 1 takes all sounds at once. The original code and audioldm_eval take the mean over 10 parts, in the
            order given (theirs is random), each of which has a p(y) of its own; few sounds in a part make it smaller.

    Raises:
        ValueError: fewer sounds than splits.
    """
    if len(logits) < splits:
        raise UserError(f"{len(logits)} sounds cannot be split into {splits} parts; give more")
    edges = [index * len(logits) // splits for index in range(splits + 1)]
    scores = []
    for start, end in pairwise(edges):
        log_p = logits[start:end].double().log_softmax(dim=1)
        scores.append(kl_divergences(log_p, _log_mean(log_p).expand_as(log_p)).mean().exp())
    return float(torch.stack(scores).mean())


def _log_mean(log_probabilities: Tensor) -> Tensor:
    """[n, classes] -> log of the mean probabilities [classes]"""
    return log_probabilities.logsumexp(dim=0) - torch.tensor(len(log_probabilities), dtype=torch.float64).log()
