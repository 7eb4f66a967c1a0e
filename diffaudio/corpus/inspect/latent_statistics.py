"""What latents look like by channel, gathered sound by sound, and what is wrong with them.

A diffusion model starts from noise of mean 0 and deviation 1, and its losses weigh all channels alike: latents should
have that mean and deviation too, channel by channel or over all of them.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from diffaudio.corpus import latent_parts, store
from diffaudio.errors import UserError

__all__ = ["LatentStatistics", "encoded_latents", "latent_warnings"]

DEAD = 0.01  # of the median channel's deviation
EXPLODING = 10.0  # times the median channel's deviation
OUTLYING = 30.0  # deviations between a channel's mean and one of its values
OFF = 0.5  # of the deviation, of the channel or over all, whichever is larger, that a mean lies from 0
SCALE = (0.5, 2.0)  # the deviation over all channels


class LatentStatistics:
    """Running sums over frames, by channel; memory does not depend on how many there are.

    Attributes:
        channels: how many there are.
        num_sounds, num_frames: how many were added.
        not_finite: NaN and infinite values of each channel [channels]; they are in no other number.
        minimum, maximum: [channels]; NaN where a channel has no finite value.
    """

    def __init__(self, channels: int) -> None:
        self.channels, self.num_sounds, self.num_frames = channels, 0, 0
        self.not_finite = np.zeros(channels, np.int64)
        self.minimum, self.maximum = np.full((2, channels), np.nan)
        self._powers = np.zeros((4, channels))  # sums of values, their squares, …

    def add(self, latents: np.ndarray) -> None:
        """Add the latents [channels, frames] of one sound, at any precision.

        Raises:
            ValueError: another number of channels, or no frame.
        """
        if latents.ndim != 2 or len(latents) != self.channels or latents.shape[1] == 0:
            raise UserError(f"latents are {latents.shape}; expected [{self.channels}, frames]")
        finite = np.isfinite(latents)
        values = np.where(finite, latents, np.nan).astype(np.float64)
        self.num_sounds, self.num_frames = self.num_sounds + 1, self.num_frames + latents.shape[1]
        self.not_finite += (~finite).sum(axis=1)
        self.minimum = np.fmin(self.minimum, np.fmin.reduce(values, axis=1))
        self.maximum = np.fmax(self.maximum, np.fmax.reduce(values, axis=1))
        values = np.nan_to_num(values)
        self._powers += np.stack([(values**power).sum(axis=1) for power in (1, 2, 3, 4)])

    @property
    def mean(self) -> np.ndarray:
        """[channels]"""
        return self._moment(1)

    @property
    def deviation(self) -> np.ndarray:
        """[channels], about the mean."""
        return np.sqrt(np.maximum(self._moment(2) - self.mean**2, 0))

    @property
    def kurtosis(self) -> np.ndarray:
        """[channels]: fourth central moment by the squared variance, less 3: 0 for a Gaussian, NaN for a constant."""
        m, variance = self.mean, self.deviation**2
        fourth = self._moment(4) - 4 * m * self._moment(3) + 6 * m**2 * self._moment(2) - 3 * m**4
        return np.divide(fourth, variance**2, out=np.full(self.channels, np.nan), where=variance > 1e-12) - 3

    @property
    def overall_deviation(self) -> float:
        """About the channels' own means, over all channels."""
        return float(np.sqrt((self.deviation**2).mean()))

    def dead(self) -> list[int]:
        """Channels that hardly move: their deviation is a hundredth of the median channel's, or less."""
        return np.flatnonzero(self.deviation <= DEAD * np.median(self.deviation)).tolist()

    def exploding(self) -> list[int]:
        """Channels that move ten times as much as the median one, or hold a value far out.

        Far out is 30 deviations from the mean, or not finite.
        """
        wide = self.deviation >= EXPLODING * np.median(self.deviation)
        found = (wide & (self.deviation > 0)) | (self._furthest() > OUTLYING) | (self.not_finite > 0)
        return np.flatnonzero(found).tolist()

    def off(self) -> list[int]:
        """Channels whose mean is half a deviation from 0, or more: the channel's or all channels', the larger."""
        scale = np.maximum(self.deviation, max(self.overall_deviation, 1e-12))
        return np.flatnonzero(np.abs(self.mean) >= OFF * scale).tolist()

    def _moment(self, power: int) -> np.ndarray:
        return self._powers[power - 1] / np.maximum(self.num_frames - self.not_finite, 1)

    def _furthest(self) -> np.ndarray:
        """[channels]: of a value from the mean, in deviations; 0 for a channel that does not move."""
        distance = np.fmax(self.maximum - self.mean, self.mean - self.minimum)
        return np.divide(distance, self.deviation, out=np.zeros(self.channels), where=self.deviation > 1e-9)


def latent_warnings(statistics: LatentStatistics) -> list[str]:
    """What is wrong, a sentence each: of all channels together first, then of single ones."""
    mean, deviation, furthest = statistics.mean, statistics.deviation, statistics._furthest()
    overall, median = statistics.overall_deviation, float(np.median(deviation))
    found = []
    if not SCALE[0] <= overall <= SCALE[1]:
        found.append(f"the deviation over all channels is {overall:.3g}; a diffusion model wants about 1")
    for channel in statistics.exploding():
        if statistics.not_finite[channel]:
            what = f"{statistics.not_finite[channel]} of {statistics.num_frames} values are not finite"
        elif furthest[channel] > OUTLYING:
            what = f"a value lies {furthest[channel]:.0f} deviations from the mean"
        else:
            what = f"the deviation is {deviation[channel]:.3g}, the median channel's {median:.3g}"
        found.append(f"channel {channel} explodes: {what}")
    for channel in statistics.dead():
        found.append(f"channel {channel} is dead: its deviation is {deviation[channel]:.2g}, the median {median:.2g}")
    off = statistics.off()
    return found + [
        f"channel {channel} is off: its mean is {mean[channel]:.3g}, it should be near 0" for channel in off
    ]


def encoded_latents(folder: Path) -> Iterator[np.ndarray]:
    """The latents [channels, frames] of every row of an encoded corpus, a few in memory at a time.

    Raises:
        ValueError: a part is damaged.
    """
    for part in store.part_files(folder, "latents"):
        for batch in latent_parts.read_batches(part, ["latents", "num_latent_frames"]):
            for latents, num_frames in zip(batch["latents"], batch["num_latent_frames"].to_pylist(), strict=True):
                with store.name_damage(part):
                    values = latents.values.to_numpy(zero_copy_only=False).reshape(-1, num_frames)
                yield values
