"""Similarity of sounds to texts and to each other: cosines of embeddings."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["conse", "cosines", "diversities"]

CONSE_CLASSES = 10


def cosines(one: Tensor, other: Tensor) -> Tensor:
    """Cosine of each row of [n, dim] with that of [n, dim]: [n]. With CLAP's embeddings, the CLAP score."""
    return (normalize(one.double(), dim=1) * normalize(other.double(), dim=1)).sum(dim=1)


def conse(probabilities: Tensor, class_embeddings: Tensor, *, top: int = CONSE_CLASSES) -> Tensor:
    """Embed a classifier's result in the text space of its classes (Norouzi et al. 2013, arXiv:1312.5650, eq. 6).

    Args:
        probabilities: [n, classes].
        class_embeddings: [classes, dim], of the classes' names.
        top: how many of the most probable classes are mixed; their probabilities are scaled to sum to 1.

    Returns:
        [n, dim]
    """
    best = probabilities.double().topk(min(top, probabilities.shape[1]), dim=1)
    weights = best.values / best.values.sum(dim=1, keepdim=True)
    return (weights[..., None] * class_embeddings.double()[best.indices]).sum(dim=1)


def diversities(embeddings: Tensor, groups: Sequence[Hashable]) -> Tensor:
    """Mean cosine distance (1 - cosine) between two takes of one prompt, for each prompt with more than one take.

    Args:
        embeddings: [n, dim].
        groups: the prompt of each.

    Returns:
        [prompts with several takes], in order of first appearance; 0 where all takes are equal.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    x = normalize(embeddings.double(), dim=1)
    values = []
    for takes in members.values():
        if len(takes) > 1:
            similarity = x[takes] @ x[takes].T
            pairs = len(takes) * (len(takes) - 1)
            mean = (similarity.sum() - similarity.diagonal().sum()) / pairs
            values.append((1 - mean).clamp(min=0))  # rounding
    return torch.stack(values) if values else torch.empty(0, dtype=torch.float64)
