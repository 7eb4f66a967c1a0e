"""Sounds to embeddings: each sound goes once through every backbone and the checks, and is then forgotten."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from diffaudio.errors import UserError
from diffaudio.evaluation.backbones.base import Backbone, Kinds, TextBackbone
from diffaudio.media.audio import mix_channels, resample
from diffaudio.metrics.audio_checks import Checks, check, join_checks
from diffaudio.metrics.similarity import conse

__all__ = ["AudioEmbeddings", "Embedder", "Sound", "TextEncoder"]


@dataclass(frozen=True)
class Sound:
    """One sound to be evaluated.

    Attributes:
        waveform: [channels, samples] in [-1, 1].
        name: its file name without suffix; pairs it with the recording of that name in the reference.
        prompt: the text it was generated from.
        label: what it should be, in a classifier's words.
    """

    waveform: Tensor
    sample_rate: int
    name: str
    prompt: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class AudioEmbeddings:
    """Everything that is kept of n sounds.

    Attributes:
        seconds: duration of each.
        embeddings: by backbone, for each sound [windows, dim].
        logits: by backbone that classifies, [n, classes].
        classes: by backbone that classifies, their names; empty where they are not known.
        kinds: by backbone that has one, its table of kinds.
        sounds_as_text: by metric of text similarity, the sounds' embeddings in the space of the texts [n, dim].
        texts: by the same, the embedding [n, dim] of each sound's prompt, or of its label where it has no prompt;
            NaN where it has neither.
    """

    names: list[str]
    prompts: list[str | None]
    labels: list[str | None]
    seconds: list[float]
    embeddings: dict[str, list[Tensor]]
    logits: dict[str, Tensor]
    classes: dict[str, list[str]]
    kinds: dict[str, Kinds]
    sounds_as_text: dict[str, Tensor]
    texts: dict[str, Tensor]
    checks: Checks

    def __len__(self) -> int:
        return len(self.names)

    def wanted(self) -> list[str | None]:
        """What each sound should be: its label, or else its prompt."""
        return [label or prompt for label, prompt in zip(self.labels, self.prompts, strict=True)]

    def pick(self, indices: Sequence[int]) -> "AudioEmbeddings":
        """Some of the sounds."""
        chosen = list(indices)

        def pick_from(values: list[Any]) -> list[Any]:
            return [values[index] for index in chosen]

        return replace(
            self,
            names=pick_from(self.names),
            prompts=pick_from(self.prompts),
            labels=pick_from(self.labels),
            seconds=pick_from(self.seconds),
            embeddings={name: pick_from(windows) for name, windows in self.embeddings.items()},
            logits={name: logits[chosen] for name, logits in self.logits.items()},
            sounds_as_text={name: embeddings[chosen] for name, embeddings in self.sounds_as_text.items()},
            texts={name: embeddings[chosen] for name, embeddings in self.texts.items()},
            checks=self.checks.pick(chosen),
        )

    def with_texts_shuffled(self, generator: torch.Generator) -> "AudioEmbeddings":
        """The same sounds with their names, prompts and labels permuted at random."""
        order = torch.randperm(len(self), generator=generator).tolist()
        other = self.pick(order)
        return replace(self, names=other.names, prompts=other.prompts, labels=other.labels, texts=other.texts)


class TextEncoder(Protocol):
    """Texts to embeddings [n, dim], as `diffaudio.models.clip.Clip` does it."""

    name: str

    def encode_text(self, texts: list[str]) -> Tensor: ...


class Embedder:
    """Backbones, and a cache of text embeddings.

    Args:
        backbones: each name once.
        clip: adds the CLIP-space score to every backbone whose classes have names.
        clip_name: of `clip` in the metrics' names; letters, digits and underscores.
        clip_checkpoint: sha256 of its weights, where they are a local file.
        batch_size: sounds at a time.

    Raises:
        ValueError: two backbones have one name.
    """

    def __init__(
        self,
        backbones: Sequence[Backbone],
        *,
        clip: TextEncoder | None = None,
        clip_name: str = "",
        clip_checkpoint: str | None = None,
        batch_size: int = 16,
    ) -> None:
        names = [backbone.name for backbone in backbones]
        if len(set(names)) < len(names):
            raise UserError(f"two backbones have one name ({', '.join(names)}); give each once")
        self.backbones = list(backbones)
        self.batch_size = batch_size
        self.clip_name = clip_name if clip is not None else None
        self.clip_checkpoint = clip_checkpoint
        self._clip = clip
        self._text_cache: dict[tuple[str, str], Tensor] = {}

    def embed(self, sounds: Iterable[Sound]) -> AudioEmbeddings:
        """Embed every sound; they may come one by one from files.

        Raises:
            ValueError: there is no sound, or one is empty or holds numbers that are not finite.
        """
        parts = [self._embed_batch(batch) for batch in _batches(sounds, self.batch_size)]
        if not parts:
            raise UserError("there are no sounds to evaluate")

        def joined(get: Callable[[AudioEmbeddings], list[Any]]) -> list[Any]:
            return [value for part in parts for value in get(part)]

        def stacked(get: Callable[[AudioEmbeddings], dict[str, Tensor]]) -> dict[str, Tensor]:
            return {name: torch.cat([get(part)[name] for part in parts]) for name in get(parts[0])}

        return AudioEmbeddings(
            names=joined(lambda part: part.names),
            prompts=joined(lambda part: part.prompts),
            labels=joined(lambda part: part.labels),
            seconds=joined(lambda part: part.seconds),
            embeddings={b.name: [w for part in parts for w in part.embeddings[b.name]] for b in self.backbones},
            logits=stacked(lambda part: part.logits),
            classes=parts[0].classes,
            kinds=parts[0].kinds,
            sounds_as_text=stacked(lambda part: part.sounds_as_text),
            texts=stacked(lambda part: part.texts),
            checks=join_checks([part.checks for part in parts]),
        )

    def _embed_batch(self, sounds: list[Sound]) -> AudioEmbeddings:
        for sound in sounds:
            if sound.waveform.numel() == 0 or not sound.waveform.isfinite().all():
                raise UserError(f"{sound.name}: the sound is empty or damaged (not all samples are numbers)")
        texts = [sound.prompt or sound.label for sound in sounds]
        embeddings, logits, classes, kinds = {}, {}, {}, {}
        sounds_as_text, text_embeddings = {}, {}
        for backbone in self.backbones:
            mono = [resample(mix_channels(s.waveform, 1)[0], s.sample_rate, backbone.sample_rate) for s in sounds]
            windows, scores = backbone.embed(mono)
            embeddings[backbone.name] = [each.double().cpu() for each in windows]
            if isinstance(backbone, TextBackbone):
                metric = f"clap_score_{backbone.name}"
                sounds_as_text[metric] = torch.stack([each.mean(dim=0) for each in embeddings[backbone.name]])
                dim = backbone.embedding_dim
                text_embeddings[metric] = self._embed_texts(backbone.name, backbone.embed_text, texts, dim)
            if scores is None:
                continue
            logits[backbone.name], classes[backbone.name] = scores.double().cpu(), backbone.labels or []
            if backbone.kinds is not None:
                kinds[backbone.name] = backbone.kinds
            if self._clip is not None and self.clip_name is not None and backbone.labels is not None:
                metric, encode = f"clip_score_{self.clip_name}_{backbone.name}", self._clip.encode_text
                names = self._embed_texts(self.clip_name, encode, backbone.labels)
                sounds_as_text[metric] = conse(logits[backbone.name].softmax(dim=1), names)
                text_embeddings[metric] = self._embed_texts(self.clip_name, encode, texts, names.shape[1])
        return AudioEmbeddings(
            names=[sound.name for sound in sounds],
            prompts=[sound.prompt for sound in sounds],
            labels=[sound.label for sound in sounds],
            seconds=[sound.waveform.shape[-1] / sound.sample_rate for sound in sounds],
            embeddings=embeddings,
            logits=logits,
            classes=classes,
            kinds=kinds,
            sounds_as_text=sounds_as_text,
            texts=text_embeddings,
            checks=join_checks([check(sound.waveform, sound.sample_rate) for sound in sounds]),
        )

    def _embed_texts(
        self, space: str, encode: Callable[[list[str]], Tensor], texts: Sequence[str | None], dim: int = 0
    ) -> Tensor:
        """Embeddings [len(texts), dim]; each text is encoded once, NaN stands for None."""
        new = sorted({text for text in texts if text is not None and (space, text) not in self._text_cache})
        if new:
            for text, embedding in zip(new, encode(new).double().cpu(), strict=True):
                self._text_cache[space, text] = embedding
        missing = torch.full((dim,), float("nan"), dtype=torch.float64)
        return torch.stack([missing if text is None else self._text_cache[space, text] for text in texts])


def _batches(sounds: Iterable[Sound], size: int) -> Iterator[list[Sound]]:
    stream = iter(sounds)
    while batch := list(islice(stream, size)):
        yield batch
