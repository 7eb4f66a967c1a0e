"""Numbers others get: what the code of fadtk, kadtk, prdc and audioldm_eval gives for the same embeddings and logits.

The numbers of the toolkits were computed by their own functions: fadtk at ec74b1f, kadtk at 8bda71d, prdc at e320c1d,
audioldm_eval at 8dc07ee. Beside them stand their definitions, written again in NumPy from their papers.
"""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from diffaudio.metrics.classification import inception_score, kl_as_audioldm_eval, kl_divergences
from diffaudio.metrics.frechet import (
    fit_gaussian,
    frechet_distance,
    frechet_infinity,
    frechet_infinity_as_fadtk,
    frechet_of_subsets,
)
from diffaudio.metrics.kernel import kernel_distance, median_distance
from diffaudio.metrics.prdc import coverage_between

WITHIN = 0.01


def points(n: int, dim: int, phase: float) -> Tensor:
    i, j = torch.arange(n).double()[:, None], torch.arange(dim).double()
    return torch.sin(1.7 * (i + 1) * (j + 1) + phase) + 0.1 * torch.cos(0.37 * i * i + phase) * (j + 1)


@pytest.fixture(scope="module")
def embeddings():
    """Of 700 evaluated sounds and 800 of the reference, in 24 dimensions."""
    return points(700, 24, 0.0) * 1.2 + 0.1, points(800, 24, 0.5)


@pytest.fixture(scope="module")
def logits():
    """Of 100 evaluated sounds and their pairs in the reference, for 30 classes."""
    return 4 * points(100, 30, 0.0), 4 * points(100, 30, 0.7)


def frechet_by_scipy(x, y):
    root = scipy.linalg.sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False)).real
    spread = np.trace(np.cov(x, rowvar=False) + np.cov(y, rowvar=False) - 2 * root)
    return float(np.square(x.mean(axis=0) - y.mean(axis=0)).sum() + spread)


def test_fd_is_that_of_fadtk_and_of_audioldm_eval(embeddings):
    x, y = embeddings
    assert frechet_distance(x, y) == pytest.approx(1.8946589454, rel=1e-6)
    assert frechet_by_scipy(x.numpy(), y.numpy()) == pytest.approx(1.8946589454, rel=1e-6)


def test_fd_infinity_as_fadtk_is_a_line_over_draws_with_replacement(embeddings):
    x, y = embeddings
    draw = torch.Generator().manual_seed(3)
    sizes = [int(size) for size in np.linspace(500, 700, 25)]
    distances = [frechet_by_scipy(x[torch.randint(700, (n,), generator=draw)].numpy(), y.numpy()) for n in sizes]
    expected = np.polyfit(1 / np.array(sizes), distances, 1)[1]
    found = frechet_infinity_as_fadtk(x, fit_gaussian(y), generator=torch.Generator().manual_seed(3))
    assert found == pytest.approx(expected, rel=1e-4)


def test_fd_infinity_is_fadtks_within_what_that_scatters_and_scatters_less(embeddings):
    x, y = embeddings
    of_rows, reference = frechet_of_subsets(x, fit_gaussian(y)), fit_gaussian(y)
    theirs, ours = [], []
    for seed in range(12):
        draw = torch.Generator().manual_seed(seed)
        theirs.append(frechet_infinity_as_fadtk(x, reference, generator=draw))
        ours.append(frechet_infinity(of_rows, len(x), generator=draw))
    error = 0.502 / 12**0.5  # fadtk's own code, 12 runs: 1.852 with a standard deviation of 0.502
    assert abs(np.mean(theirs) - 1.852) < 3 * 2**0.5 * error
    assert abs(np.mean(ours) - 1.852) < 3 * 2**0.5 * error
    assert np.std(ours) < np.std(theirs)


def test_kad_is_kadtks_with_the_bandwidth_of_the_evaluated_embeddings(embeddings):
    x, y = embeddings
    assert median_distance(y) == pytest.approx(6.955533504, rel=1e-6)
    assert median_distance(x) == pytest.approx(8.451336861, rel=1e-6)
    assert kernel_distance(x, y, bandwidth=median_distance(x)) == pytest.approx(
        0.9406685829, rel=1e-4
    )  # theirs: float32

    def mean_kernel(a, b, same):
        squares = np.square(a[:, None] - b[None]).sum(axis=2)
        k = np.exp(-squares / (2 * 6.955533504**2))
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1)) if same else k.mean()

    a, b = x.numpy(), y.numpy()
    by_hand = 100 * (mean_kernel(a, a, True) + mean_kernel(b, b, True) - 2 * mean_kernel(a, b, False))
    assert kernel_distance(x, y) == pytest.approx(by_hand, rel=WITHIN) == pytest.approx(1.28362, rel=1e-4)


def test_precision_recall_density_and_coverage_are_those_of_prdc(embeddings):
    x, y = embeddings
    found = coverage_between(x, y)
    assert found.precision == pytest.approx(0.9742857143, rel=WITHIN)
    assert found.recall == pytest.approx(0.99875, rel=WITHIN)
    assert found.density == pytest.approx(0.7240, rel=WITHIN)
    assert found.coverage == pytest.approx(0.9175, rel=WITHIN)


def test_the_inception_score_is_that_of_audioldm_eval_over_its_parts(logits):
    order = torch.from_numpy(np.random.RandomState(2020).permutation(100))
    assert inception_score(logits[0][order], splits=10) == pytest.approx(3.7219823128, rel=1e-6)
    assert inception_score(logits[0]) > 1.2 * 3.7219823128  # all at once it is larger, on purpose


def test_kl_of_pairs_is_that_of_audioldm_eval(logits):
    evaluated, reference = logits
    for activation, theirs in (("softmax", 1.4288925799), ("sigmoid", 5.3028339028)):
        found = kl_as_audioldm_eval(reference, evaluated, activation=activation).mean()
        assert float(found) == pytest.approx(theirs, rel=1e-6)
    assert float(kl_divergences(reference, evaluated).mean()) == pytest.approx(1.4288925799, rel=WITHIN)
