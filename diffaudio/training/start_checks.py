"""Checks before the first step: is what the corpus holds what the autoencoder makes, at the scale training expects?"""

import logging
import math

import torch
from torch import Tensor

from diffaudio.corpus.datasets.latents import LatentDataset
from diffaudio.errors import UserError
from diffaudio.models.autoencoders import Autoencoder

__all__ = ["check_start"]

logger = logging.getLogger(__name__)

STATISTICS_CLIPS = 256
ROUND_TRIP_S = 2.0
STD_RANGE = (0.5, 2.0)  # noise has 1, and the noise levels are chosen for latents like it
MIN_CORRELATION = 0.5  # of latents decoded and encoded again; other weights of the same shape give about 0


@torch.no_grad()
def check_start(dataset: LatentDataset, autoencoder: Autoencoder) -> str:
    """Measure latents of the corpus, and send some of them through the autoencoder and back.

    A warning is logged where their scale is unusual, or where the round trip loses them.

    Returns:
        What was found, as a line.

    Raises:
        UserError: the latents are constant.
    """
    clips = torch.linspace(0, len(dataset) - 1, min(STATISTICS_CLIPS, len(dataset))).round().long().tolist()
    latents = [dataset[clip]["latents"] for clip in clips]
    values = torch.cat(latents, dim=1)  # [channels, frames]
    mean, std = float(values.mean()), float(values.std(correction=0))
    place = dataset.folders[0]
    if not std:
        raise UserError(f"{place}: all latents of {len(clips)} clips are {mean:g}; encode the corpus again")
    if not STD_RANGE[0] <= std <= STD_RANGE[1] or abs(mean) > std:
        logger.warning(
            "%s: the latents have mean %.3g and standard deviation %.3g, where training expects about 0 and 1; the "
            "noise levels do not suit them. Fit the autoencoder's mean and scale to such sounds",
            place, mean, std,
        )  # fmt: skip
    dead = int((values.std(dim=1) < 1e-3 * std).sum())
    if dead:
        logger.warning("%s: %d of %d latent channels are constant", place, dead, len(values))
    correlation = _round_trip(max(latents, key=lambda each: each.shape[1]), autoencoder)
    if not correlation >= MIN_CORRELATION:
        logger.warning(
            "%s: latents that are decoded and encoded again correlate by only %.2f with what they were; were they made "
            "by another version of autoencoder '%s'?",
            place, correlation, autoencoder.name,
        )  # fmt: skip
    return f"latents: mean {mean:.3f}, standard deviation {std:.3f}, correlation {correlation:.2f} after a round trip"


def _round_trip(latents: Tensor, autoencoder: Autoencoder) -> float:
    """Correlation of latents [channels, frames] with what becomes of them in the autoencoder and back."""
    num_frames = min(latents.shape[1], math.ceil(ROUND_TRIP_S * autoencoder.latent_rate))
    device = next(autoencoder.parameters()).device
    before = latents[:, :num_frames].to(device)
    after = autoencoder.encode(autoencoder.decode(before[None]))[0]
    num_frames = min(before.shape[1], after.shape[1])
    return float(torch.corrcoef(torch.stack([before[:, :num_frames].flatten(), after[:, :num_frames].flatten()]))[0, 1])
