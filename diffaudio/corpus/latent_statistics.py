"""What latents look like by channel, gathered sound by sound, and what is wrong with them.

A diffusion model starts from noise of mean 0 and deviation 1, and its losses weigh all channels alike: latents should
have that mean and deviation too, channel by channel or over all of them.
"""

from dataclasses import dataclass

import numpy as np

__all__ = ["LatentStatistics", "latent_warnings"]

DEAD = 0.01  # of the median channel's deviation
FAR = 0.5  # of the deviation over all channels, that a mean lies from 0
SCALE = (0.5, 2.0)  # the deviation over all channels
EXPLODING = 10.0  # a channel's deviation, where all together should have 1
OUTLYING = 30.0  # deviations between a channel's mean and one of its values


@dataclass
class LatentStatistics:
    """Running sums over frames, by channel; memory does not depend on how many there are.

    Attributes:
        sounds: how many were added.
        count: finite values of each channel [channels].
        not_finite: NaN and infinite values of each channel [channels].
        sums: of the values' powers 1 to 4 [4, channels].
        minimum, maximum: [channels]; infinite until something was added.
    """

    sounds: int
    count: np.ndarray
    not_finite: np.ndarray
    sums: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray

    @classmethod
    def empty(cls, channels: int) -> "LatentStatistics":
        """Before the first sound."""
        zeros, infinite = np.zeros(channels, np.int64), np.full(channels, np.inf)
        return cls(0, zeros, zeros.copy(), np.zeros((4, channels)), infinite, -infinite)

    def add(self, latents: np.ndarray) -> None:
        """Add the latents [channels, frames] of one sound, at any precision.

        Raises:
            ValueError: another number of channels.
        """
        if latents.ndim != 2 or len(latents) != len(self.count):
            raise ValueError(f"latents are {latents.shape}; expected [{len(self.count)}, frames]")
        values = latents.astype(np.float64)
        finite = np.isfinite(values)
        self.sounds += 1
        self.count += finite.sum(axis=1)
        self.not_finite += (~finite).sum(axis=1)
        self.minimum = np.minimum(self.minimum, np.where(finite, values, np.inf).min(axis=1, initial=np.inf))
        self.maximum = np.maximum(self.maximum, np.where(finite, values, -np.inf).max(axis=1, initial=-np.inf))
        values = np.where(finite, values, 0)
        self.sums += np.stack([(values**power).sum(axis=1) for power in (1, 2, 3, 4)])

    @property
    def mean(self) -> np.ndarray:
        """[channels]; 0 where a channel has no finite value."""
        return self.sums[0] / np.maximum(self.count, 1)

    @property
    def deviation(self) -> np.ndarray:
        """[channels], about the mean."""
        return np.sqrt(np.maximum(self.sums[1] / np.maximum(self.count, 1) - self.mean**2, 0))

    @property
    def kurtosis(self) -> np.ndarray:
        """[channels]: fourth central moment by the squared variance, less 3: 0 for a Gaussian, NaN for a constant."""
        m, n = self.mean, np.maximum(self.count, 1)
        fourth = self.sums[3] / n - 4 * m * self.sums[2] / n + 6 * m**2 * self.sums[1] / n - 3 * m**4
        variance = self.deviation**2
        return np.divide(fourth, variance**2, out=np.full(len(m), np.nan), where=variance > 1e-12) - 3

    @property
    def overall_deviation(self) -> float:
        """About the channels' own means, over all channels."""
        return float(np.sqrt((self.deviation**2).mean()))


def latent_warnings(statistics: LatentStatistics) -> list[tuple[int | None, str]]:
    """What is wrong: channel, or None for all together, and a sentence; the worst first.

    A channel is dead when it hardly varies beside the others, exploding when its deviation is above 10 or a value
    lies 30 deviations from its mean, and off where its mean is far from 0.
    """
    mean, deviation = statistics.mean, statistics.deviation
    overall, median = statistics.overall_deviation, float(np.median(deviation))
    scaled = np.maximum(deviation, 1e-12)
    furthest = np.maximum(statistics.maximum - mean, mean - statistics.minimum)
    found: list[tuple[int | None, str]] = [
        (channel, f"{number} values are not finite") for channel, number in _where(statistics.not_finite)
    ]
    if not SCALE[0] <= overall <= SCALE[1]:
        found.append((None, f"the deviation over all channels is {overall:.3g}, it should be about 1"))
    dead = deviation <= DEAD * median
    found += [(c, f"dead: its deviation is {deviation[c]:.2g}, the median's {median:.2g}") for c, _ in _where(dead)]
    exploding = (deviation > EXPLODING) & ~dead
    found += [(c, f"exploding: its deviation is {deviation[c]:.3g}") for c, _ in _where(exploding)]
    outlying = (furthest > OUTLYING * scaled) & ~dead & ~exploding & (statistics.count > 0)
    found += [
        (c, f"exploding: a value lies {furthest[c] / scaled[c]:.0f} deviations from the mean")
        for c, _ in _where(outlying)
    ]
    off = np.abs(mean) > FAR * max(overall, 1e-12)
    return found + [(c, f"off: its mean is {mean[c]:.3g}, it should be 0") for c, _ in _where(off)]


def _where(values: np.ndarray) -> list[tuple[int, int]]:
    """Channel and value, where it is not 0."""
    return [(int(channel), int(values[channel])) for channel in np.flatnonzero(values)]
