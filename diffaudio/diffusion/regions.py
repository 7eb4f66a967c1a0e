"""Regions: predictions of overlapping parts of a sound, each with its own condition, averaged into one prediction.

    D_r  guided prediction of region r for the latents of its frames       [batch, channels, frames of the region]
    w_r  weight of region r at each of its frames; over all regions, the weights of a frame sum to 1
    D    sum over r of w_r D_r                                             [batch, channels, frames]

Windows over a long sound are MultiDiffusion (Bar-Tal et al. 2023, arXiv:2302.08113, eq. 5): D is the least-squares
compromise between the windows. Windows that wrap around make a loop. Several queries with time ranges are regions
too: where they overlap, the mean of their predictions is what composable diffusion (Liu et al. 2022,
arXiv:2206.01714, eq. 11) calls a conjunction. Averaging predictions is the same for all prediction types, which are
linear in the clean latents at a given noise level.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffaudio.errors import UserError

__all__ = ["Region", "RegionGuide", "range_weights", "windows", "with_conditions"]


@dataclass(frozen=True)
class Region:
    """Frames that are predicted together.

    Attributes:
        frames: [n], indices into the frames of the sound; a frame may occur repeatedly where a loop is short.
        weights: [n], of the region's prediction at each frame.
        embedding: [batch, embedding_dim], the condition of the region; None is that of the whole sound.
    """

    frames: Tensor
    weights: Tensor
    embedding: Tensor | None = None


class RegionGuide:
    """A guided prediction like `Guide`, averaged over regions.

    Args:
        make_guide: a new `Guide` for an embedding; each region has one of its own, since it may carry state.
        regions: their weights sum to 1 at every frame.
        embedding: the condition of regions without one.
    """

    def __init__(self, make_guide: Callable[[Tensor], Any], regions: Sequence[Region], embedding: Tensor) -> None:
        self.regions = list(regions)
        self.guides = [make_guide(embedding if each.embedding is None else each.embedding) for each in regions]
        self.options, self.predicts = self.guides[0].options, self.guides[0].predicts

    def __call__(self, z: Tensor, timestep: Tensor | float, alpha: float, sigma: float) -> Tensor:
        """[batch, channels, frames] -> the same; see `Guide.__call__`."""
        prediction = torch.zeros_like(z)
        for region, guide in zip(self.regions, self.guides, strict=True):
            frames = region.frames.to(z.device)
            part = guide(z[..., frames], timestep, alpha, sigma)
            prediction.index_add_(-1, frames, part * region.weights.to(part))
        return prediction


def windows(num_frames: int, *, size: int, overlap: int, margin: int = 0, loop: bool = False) -> list[Region]:
    """Windows that cover a sound, with weights that fade linearly where neighbours overlap and sum to 1.

    Args:
        size: frames of a window; the last may have fewer. A sound that fits into one has one window.
        overlap: frames shared by neighbours, less than `size`; in a short loop, the context on either side.
        margin: frames at either end of an overlap at which the window that begins or ends there has no weight, since a
            model that was trained on short sounds takes the edge of a window for that of the sound.
        loop: whether the end of the sound continues with its beginning.

    Raises:
        UserError: the sizes are out of range.
    """
    if not 0 < overlap < size:
        raise UserError(f"windows of {size} frames cannot overlap by {overlap}; choose an overlap of 1 to {size - 1}")
    if not 0 <= 2 * margin < overlap:
        raise UserError(f"an overlap of {overlap} frames has no room for two margins of {margin}")
    if num_frames <= size and not loop:
        return [Region(torch.arange(num_frames), torch.ones(num_frames))]
    if num_frames <= size:
        frames = torch.arange(-overlap, num_frames + overlap)
        is_inside = (frames >= 0) & (frames < num_frames)
        return [Region(frames % num_frames, is_inside.float())]
    hop = size - overlap
    starts = range(0, num_frames if loop else num_frames - overlap, hop)
    parts = [torch.arange(start, start + size if loop else min(start + size, num_frames)) for start in starts]
    ramps = []
    for part in parts:
        rises, falls = (loop or bool(each) for each in (part[0] > 0, part[-1] < num_frames - 1))
        ramps.append(_ramp(len(part), overlap, margin, rises=rises, falls=falls))
    return _normalised([Region(part % num_frames, ramp) for part, ramp in zip(parts, ramps, strict=True)], num_frames)


def with_conditions(regions: Sequence[Region], embeddings: Sequence[Tensor], weights: Tensor) -> list[Region]:
    """Each region once for each query that has any weight in it.

    Args:
        embeddings: [batch, embedding_dim] of each query.
        weights: [queries, frames], of `range_weights`; they sum to 1 over the queries.
    """
    conditioned = [
        Region(region.frames, region.weights * of_query[region.frames], embedding)
        for region in regions
        for embedding, of_query in zip(embeddings, weights, strict=True)
    ]
    return [region for region in conditioned if region.weights.any()]


def range_weights(
    ranges: Sequence[tuple[float, float]],
    num_frames: int,
    *,
    latent_rate: float,
    crossfade_s: float,
    first_frame: int = 0,
) -> Tensor:
    """The share of each query at each frame: equal shares where ranges overlap, crossfaded linearly at their ends.

    Args:
        ranges: start and end of each query in seconds; together they cover all frames.
        crossfade_s: duration of the crossfade around each start and end.
        first_frame: of the frames within the sound.

    Returns:
        [queries, frames], float32; the shares of a frame sum to 1.

    Raises:
        UserError: no query is active in some frame.
    """
    middle_s = (first_frame + torch.arange(num_frames, dtype=torch.float64) + 0.5) / latent_rate
    ramp_s = max(crossfade_s, 1 / latent_rate)
    active = torch.stack(
        [
            ((torch.minimum(middle_s - start_s, end_s - middle_s)) / ramp_s + 0.5).clamp(0, 1)
            for start_s, end_s in ranges
        ]
    )
    total = active.sum(dim=0)
    if (total < 1e-6).any():
        empty_s = float(middle_s[total < 1e-6][0])
        raise UserError(f"no prompt is active at {empty_s:.2f} s; let the time ranges cover the whole sound")
    return (active / total).float()


def _ramp(length: int, overlap: int, margin: int, *, rises: bool, falls: bool) -> Tensor:
    weights = torch.ones(length)
    slope = ((torch.arange(min(overlap, length)) + 0.5 - margin) / (overlap - 2 * margin)).clamp(0, 1)
    if rises:
        weights[: len(slope)] = slope
    if falls:
        weights[length - len(slope) :] = torch.minimum(weights[length - len(slope) :], slope.flip(0))
    return weights


def _normalised(regions: list[Region], num_frames: int) -> list[Region]:
    total = torch.zeros(num_frames)
    for region in regions:
        total.index_add_(0, region.frames, region.weights)
    return [Region(region.frames, region.weights / total[region.frames]) for region in regions]
