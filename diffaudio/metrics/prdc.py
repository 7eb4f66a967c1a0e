"""Precision, recall, density and coverage: which sounds are like the reference, and how much of it they reach.

Around each embedding lies a ball whose radius is the distance to its k-th nearest neighbour in its own set.

    precision   share of the sounds that lie in a ball of the reference      Kynkäänniemi et al. 2019 (arXiv:1904.06991)
    recall      share of the reference that lies in a ball of the sounds     eq. 1 and 2
    density     mean number of reference balls a sound lies in, over k       Naeem et al. 2020 (arXiv:2002.09797)
    coverage    share of the reference balls with a sound in them            eq. 4 and 5

k is 5, as in Naeem et al.'s `prdc`; density and coverage are robust to a few outliers, precision and recall are not.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffaudio.errors import UserError

__all__ = [
    "Balls",
    "Coverage",
    "coverage_between",
    "coverage_from_distances",
    "densities",
    "embedding_distances",
    "fit_balls",
    "is_precise",
]

NEIGHBOURS = 5
_ROWS = 1024  # of a distance matrix at a time


@dataclass(frozen=True)
class Balls:
    """Reference embeddings [m, dim] and the radius of each one's ball [m]."""

    embeddings: Tensor
    radii: Tensor
    neighbours: int


@dataclass(frozen=True)
class Coverage:
    """The four numbers, all from 0 to 1 except density, which is 1 on average for two samples of one distribution."""

    precision: float
    recall: float
    density: float
    coverage: float


def fit_balls(reference: Tensor, neighbours: int = NEIGHBOURS) -> Balls:
    """The balls of reference embeddings [m, dim].

    Raises:
        ValueError: there are not more than `neighbours`.
    """
    reference = reference.double()
    radii = [_radii(embedding_distances(rows, reference), neighbours) for rows in reference.split(_ROWS)]
    return Balls(reference, torch.cat(radii), neighbours)


def coverage_between(embeddings: Tensor, reference: Tensor, *, neighbours: int = NEIGHBOURS) -> Coverage:
    """The four numbers for [n, dim] and [m, dim].

    Raises:
        ValueError: there are not more than `neighbours` on either side.
    """
    x, balls = embeddings.double(), fit_balls(reference, neighbours)
    return coverage_from_distances(embedding_distances(x, x), embedding_distances(x, balls.embeddings), balls)


def coverage_from_distances(within: Tensor, across: Tensor, balls: Balls) -> Coverage:
    """The four numbers from distances among the sounds [n, n] and from them to the reference [n, m]."""
    in_sounds = across < _radii(within, balls.neighbours)[:, None]
    return Coverage(
        precision=float(is_precise(across, balls).mean()),
        recall=float(in_sounds.any(dim=0).double().mean()),
        density=float(densities(across, balls).mean()),
        coverage=float((across < balls.radii).any(dim=0).double().mean()),
    )


def is_precise(across: Tensor, balls: Balls) -> Tensor:
    """1 where a sound lies in a ball of the reference, else 0: [n], from distances to the reference [n, m]."""
    return (across < balls.radii).any(dim=1).double()


def densities(across: Tensor, balls: Balls) -> Tensor:
    """How many balls of the reference each sound lies in, over k: [n], from distances to the reference [n, m]."""
    return (across < balls.radii).sum(dim=1).double() / balls.neighbours


def _radii(distances: Tensor, neighbours: int) -> Tensor:
    """Distance of each to its k-th nearest neighbour, from its distances [rows, n] to all including itself."""
    if distances.shape[1] <= neighbours:
        raise UserError(f"{distances.shape[1]} embeddings have no {neighbours} neighbours each; give more")
    return distances.kthvalue(neighbours + 1, dim=1).values  # the nearest of all is itself


def embedding_distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances [n, m] of [n, dim] from [m, dim], exactly 0 for equal ones."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
