"""Kernel distance between two sets of embeddings: KAD (Chung et al. 2025, arXiv:2502.15602).

    MMD² = mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(r_i, r_j) - 2 mean_{i,j} k(x_i, r_j)    unbiased (Gretton et al. 2012)
    k(a, b) = exp(-|a - b|² / 2σ²)

σ is the median distance between two embeddings of the reference, and the result is multiplied by 100, as in the
paper and in its toolkit kadtk 1.1.0. (The toolkit's `score(baseline, eval)` takes σ from the evaluated set instead,
so that different systems are measured with different kernels.) Unbiased, it is 0 on average between samples of one
distribution, so it can be negative; between a set and itself it is -200 (1 - mean_{i≠j} k) / n.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffaudio.errors import UserError

__all__ = [
    "KernelReference",
    "distance_from_kernels",
    "fit_kernel",
    "kernel_between",
    "kernel_distance",
    "median_distance",
]

SCALE = 100.0
_ROWS = 1024  # of a kernel matrix at a time
_MAX_IN_MEDIAN = 10_000  # embeddings that the median distance is taken of


@dataclass(frozen=True)
class KernelReference:
    """Reference embeddings [m, dim], the kernel's bandwidth σ, and mean_{i≠j} k(r_i, r_j)."""

    embeddings: Tensor
    bandwidth: float
    mean: float


def median_distance(embeddings: Tensor) -> float:
    """Median Euclidean distance between two of [m, dim]; the lower of the middle two where their number is even.

    Of more than 10,000 embeddings, 10,000 are taken, evenly spaced.

    Raises:
        ValueError: fewer than two, or more than half of the distances are 0.
    """
    if len(embeddings) < 2:
        raise UserError(f"{len(embeddings)} embeddings have no distance between them; give at least 2")
    count = min(len(embeddings), _MAX_IN_MEDIAN)
    picked = embeddings[torch.arange(count) * len(embeddings) // count]
    median = float(torch.nn.functional.pdist(picked.double()).median())
    if median == 0:
        raise UserError("the reference embeddings are all alike, so the kernel has no width; give other recordings")
    return median


def fit_kernel(reference: Tensor, bandwidth: float | None = None) -> KernelReference:
    """Prepare a reference [m, dim] for kernel distances.

    Args:
        bandwidth: σ; None is the median distance.
    """
    reference = reference.double()
    bandwidth = median_distance(reference) if bandwidth is None else bandwidth
    count = len(reference)
    total = sum(float(_kernel(rows, reference, bandwidth).sum()) for rows in reference.split(_ROWS))
    return KernelReference(reference, bandwidth, (total - count) / (count * (count - 1)))


def kernel_between(embeddings: Tensor, reference: KernelReference) -> tuple[Tensor, Tensor]:
    """Kernel matrix of [n, dim] with itself [n, n], and the mean kernel of each row with the reference [n]."""
    x = embeddings.double()
    across = [_kernel(rows, reference.embeddings, reference.bandwidth).mean(dim=1) for rows in x.split(_ROWS)]
    return _kernel(x, x, reference.bandwidth), torch.cat(across)


def distance_from_kernels(within: Tensor, across: Tensor, reference: KernelReference) -> float:
    """KAD from the result of `kernel_between`, or from its rows and columns of some of the sounds.

    Raises:
        ValueError: fewer than two embeddings.
    """
    n = len(within)
    if n < 2:
        raise UserError(f"{n} embeddings have no kernel between them; give at least 2")
    mean_within = (within.sum() - within.diagonal().sum()) / (n * (n - 1))
    return SCALE * float(mean_within + reference.mean - 2 * across.mean())


def kernel_distance(embeddings: Tensor, reference: Tensor, *, bandwidth: float | None = None) -> float:
    """KAD of [n, dim] from [m, dim]."""
    fitted = fit_kernel(reference, bandwidth)
    return distance_from_kernels(*kernel_between(embeddings, fitted), fitted)


def _kernel(a: Tensor, b: Tensor, bandwidth: float) -> Tensor:
    # through differences, not products: equal embeddings have a distance of exactly 0
    squares = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
    return torch.exp(-squares / (2 * bandwidth**2))
