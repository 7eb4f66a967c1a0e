"""Post-hoc EMA: averages whose length is chosen after training (Karras et al. 2023, arXiv:2312.02696, sec. 3, app. C).

    t          optimizer steps done, from 1 on
    theta_k    weights after step k
    gamma      exponent of a power-function average: theta_k weighs (k/t)^(gamma+1) - ((k-1)/t)^(gamma+1)
    sigma_rel  standard deviation of these weights over k, relative to t: the length of the average
    beta       (1 - 1/t)^(gamma+1), the decay of step t; these decays give exactly those weights

A run keeps a few such averages and saves snapshots of them. An average of any other length, at any step up to the last
snapshot, is then approximated by the linear combination of snapshots whose weights over the steps are nearest to its
own in the least-squares sense. The first decay is 0, so the initial weights leave no trace and no warm-up is needed.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diffaudio.atomic_io import atomic_file
from diffaudio.config import Count
from diffaudio.errors import UserError
from diffaudio.training.ema import update_ema

__all__ = [
    "PowerAverageSettings",
    "PowerAverages",
    "Profile",
    "combine_snapshots",
    "gamma_of",
    "power_decay",
    "remove_snapshots_after",
    "sigma_rel_of",
    "snapshot_files",
    "snapshot_weights",
    "thinned_out",
]

_CHUNK = 2**16  # steps whose weights are held at once


@dataclass
class PowerAverageSettings:
    """Averages kept beside the one that becomes the model; `diffaudio average` builds others from their snapshots.

    Attributes:
        sigma_rel: length of each, relative to the steps done; two are enough for all lengths between about half the
            first and twice the second. Empty keeps none.
        update_every: steps between two updates. Averages are far longer, so that up to a hundredth of the steps changes
            nothing that can be measured, and saves the time of an update at each step.
        max_snapshots: how many steps have snapshots; the longer a run, the further apart they lie.
        precision: of the snapshots.
    """

    sigma_rel: tuple[float, ...] = (0.05, 0.1)
    update_every: Count = 1
    max_snapshots: Count = 16
    precision: Literal["fp16", "fp32"] = "fp16"

    def __post_init__(self) -> None:
        for value in self.sigma_rel:
            gamma_of(value)


@dataclass(frozen=True)
class Profile:
    """The weights of one average over the steps.

    Attributes:
        step: t.
        gamma: its exponent.
    """

    step: int
    gamma: float

    def weights(self, first: int, end: int) -> np.ndarray:
        """The weights of theta_first … theta_(end-1), 0 after `step`: [end - first]."""
        places = np.minimum(np.arange(first - 1, end, dtype=np.float64), self.step) / self.step
        return np.diff(places ** (self.gamma + 1))


def sigma_rel_of(gamma: float) -> float:
    """The relative standard deviation of the power function with this exponent."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_of(sigma_rel: float) -> float:
    """The exponent with this relative standard deviation.

    Raises:
        ValueError: it is not above 0, or above 0.28, where the average would be flatter than that over all steps.
    """
    if not 0.005 <= sigma_rel <= 0.28:
        raise UserError(f"sigma_rel is {sigma_rel:g}; an average's relative length must be 0.005 to 0.28")
    # (gamma + 2)^2 (gamma + 3) = (gamma + 1) / sigma_rel^2
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def power_decay(step: int, gamma: float) -> float:
    """beta of the average with exponent `gamma` at a step, counted from 1."""
    return (1 - 1 / step) ** (gamma + 1)


class PowerAverages:
    """Power-function averages of a module's weights, one for each relative length.

    Attributes:
        modules: the averages by name, for the state of a run.
    """

    def __init__(self, module: nn.Module, settings: PowerAverageSettings) -> None:
        self._settings = settings
        self._gammas = [gamma_of(value) for value in settings.sigma_rel]
        self.modules = {
            f"average_{value:g}": copy.deepcopy(module).eval().requires_grad_(False) for value in settings.sigma_rel
        }

    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after step `step`, counted from 1, where an update is due."""
        every = self._settings.update_every
        if step % every == 0:
            for gamma, average in zip(self._gammas, self.modules.values(), strict=True):
                update_ema(average, module, power_decay(step // every, gamma))

    def save_snapshot(self, folder: Path, step: int) -> None:
        """Write `folder/step_<step>.safetensors`, and thin out what lies there; nothing where no average is kept.

        The name is that of the last step that the averages took in.
        """
        step -= step % self._settings.update_every
        if not self.modules or not step:
            return
        folder.mkdir(parents=True, exist_ok=True)
        dtype = torch.float16 if self._settings.precision == "fp16" else torch.float32
        tensors = {
            f"{gamma!r}/{name}": tensor.to(dtype) if tensor.is_floating_point() else tensor
            for gamma, average in zip(self._gammas, self.modules.values(), strict=True)
            for name, tensor in average.state_dict().items()
        }
        with atomic_file(folder / f"step_{step:08d}.safetensors") as temporary:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)
        _thin_out(folder, self._settings.max_snapshots)


def snapshot_files(folder: Path) -> dict[int, Path]:
    """The snapshots by step, in order."""
    return {int(path.stem.removeprefix("step_")): path for path in sorted(folder.glob("step_*.safetensors"))}


def remove_snapshots_after(folder: Path, step: int) -> None:
    """Remove snapshots of steps that are done again."""
    for at, path in snapshot_files(folder).items():
        if at > step:
            path.unlink()


def _thin_out(folder: Path, max_snapshots: int) -> None:
    """Remove snapshots until few enough are left."""
    files = snapshot_files(folder)
    kept = thinned_out(list(files), max_snapshots)
    for step in files.keys() - set(kept):
        files[step].unlink()


def thinned_out(steps: list[int], max_count: int) -> list[int]:
    """The steps, in order, whose snapshots are kept.

    What lies before a tenth of the last step hardly weighs in any average, and goes first; then always the snapshot
    whose neighbours' steps have the smallest ratio, so that the remaining ones lie as densely, relative to their steps,
    everywhere: an average is as long as a fixed share of the steps before it.
    """
    steps = list(steps)
    while len(steps) > max_count:
        if len(steps) < 3 or steps[0] < steps[-1] / 10:
            del steps[0]
        else:
            del steps[min(range(1, len(steps) - 1), key=lambda i: steps[i + 1] / steps[i - 1])]
    return steps


def snapshot_weights(snapshots: Sequence[Profile], target: Profile) -> tuple[np.ndarray, float]:
    """The linear combination of snapshots that is nearest to an average.

    Their weights are the least-squares solution under the condition that they sum to 1, so that parameters that never
    changed stay exact.

    Args:
        snapshots: what is there.
        target: what is wanted, no later than the latest of them.

    Returns:
        weights [snapshots], and the error: the norm of the difference of the two profiles over that of the target's.

    Raises:
        ValueError: there is no snapshot, or the target is later than all of them.
    """
    last = max((snapshot.step for snapshot in snapshots), default=0)
    if not 1 <= target.step <= last:
        raise UserError(f"step {target.step}: averages are built for steps 1 to {last}, that of the latest snapshot")
    count = len(snapshots)
    products, with_target, of_target = np.zeros((count, count)), np.zeros(count), 0.0
    for first in range(1, last + 1, _CHUNK):
        end = min(first + _CHUNK, last + 1)
        profiles = np.stack([snapshot.weights(first, end) for snapshot in snapshots])
        wanted = target.weights(first, end)
        products += profiles @ profiles.T
        with_target += profiles @ wanted
        of_target += wanted @ wanted
    system = np.ones((count + 1, count + 1))
    system[:count, :count], system[count, count] = products / of_target, 0
    solution = np.linalg.lstsq(system, np.append(with_target / of_target, 1), rcond=None)[0][:count]
    squared = 1 + solution @ (products @ solution - 2 * with_target) / of_target
    return solution, math.sqrt(max(squared, 0))


def combine_snapshots(
    files: Iterable[Path], sigma_rel: float, *, step: int | None = None
) -> tuple[dict[str, Tensor], float]:
    """Approximate an average of any relative length from snapshots.

    Args:
        files: snapshots that `PowerAverages.save_snapshot` wrote.
        sigma_rel: the length of the average, relative to `step`.
        step: at which the average ends; None is that of the latest snapshot.

    Returns:
        The weights by name, float32, and the error of the profile; see `snapshot_weights`.

    Raises:
        ValueError: a file is damaged, or such an average cannot be built from these.
    """
    found = {profile: path for path in files for profile in _profiles_in(path)}
    if not found:
        raise UserError("there are no snapshots; train with averages.sigma_rel, which keeps some")
    target = Profile(max(profile.step for profile in found) if step is None else step, gamma_of(sigma_rel))
    weights, error = snapshot_weights(list(found), target)
    sums: dict[str, Tensor] = {}
    for (profile, path), weight in zip(found.items(), weights.tolist(), strict=True):
        for name, tensor in _tensors_of(path, profile):
            if not tensor.is_floating_point():
                sums[name] = tensor
            elif name in sums:
                sums[name].add_(tensor, alpha=weight)
            else:
                sums[name] = tensor.double() * weight
    return {name: total.float() if total.is_floating_point() else total for name, total in sums.items()}, error


def _profiles_in(path: Path) -> list[Profile]:
    gammas = dict.fromkeys(name.split("/", 1)[0] for name in _read(path, lambda file: list(file.keys())))
    return [Profile(int(path.stem.removeprefix("step_")), float(gamma)) for gamma in gammas]


def _tensors_of(path: Path, profile: Profile) -> list[tuple[str, Tensor]]:
    before = f"{profile.gamma!r}/"
    return _read(
        path,
        lambda file: [(n.removeprefix(before), file.get_tensor(n)) for n in file.keys() if n.startswith(before)],  # noqa: SIM118
    )


def _read(path: Path, read):
    try:
        with safe_open(path, "pt") as file:
            return read(file)
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged ({reason}); remove it to build averages from the others") from error
