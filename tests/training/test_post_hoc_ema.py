"""Post-hoc EMA, against averages computed from the weights of all steps."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from diffaudio.errors import UserError
from diffaudio.training.post_hoc_ema import (
    PowerAverages,
    PowerAverageSettings,
    Profile,
    combine_snapshots,
    gamma_of,
    power_decay,
    remove_snapshots_after,
    sigma_rel_of,
    snapshot_files,
    snapshot_weights,
    thinned_out,
)

STEPS = 400


def trajectory(steps: int = STEPS, size: int = 50) -> torch.Tensor:
    """Weights that drift and jitter, as those of a training run do: [steps, size]."""
    generator = torch.Generator().manual_seed(0)
    drift = torch.randn(steps, size, generator=generator).cumsum(0) / steps**0.5
    return 1 + drift + 0.3 * torch.randn(steps, size, generator=generator)


def power_average(weights: torch.Tensor, sigma_rel: float, step: int) -> torch.Tensor:
    """The definition, from the weights of all steps: [size]."""
    edges = np.arange(step + 1) / step
    profile = torch.from_numpy(np.diff(edges ** (gamma_of(sigma_rel) + 1)))
    return (profile[:, None] * weights[:step].double()).sum(0)


def record(folder, weights, *, every=20, **settings) -> PowerAverages:
    """Snapshots of a run with these weights."""
    module = nn.Linear(weights.shape[1], 1, bias=False)
    averages = PowerAverages(module, PowerAverageSettings(**settings))
    for step, values in enumerate(weights, start=1):
        module.weight.data[0] = values
        averages.update(module, step)
        if step % every == 0:
            averages.save_snapshot(folder, step)
    return averages


def relative_error(found: torch.Tensor, exact: torch.Tensor, weights: torch.Tensor) -> float:
    """In standard deviations of the weights around their mean."""
    return float((found[0] - exact).norm() / (weights - weights.mean(0)).norm(dim=1).mean())


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.25])
def test_the_exponent_and_the_relative_standard_deviation_are_inverse_and_that_of_the_profile(sigma_rel):
    gamma = gamma_of(sigma_rel)
    assert sigma_rel_of(gamma) == pytest.approx(sigma_rel)
    profile = Profile(100_000, gamma).weights(1, 100_001)
    steps = np.arange(1, 100_001) / 100_000
    assert profile.sum() == pytest.approx(1)
    assert math.sqrt(profile @ steps**2 - (profile @ steps) ** 2) == pytest.approx(sigma_rel, rel=1e-3)


def test_the_exponents_of_the_paper():
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.01)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.01)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.29, float("nan")])
def test_an_impossible_length_is_refused(sigma_rel):
    with pytest.raises(UserError, match=r"sigma_rel is \S+; an average's relative length must be 0.005 to 0.28"):
        PowerAverageSettings(sigma_rel=(sigma_rel,))


def test_running_averages_are_the_power_averages_of_all_steps(tmp_path):
    weights = trajectory()
    averages = record(tmp_path, weights, sigma_rel=(0.05, 0.2))
    for sigma_rel, module in zip((0.05, 0.2), averages.modules.values(), strict=True):
        torch.testing.assert_close(
            module.weight[0].double(), power_average(weights, sigma_rel, STEPS), rtol=0, atol=1e-5
        )
    assert power_decay(1, 5.0) == 0


def test_fewer_updates_are_the_power_average_of_the_steps_that_are_taken_in(tmp_path):
    weights = trajectory()
    averages = record(tmp_path, weights, sigma_rel=(0.1,), update_every=8, every=30)
    (module,) = averages.modules.values()
    expected = power_average(weights[7::8], 0.1, STEPS // 8)
    torch.testing.assert_close(module.weight[0].double(), expected, rtol=0, atol=1e-5)
    assert list(snapshot_files(tmp_path))[-3:] == [328, 360, 384]  # of the saves at 330, 360 and 390


def test_the_profile_is_that_of_the_decays():
    step, gamma = 30, 4.2
    decays = [power_decay(t, gamma) for t in range(1, step + 1)]
    expected = [(1 - decays[k]) * math.prod(decays[k + 1 :]) for k in range(step)]
    np.testing.assert_allclose(Profile(step, gamma).weights(1, step + 1), expected, rtol=1e-9)
    np.testing.assert_allclose(Profile(step, gamma).weights(20, step + 11)[:11], expected[19:], rtol=1e-9)
    assert not Profile(step, gamma).weights(step + 1, step + 9).any()


@pytest.mark.parametrize(("sigma_rel", "bound"), [(0.03, 0.03), (0.05, 1e-3), (0.07, 5e-3), (0.1, 1e-3), (0.15, 0.01)])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_averages_of_other_lengths_are_built_from_snapshots(tmp_path, sigma_rel, bound, precision):
    weights = trajectory()
    record(tmp_path, weights, precision=precision, max_snapshots=100)
    built, error = combine_snapshots(snapshot_files(tmp_path).values(), sigma_rel)
    exact = power_average(weights, sigma_rel, STEPS)
    assert relative_error(built["weight"], exact, weights) < bound
    assert error < 2 * bound
    raw = relative_error(weights[-1:], exact, weights)
    assert raw > 10 * bound  # the last weights are no such average


def test_averages_of_earlier_steps_are_built_as_well(tmp_path):
    weights = trajectory()
    record(tmp_path, weights, max_snapshots=100)
    built, _ = combine_snapshots(snapshot_files(tmp_path).values(), 0.08, step=190)
    assert relative_error(built["weight"], power_average(weights, 0.08, 190), weights) < 0.05
    with pytest.raises(UserError, match="step 401: averages are built for steps 1 to 400, that of the latest snapshot"):
        combine_snapshots(snapshot_files(tmp_path).values(), 0.08, step=401)


def test_weights_that_never_change_stay_exact_and_a_kept_average_comes_back_as_it_is(tmp_path):
    weights = trajectory()
    weights[:, 0] = 1.5
    record(tmp_path, weights, precision="fp32")
    files = snapshot_files(tmp_path)
    for sigma_rel in (0.02, 0.06, 0.25):
        built, _ = combine_snapshots(files.values(), sigma_rel)
        assert built["weight"][0, 0].item() == pytest.approx(1.5, abs=1e-5)
    built, error = combine_snapshots(files.values(), 0.1)
    kept = load_file(files[STEPS])[f"{gamma_of(0.1)!r}/weight"]
    torch.testing.assert_close(built["weight"], kept, rtol=0, atol=1e-5)
    assert error < 1e-5


def test_the_combination_is_the_least_squares_solution_of_the_profiles():
    snapshots = [Profile(t, gamma_of(s)) for t in (150, 300, 400) for s in (0.05, 0.1)]
    target = Profile(400, gamma_of(0.13))
    weights, error = snapshot_weights(snapshots, target)
    columns = np.stack([snapshot.weights(1, 401) for snapshot in snapshots], axis=1)
    wanted = target.weights(1, 401)
    assert weights.sum() == pytest.approx(1)
    assert error == pytest.approx(np.linalg.norm(columns @ weights - wanted) / np.linalg.norm(wanted), rel=1e-6)
    gradient = columns.T @ (columns @ weights - wanted)  # under the condition of the sum, the same for all
    np.testing.assert_allclose(gradient, gradient.mean(), atol=1e-9 * wanted.max())
    free = np.linalg.lstsq(columns, wanted, rcond=None)[0]
    assert error >= np.linalg.norm(columns @ free - wanted) / np.linalg.norm(wanted)


def test_snapshots_are_bounded_in_number_and_lie_as_densely_relative_to_their_steps():
    steps: list[int] = []
    for step in range(100, 30_001, 100):
        steps = thinned_out([*steps, step], 16)
        assert len(steps) <= 16 and steps[-1] == step and steps == sorted(set(steps))
    ratios = [b / a for a, b in pairwise(steps)]
    assert steps[0] >= 3000 and max(ratios) < 1.5
    snapshots = [Profile(step, gamma_of(sigma)) for step in steps for sigma in (0.05, 0.1)]
    for sigma_rel, bound in ((0.04, 0.05), (0.07, 0.03), (0.14, 0.06)):
        assert snapshot_weights(snapshots, Profile(30_000, gamma_of(sigma_rel)))[1] < bound
    assert thinned_out([1, 2, 3], 1) == [3] and thinned_out([100, 150, 160], 2) == [100, 160]


def test_snapshots_of_steps_that_are_done_again_are_removed(tmp_path):
    record(tmp_path, trajectory(100), max_snapshots=3)
    assert len(snapshot_files(tmp_path)) == 3
    remove_snapshots_after(tmp_path, 80)
    assert max(snapshot_files(tmp_path)) <= 80


def test_a_damaged_snapshot_is_named(tmp_path):
    record(tmp_path, trajectory(100))
    path = snapshot_files(tmp_path)[60]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(
        UserError, match="step_00000060.safetensors is damaged .*; remove it to build averages from the"
    ):
        combine_snapshots(snapshot_files(tmp_path).values(), 0.1)
    with pytest.raises(UserError, match="there are no snapshots; train with averages.sigma_rel"):
        combine_snapshots([], 0.1)


def test_no_average_means_no_snapshot(tmp_path):
    record(tmp_path / "none", trajectory(40), sigma_rel=())
    assert not (tmp_path / "none").exists()
