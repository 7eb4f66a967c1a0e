"""Batches for a tagger: crops of the clips, and outliers, each augmented, with their targets."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffaudio.config import NonNegative, Positive, Share
from diffaudio.corpus.augment import add_noise, change_speed, filter_smoothly, random_crop_or_fill
from diffaudio.corpus.datasets.labelled import OUTLIER_KIND, LabelledClips
from diffaudio.corpus.outliers import SYNTHETIC, is_steady, make_outlier

__all__ = ["BatchSettings", "Pools", "draw_batch", "mix_up"]


@dataclass
class BatchSettings:
    """How sounds are drawn and augmented.

    Attributes:
        duration_s: length of the crops; shorter clips are repeated, or padded with silence.
        balance: how often a kind of n clips is drawn: n to the power of 1 minus this.
        mixup: parameter of the beta distribution by which two sounds and their targets are mixed; 0 mixes none.
        filter_db: how far a smooth random filter raises or lowers a band.
        speed: largest relative change of speed, and so of pitch.
        noise_db: level of white noise below the sound's peak, at the loudest.
        outlier_share: share of the sounds that are outliers, where there are any: half of them recordings, the others
            noise, tones and clips that were reversed or scrambled (`diffaudio.corpus.outliers`).
    """

    duration_s: Positive = 3.0
    balance: Share = 0.5
    mixup: NonNegative = 0.3
    filter_db: NonNegative = 4.0
    speed: Share = 0.05
    noise_db: float = -30.0
    outlier_share: Share = 0.25


@dataclass(frozen=True)
class Pools:
    """The clips that a batch is drawn from, by their indices.

    Attributes:
        clips: of the kinds.
        weights: of each of those in a draw.
        outliers: recordings of none of the kinds.
        changing: of the clips, those whose level changes, so that they are something else when reversed or scrambled.
    """

    clips: Tensor
    weights: Tensor
    outliers: list[int]
    changing: list[int]

    @classmethod
    def of(cls, clips: LabelledClips, balance: float) -> "Pools":
        is_outlier = [False] * len(clips)
        if clips.kinds[-1] == OUTLIER_KIND:
            is_outlier = (clips.targets[:, -1] == 1).tolist()
        known = [index for index, outlier in enumerate(is_outlier) if not outlier]
        outliers = [index for index, outlier in enumerate(is_outlier) if outlier]
        targets = clips.targets[known]
        weights = targets @ targets.sum(dim=0).clamp(min=1e-6) ** -balance
        changing = [index for index in known if not is_steady(clips.waveforms[index].float())] if outliers else []
        return cls(torch.tensor(known), weights, outliers, changing)


def draw_batch(
    clips: LabelledClips, pools: Pools, settings: BatchSettings, generator: torch.Generator, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Augmented crops [batch, samples], and their targets [batch, kinds]."""
    num_samples = round(settings.duration_s * clips.sample_rate)
    chosen = pools.clips[torch.multinomial(pools.weights, batch_size, replacement=True, generator=generator)]
    targets = clips.targets[chosen]
    sounds = []
    for item, index in enumerate(chosen.tolist()):
        sound = clips.waveforms[index].float()
        if pools.outliers and torch.rand((), generator=generator) < settings.outlier_share:
            sound = draw_outlier(clips, pools, sound, generator)
            targets[item] = F.one_hot(torch.tensor(len(clips.kinds) - 1), len(clips.kinds))
        # a little more than is needed, so that no sound is changed in speed as a whole
        longest = round(num_samples * (1 + settings.speed))
        sound = random_crop_or_fill(sound, longest, generator)
        sounds.append(random_crop_or_fill(change_speed(sound, settings.speed, generator), num_samples, generator))
    x = filter_smoothly(torch.stack(sounds), settings.filter_db, generator)
    x = x / x.abs().amax(dim=1, keepdim=True).clamp(min=1e-4)
    if settings.mixup > 0:
        x, targets = mix_up(x, targets, settings.mixup, generator)
    return add_noise(x, settings.noise_db, generator), targets


def draw_outlier(clips: LabelledClips, pools: Pools, sound: Tensor, generator: torch.Generator) -> Tensor:
    """A recording of none of the kinds or, as often, a synthetic outlier, of the length of `sound` or so."""

    def draw(indices: list[int]) -> Tensor:
        return clips.waveforms[indices[int(torch.randint(len(indices), (), generator=generator))]].float()

    if torch.rand((), generator=generator) < 0.5:
        return draw(pools.outliers)
    what = SYNTHETIC[int(torch.randint(len(SYNTHETIC), (), generator=generator))]
    if what in ("reversed", "scrambled") and pools.changing:
        sound = draw(pools.changing)
    elif what in ("reversed", "scrambled"):
        what = "noise"
    return make_outlier(what, sound, clips.sample_rate, generator)


def mix_up(x: Tensor, targets: Tensor, strength: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mix each sound with another: Zhang et al. 2018 (arXiv:1710.09412), eq. 1, with one weight an item."""
    draws = torch._sample_dirichlet(torch.full((len(x), 2), strength), generator)[:, :1]
    other = torch.randperm(len(x), generator=generator)
    return draws * x + (1 - draws) * x[other], draws * targets + (1 - draws) * targets[other]
