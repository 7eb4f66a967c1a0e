"""Distances and scores: closed forms, hand computations, and what published implementations say of the same points."""

import math

import mpmath
import pytest
import torch
from torch import Tensor

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
    Gaussian,
    fit_gaussian,
    frechet_between,
    frechet_distance,
    frechet_infinity,
    frechet_infinity_of_subsets,
    frechet_of_subsets,
)
from diffaudio.metrics.kernel import distance_from_kernels, fit_kernel, kernel_between, kernel_distance, median_distance
from diffaudio.metrics.prdc import coverage_between
from diffaudio.metrics.similarity import conse, cosines, diversities


def normal(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points(n: int, dim: int, phase: float) -> Tensor:
    """A formula, so that other programs can be given the same."""
    i, j = torch.arange(n).double()[:, None], torch.arange(dim).double()
    return torch.sin(1.7 * (i + 1) * (j + 1) + phase) + 0.1 * torch.cos(0.37 * i * i + phase) * (j + 1)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# Fréchet distance


@pytest.mark.parametrize(("n", "dim"), [(50, 6), (8, 30), (2, 1)])
def test_a_set_has_frechet_distance_0_from_itself_also_where_its_covariance_is_singular(n, dim):
    assert frechet_distance(normal(n, dim), normal(n, dim)) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_of_a_shifted_set_is_the_squared_shift():
    x = normal(40, 5)
    assert frechet_distance(x + torch.tensor([3.0, 0, 0, 4, 0]), x) == pytest.approx(25)


def test_the_frechet_distance_of_a_scaled_set_is_the_squared_difference_of_its_standard_deviations():
    x = normal(40, 5)
    x = x - x.mean(dim=0)
    assert frechet_distance(3 * x, x) == pytest.approx(4 * float(x.var(dim=0).sum()))


def test_known_gaussians_have_the_closed_form_whatever_their_axes():
    rotation, _ = torch.linalg.qr(normal(4, 4))
    stds = torch.tensor([1.0, 2, 3, 4]).double(), torch.tensor([2.0, 2, 1, 5]).double()
    mean = torch.tensor([1.0, -1, 0, 2]).double()
    one = Gaussian(mean @ rotation, torch.diag(stds[0]) @ rotation)
    other = Gaussian(torch.zeros(4).double(), torch.diag(stds[1]) @ rotation)
    assert frechet_between(one, other) == pytest.approx(6 + 1 + 0 + 4 + 1)


def test_the_frechet_distance_is_that_of_torch_fidelity_and_of_scipy():
    x, y = points(40, 6, 0.0), points(60, 6, 0.5) * 1.1 + 0.05
    assert frechet_distance(x, y) == pytest.approx(0.0748915761579, rel=1e-9)  # torch-fidelity 0.4.0; scipy 1.17 sqrtm
    few, many = points(8, 30, 0.0), points(50, 30, 0.5)
    assert frechet_distance(few, many) == pytest.approx(23.5958148, rel=1e-6)  # torch-fidelity, singular covariance


def test_the_frechet_distance_is_symmetric_and_the_same_after_a_rotation():
    x, y = normal(30, 4), 2 * normal(50, 4, 1) + 1
    rotation, _ = torch.linalg.qr(normal(4, 4, 2))
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x))
    assert frechet_distance(x @ rotation, y @ rotation) == pytest.approx(frechet_distance(x, y))


@pytest.mark.parametrize(("n", "dim", "count"), [(40, 6, 30), (30, 50, 20), (50, 50, 50), (60, 20, 10)])
def test_the_distance_of_a_subset_is_that_of_its_rows(n, dim, count):
    x, reference = normal(n, dim) * 2 + 1, fit_gaussian(normal(80, dim, 1) + 0.5)
    rows = torch.randperm(n, generator=generator())[:count]
    expected = frechet_between(fit_gaussian(x[rows]), reference)
    assert frechet_of_subsets(x, reference)(rows) == pytest.approx(expected, rel=1e-6)


def extrapolated(x: Tensor, reference: Gaussian, seed: int = 0) -> float:
    return frechet_infinity(frechet_of_subsets(x, reference), len(x), generator=torch.Generator().manual_seed(seed))


def test_extrapolation_takes_off_what_few_samples_add():
    """Both sides are one distribution, so the true distance is 0."""
    reference = fit_gaussian(normal(20_000, 16, 99))
    samples = [normal(60, 16, seed) for seed in range(20)]
    direct = sum(frechet_between(fit_gaussian(x), reference) for x in samples) / 20
    corrected = sum(extrapolated(x, reference) for x in samples) / 20
    assert direct > 1
    assert abs(corrected) < 0.15 * direct


def test_extrapolation_keeps_a_distance_that_is_there():
    reference = fit_gaussian(normal(20_000, 16, 99))
    corrected = [extrapolated(normal(60, 16, s) + 0.5, reference) for s in range(20)]
    assert sum(corrected) / 20 == pytest.approx(4, abs=0.4)


def test_sets_that_differ_by_one_sound_are_extrapolated_from_the_same_subsets():
    seen: list[list[int]] = []

    def distance(rows: Tensor) -> float:
        seen.append(rows.tolist())
        return 1.0

    of = frechet_infinity_of_subsets(distance, 16, generator=generator(), sizes=5)
    of(torch.arange(16))
    of(torch.tensor([sound for sound in range(16) if sound != 3]))
    assert [len(rows) for rows in seen] == [8, 10, 12, 14, 16, 7, 9, 11, 13, 15]
    for every, without in zip(seen[:5], seen[5:], strict=True):
        assert [sound for sound in every if sound != 3][: len(without)] == without


def test_extrapolation_of_the_same_sounds_with_the_same_seed_is_the_same():
    reference, x = fit_gaussian(normal(500, 4, 1)), normal(40, 4)
    assert extrapolated(x, reference) == extrapolated(x, reference) != extrapolated(x, reference, seed=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(normal(1, 3), normal(9, 3)), "1 embeddings have no covariance; give at least 2"),
        (
            lambda: frechet_infinity(lambda rows: 1.0, 7, generator=generator()),
            "7 sounds are too few to extrapolate from; give at least 8",
        ),
        (
            lambda: kernel_distance(normal(1, 3), normal(9, 3)),
            "1 embeddings have no kernel between them",
        ),
        (
            lambda: median_distance(torch.ones(9, 3)),
            "the reference embeddings are all alike, so the kernel",
        ),
        (lambda: coverage_between(normal(5, 3), normal(9, 3)), "5 embeddings have no 5 neighbours each; give more"),
    ],
)
def test_too_few_embeddings_are_refused_with_what_is_needed(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# kernel distance


def test_the_kernel_distance_by_hand():
    """Points 0 and 1 against 0 and 2, bandwidth 1: k(1) and k(2) within, k(0), k(1), k(2) and k(1) across."""
    k = [math.exp(-(d**2) / 2) for d in range(3)]
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])
    by_hand = 100 * (k[1] + k[2] - 2 * (k[0] + k[1] + k[2] + k[1]) / 4)
    assert kernel_distance(x, y, bandwidth=1.0) == pytest.approx(by_hand)


def test_the_kernel_distance_is_that_of_kadtk_at_the_same_bandwidth():
    x, y = points(40, 6, 0.0), points(60, 6, 0.5) * 1.1 + 0.05
    assert median_distance(y) == pytest.approx(2.78842926, abs=1e-6)  # kadtk 1.1.0, which computes it in float32
    assert kernel_distance(x, y) == pytest.approx(-1.18956665, abs=1e-6)


def test_between_a_set_and_itself_the_kernel_distance_has_the_unbiased_estimators_value():
    x = normal(30, 4)
    mean_within = fit_kernel(x).mean
    assert kernel_distance(x, x) == pytest.approx(-200 * (1 - mean_within) / 30)


def test_the_kernel_distance_is_0_on_average_between_samples_of_one_distribution():
    reference = fit_kernel(normal(2000, 8, 99))

    def distance(x: Tensor) -> float:
        return distance_from_kernels(*kernel_between(x, reference), reference)

    values = torch.tensor([distance(normal(25, 8, seed)) for seed in range(40)])
    assert abs(float(values.mean())) < 2.5 * float(values.std()) / 40**0.5
    assert distance(normal(25, 8) + 1) > values.max()


def test_the_kernel_distance_of_far_sets_is_what_each_has_with_itself():
    x, y = normal(50, 4), normal(40, 4, 1)
    sigma = median_distance(y)
    expected = 100 * (fit_kernel(x, sigma).mean + fit_kernel(y, sigma).mean)
    assert kernel_distance(x + 1000, y) == pytest.approx(expected)


@pytest.mark.parametrize("n", [24, 25])
def test_every_sound_is_in_the_kernel_distance_also_where_their_number_is_odd(n):
    x, y = normal(n, 3), normal(31, 3, 1)
    moved = x.clone()
    moved[-1] += 2
    assert kernel_distance(x, y) != pytest.approx(kernel_distance(moved, y), abs=1e-3)
    assert kernel_distance(y, x, bandwidth=1.0) != pytest.approx(kernel_distance(y, moved, bandwidth=1.0), abs=1e-3)


def test_the_median_distance_takes_as_many_embeddings_as_it_says(monkeypatch):
    monkeypatch.setattr("diffaudio.metrics.kernel._MAX_IN_MEDIAN", 100)
    taken = []
    monkeypatch.setattr(torch.nn.functional, "pdist", lambda x: taken.append(x) or torch.ones(3))
    median_distance(torch.arange(101.0)[:, None])
    assert len(taken[0]) == 100 and len(set(taken[0][:, 0].tolist())) == 100


def test_the_kernels_bandwidth_is_the_references_median_distance():
    assert median_distance(torch.tensor([[0.0], [1.0], [5.0]])) == 4
    x, y = normal(20, 3), 4 * normal(30, 3, 1)
    assert kernel_distance(x, y) == kernel_distance(x, y, bandwidth=median_distance(y))
    assert kernel_distance(x, y) != pytest.approx(kernel_distance(x, y, bandwidth=median_distance(x)))


# precision, recall, density, coverage


def test_coverage_is_that_of_prdc():
    """The reference implementation of Naeem et al., prdc 0.2."""
    x, y = points(40, 6, 0.0) * 1.5 + 0.4, points(60, 6, 0.5)
    five, three = coverage_between(x, y), coverage_between(x, y, neighbours=3)
    assert (five.precision, five.recall) == pytest.approx((0.7, 1.0))
    assert (five.density, five.coverage) == pytest.approx((0.43, 23 / 30))
    assert (three.precision, three.recall) == pytest.approx((0.45, 1.0))
    assert (three.density, three.coverage) == pytest.approx((0.34166667, 0.45))


def test_precision_and_recall_tell_what_is_missing_from_what_is_wrong():
    """Two clusters in the reference; sounds in one of them only, and sounds in a third as well."""
    left, right, outside = normal(40, 3), normal(40, 3, 1) + 50, normal(40, 3, 2) - 50
    reference = torch.cat([left, right])
    collapsed = coverage_between(normal(40, 3, 3), reference)
    assert collapsed.precision > 0.8 and collapsed.recall < 0.55 and collapsed.coverage < 0.55
    noisy = coverage_between(torch.cat([left, right, outside]), reference)
    assert noisy.precision == pytest.approx(2 / 3) and noisy.recall == 1 and noisy.coverage == 1


def test_sounds_that_are_all_alike_cover_almost_nothing():
    reference = normal(100, 3)
    repeated = coverage_between(reference[:1].expand(40, 3), reference)
    assert repeated.recall == 0 and repeated.coverage < 0.2 and repeated.precision == 1


# classifiers


def test_accuracy_counts_the_most_probable_class_and_ignores_case_in_labels():
    indices = class_indices(["Dog ", "rain", "wind", None], ["rain", "dog"])
    assert indices.tolist() == [1, 0, -1, -1]
    assert is_correct(torch.tensor([[0.2, 0.8], [0.4, 0.6]]), indices[:2]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog barking", "dog barking"),
        ("Dog barking!", "dog barking"),
        ("the dog is barking loudly in a yard", "dog barking"),
        ("dog", None),
        ("rain", "rain"),
        ("heavy rain on a roof", "rain"),
        ("rain and a dog barking", None),
        ("a train", None),
        ("an acoustic guitar", "acoustic guitar"),
        ("guitar", "guitar"),
        ("", None),
        (None, None),
    ],
)
def test_a_prompt_means_the_label_whose_words_it_contains(text, expected):
    labels = ["rain", "dog barking", "guitar", "acoustic guitar"]
    found = label_of_text(text, labels)
    assert (None if found < 0 else labels[found]) == expected


def test_a_sound_is_recognised_when_a_right_class_is_among_the_first_without_generic_ones():
    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3], [9.0, 8, 7, 6, 5, 4, 3]])
    assert is_in_top(logits, [[4], [5]]).tolist() == [1, 0]
    assert is_in_top(logits, [[5], [6]], ignored=[0]).tolist() == [1, 0]
    assert is_in_top(logits, [[0], [6]], ignored=[0, 1]).tolist() == [1, 1]
    assert is_in_top(logits, [[1, 2], [3]], top=2).tolist() == [1, 0]


def test_kl_by_hand_and_in_the_direction_from_the_reference():
    p, q = torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    by_hand = [0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25), math.log(2)]
    assert kl_divergences(p.log(), q.log()).tolist() == pytest.approx(by_hand)
    assert kl_divergences(3 + p.log(), q.log() - 2).tolist() == pytest.approx(by_hand)
    assert kl_divergences(p.log(), p.log()).tolist() == pytest.approx([0, 0])


def test_kl_of_sure_classifiers_is_exact():
    """Two classes, logits (a, 0) and (-a, 0): KL is close to 2 a - a; far beyond where a float's probability is 0."""
    for a in (50.0, 800.0):
        value = float(kl_divergences(torch.tensor([[a, 0.0]]), torch.tensor([[-a, 0.0]])))
        assert value == pytest.approx(a)


def test_kl_of_large_logits_is_that_of_their_definition_in_high_precision():
    x, y = 8 * normal(200, 50), 8 * normal(200, 50, 1)
    with mpmath.workdps(60):

        def softmax(row):
            powers = [mpmath.exp(value) for value in row]
            return [power / sum(powers) for power in powers]

        exact = [
            float(sum(p * mpmath.log(p / q) for p, q in zip(softmax(a), softmax(b), strict=True)))
            for a, b in zip(x[:5].tolist(), y[:5].tolist(), strict=True)
        ]
    assert kl_divergences(x[:5], y[:5]).tolist() == pytest.approx(exact)


def test_audioldm_evals_divergences_add_an_offset_to_the_evaluated_probabilities():
    """By hand from its calculate_kl: kl_div((activation(evaluated) + 1e-6).log(), activation(reference))."""
    reference, evaluated = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 40.0]])
    p, q = [1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))], [math.exp(-40), 1.0]
    by_hand = sum(a * math.log(a / (b + 1e-6)) for a, b in zip(p, q, strict=True))
    assert kl_as_audioldm_eval(reference, evaluated).tolist() == pytest.approx([by_hand])
    p, q = [p[0], 0.5], [0.5, 1.0]
    by_hand = sum(a * math.log(a / (b + 1e-6)) for a, b in zip(p, q, strict=True))
    assert kl_as_audioldm_eval(reference, evaluated, activation="sigmoid").tolist() == pytest.approx([by_hand])


def test_the_mean_of_a_label_is_over_its_sounds():
    logits = torch.tensor([[1.0, 0], [0, 1], [0.5, 0.5]]).log().clamp(min=-1e4)
    means = mean_log_probabilities_by_label(logits, ["Dog", "a dog", "rain"])
    assert {label: mean.exp().tolist() for label, mean in means.items()} == {
        "dog": pytest.approx([0.5, 0.5]), "rain": pytest.approx([0.5, 0.5])
    }  # fmt: skip


def test_the_inception_score_reaches_from_1_to_the_number_of_classes():
    sure = 100 * torch.eye(5)
    assert inception_score(sure) == pytest.approx(5)
    assert inception_score(sure[:1].expand(7, 5)) == pytest.approx(1)
    assert inception_score(torch.zeros(7, 5)) == pytest.approx(1)


def test_the_inception_score_is_that_of_torch_fidelity():
    assert inception_score(3 * points(40, 6, 0.0)) == pytest.approx(2.05794401, abs=1e-8)


def test_the_inception_score_over_splits_is_the_mean_over_them():
    logits = 3 * points(40, 6, 0.0)
    parts = [inception_score(logits[start : start + 4]) for start in range(0, 40, 4)]
    assert inception_score(logits, splits=10) == pytest.approx(sum(parts) / 10)
    with pytest.raises(ValueError, match="9 sounds cannot be split into 10 parts"):
        inception_score(logits[:9], splits=10)


# similarity


def test_cosines_do_not_see_length():
    assert cosines(torch.tensor([[2.0, 0], [1, 1]]), torch.tensor([[5.0, 0], [-3, 3]])).tolist() == pytest.approx(
        [1, 0]
    )


def test_conse_mixes_the_names_of_the_most_probable_classes():
    names = torch.tensor([[1.0, 0], [0, 1], [5, 5]])
    probabilities = torch.tensor([[0.6, 0.3, 0.1]])
    assert conse(probabilities, names, top=2)[0].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert conse(probabilities, names)[0].tolist() == pytest.approx([1.1, 0.8])


def test_diversity_is_the_mean_distance_between_takes_of_one_prompt():
    x = torch.tensor([[1.0, 0], [0, 2], [3, 0], [1, 1], [4, 4], [0, 1]])
    values = diversities(x, ["dog", "dog", "dog", "rain", "rain", "wind"])
    assert values.tolist() == pytest.approx([2 / 3, 0], abs=1e-12)
