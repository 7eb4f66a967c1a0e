"""The classes that a backbone finds in sounds, most probable first."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from diffaudio.errors import UserError
from diffaudio.evaluation.backbones.base import Backbone
from diffaudio.evaluation.embed import Sound
from diffaudio.media.audio import mix_channels, resample

__all__ = ["Tag", "tag_sounds"]


@dataclass(frozen=True)
class Tag:
    """A class and its score, from 0 to 1; scores of a multi-label classifier do not sum to 1."""

    tag: str
    score: float


def tag_sounds(backbone: Backbone, sounds: Iterable[Sound], *, top: int = 5) -> Iterator[tuple[Sound, list[Tag]]]:
    """Each sound with its `top` most probable classes.

    Raises:
        ValueError: the backbone is no classifier, or its classes have no names; a sound is empty or damaged.
    """
    if backbone.labels is None:
        raise UserError(f"{backbone.name}: is no classifier whose classes have names; choose yamnet, tagger or musicnn")
    for sound in sounds:
        if sound.waveform.numel() == 0 or not sound.waveform.isfinite().all():
            raise UserError(f"{sound.name}: the sound is empty or damaged (not all samples are numbers)")
        mono = resample(mix_channels(sound.waveform, 1)[0], sound.sample_rate, backbone.sample_rate)
        logits = backbone.embed([mono])[1]
        assert logits is not None
        scores = logits[0].sigmoid() if backbone.is_multilabel else logits[0].softmax(dim=0)
        best = scores.topk(min(top, len(scores)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        yield sound, [Tag(backbone.labels[index], score) for index, score in pairs]
