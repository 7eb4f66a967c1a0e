"""Statistics of latents by channel, accumulated sound by sound, and warnings about them.

A diffusion model starts from noise of mean 0 and standard deviation 1, and its losses weigh all channels alike:
latents should have that mean and standard deviation too, channel by channel or over all of them.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from diffaudio.corpus import latent_shards, store
from diffaudio.errors import UserError

__all__ = ["LatentStatistics", "encoded_latents", "latent_warnings"]

DEAD = 0.01  # of the median channel's standard deviation
EXPLODING = 10.0  # times the median channel's standard deviation
OUTLYING = 30.0  # standard deviations between a channel's mean and one of its values
OFF_CENTRE = 0.5  # distance of a mean from 0 in standard deviations, of the channel or overall, the larger
SCALE = (0.5, 2.0)  # range of the standard deviation over all channels


class LatentStatistics:
    """Running sums over frames, by channel; memory does not depend on their number.

    Attributes:
        channels: number of channels.
        num_sounds, num_frames: number of sounds and frames added.
        not_finite: number of NaN and infinite values of each channel [channels]; no other statistic includes them.
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
    def std(self) -> np.ndarray:
        """[channels], about the mean."""
        return np.sqrt(np.maximum(self._moment(2) - self.mean**2, 0))

    @property
    def kurtosis(self) -> np.ndarray:
        """[channels]: fourth central moment by the squared variance, less 3: 0 for a Gaussian, NaN for a constant."""
        m, variance = self.mean, self.std**2
        fourth = self._moment(4) - 4 * m * self._moment(3) + 6 * m**2 * self._moment(2) - 3 * m**4
        return np.divide(fourth, variance**2, out=np.full(self.channels, np.nan), where=variance > 1e-12) - 3

    @property
    def overall_std(self) -> float:
        """About the channels' own means, over all channels."""
        return float(np.sqrt((self.std**2).mean()))

    def dead(self) -> list[int]:
        """Channels whose standard deviation is a hundredth of the median channel's, or less."""
        return np.flatnonzero(self.std <= DEAD * np.median(self.std)).tolist()

    def exploding(self) -> list[int]:
        """Channels with ten times the median channel's standard deviation, or with an outlier.

        An outlier lies 30 standard deviations from the mean, or is not finite.
        """
        wide = self.std >= EXPLODING * np.median(self.std)
        found = (wide & (self.std > 0)) | (self._largest_distance() > OUTLYING) | (self.not_finite > 0)
        return np.flatnonzero(found).tolist()

    def off_centre(self) -> list[int]:
        """Channels whose mean lies half a standard deviation or more from 0, their own or the overall one."""
        scale = np.maximum(self.std, max(self.overall_std, 1e-12))
        return np.flatnonzero(np.abs(self.mean) >= OFF_CENTRE * scale).tolist()

    def _moment(self, power: int) -> np.ndarray:
        return self._powers[power - 1] / np.maximum(self.num_frames - self.not_finite, 1)

    def _largest_distance(self) -> np.ndarray:
        """[channels]: largest distance of a value from the mean, in standard deviations; 0 for a constant channel."""
        distance = np.fmax(self.maximum - self.mean, self.mean - self.minimum)
        return np.divide(distance, self.std, out=np.zeros(self.channels), where=self.std > 1e-9)


def latent_warnings(statistics: LatentStatistics) -> list[str]:
    """What is wrong, a sentence each: of all channels together first, then of single ones."""
    mean, std, distance_of = statistics.mean, statistics.std, statistics._largest_distance()
    overall, median = statistics.overall_std, float(np.median(std))
    found = []
    if not SCALE[0] <= overall <= SCALE[1]:
        found.append(f"the standard deviation over all channels is {overall:.3g}; a diffusion model wants about 1")
    for channel in statistics.exploding():
        if statistics.not_finite[channel]:
            what = f"{statistics.not_finite[channel]} of {statistics.num_frames} values are not finite"
        elif distance_of[channel] > OUTLYING:
            what = f"a value lies {distance_of[channel]:.0f} standard deviations from the mean"
        else:
            what = f"the standard deviation is {std[channel]:.3g}, the median channel's {median:.3g}"
        found.append(f"channel {channel} explodes: {what}")
    for channel in statistics.dead():
        found.append(
            f"channel {channel} is dead: its standard deviation is {std[channel]:.2g}, the median {median:.2g}"
        )
    off_centre = statistics.off_centre()
    return found + [
        f"channel {channel} is off centre: its mean is {mean[channel]:.3g}, it should be near 0"
        for channel in off_centre
    ]


def encoded_latents(folder: Path) -> Iterator[np.ndarray]:
    """The latents [channels, frames] of every row of an encoded corpus, a few in memory at a time.

    Raises:
        ValueError: a part is damaged.
    """
    for part in store.part_files(folder, "latents"):
        for batch in latent_shards.read_batches(part, ["latents", "num_latent_frames"]):
            for latents, num_frames in zip(batch["latents"], batch["num_latent_frames"].to_pylist(), strict=True):
                with store.name_damage(part):
                    values = latents.values.to_numpy(zero_copy_only=False).reshape(-1, num_frames)
                yield values
