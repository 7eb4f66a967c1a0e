"""What a tagger makes of recordings that were held out, and of outliers."""

from typing import Any

from torch import Tensor

from diffaudio.corpus.datasets.labelled import OUTLIER_KIND, LabelledClips
from diffaudio.corpus.outliers import SYNTHETIC, make_outlier
from diffaudio.metrics.confidence import wilson
from diffaudio.models.tagger import Tagger
from diffaudio.seeding import seeded_generator
from diffaudio.training.tagger_batches import Pools

__all__ = ["measure"]

SEED = 0
MAX_OUTLIERS = 100  # of each sort


def measure(tagger: Tagger, clips: LabelledClips) -> dict[str, Any]:
    """Accuracy over whole recordings of the kinds, with its interval (95 %), by kind, and what was held out.

    A recording that is taken for none of the kinds counts as wrong. Of the outliers, it is measured which share is
    found to be none of the kinds.
    """
    pools = Pools.of(clips, 0.0)
    known = clips.subset(pools.clips.tolist())
    logits = tagger.tag([waveform.float() for waveform in known.waveforms])[1]
    truth = known.targets.argmax(dim=1)
    right = logits.argmax(dim=1) == truth
    first = logits.topk(min(3, len(clips.kinds))).indices
    share = right.double().mean().item()
    interval = wilson(share, len(known))
    by_kind = {
        kind: f"{int(right[truth == index].sum())} of {int((truth == index).sum())}"
        for index, kind in enumerate(clips.kinds)
        if kind != OUTLIER_KIND
    }
    measured: dict[str, Any] = {
        "accuracy": round(share, 4),
        "top_3": round((first == truth[:, None]).any(dim=1).double().mean().item(), 4),
        "n": len(known),
        "interval": [round(interval.low, 4), round(interval.high, 4)],
        "by_kind": by_kind,
    }
    if clips.kinds[-1] == OUTLIER_KIND:
        none = len(clips.kinds) - 1
        measured["taken_for_none"] = f"{int((logits.argmax(dim=1) == none).sum())} of {len(known)}"
        measured["outliers"] = {
            what: f"{int((tagger.tag(sounds)[1].argmax(dim=1) == none).sum())} of {len(sounds)}"
            for what, sounds in held_out_outliers(clips, pools).items()
            if sounds
        }
    return measured | {"held_out": clips.sources}


def held_out_outliers(clips: LabelledClips, pools: Pools) -> dict[str, list[Tensor]]:
    """Outliers to measure with: the recordings, and synthetic ones of each sort that never change."""
    outliers = {"recordings": [clips.waveforms[index].float() for index in pools.outliers]}
    for number, what in enumerate(SYNTHETIC):
        generator = seeded_generator(SEED, number)
        sources = pools.changing if what in ("reversed", "scrambled") else pools.clips.tolist()
        waveforms = [clips.waveforms[index].float() for index in sources[:MAX_OUTLIERS]]
        outliers[what] = [make_outlier(what, waveform, clips.sample_rate, generator) for waveform in waveforms]
    return outliers
