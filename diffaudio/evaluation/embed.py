"""Hearing a set of sounds: each goes once through every backbone and the checks, and is then forgotten."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from diffaudio.errors import UserError
from diffaudio.evaluation.backbones.base import Backbone, TextBackbone
from diffaudio.media.audio import mix_channels, resample
from diffaudio.metrics.audio_checks import Checks, check, join_checks
from diffaudio.metrics.similarity import conse

__all__ = ["AudioEmbeddings", "Embedder", "Sound", "TextEncoder"]


@dataclass(frozen=True)
class Sound:
    """One sound to be evaluated.

    Attributes:
        waveform: [channels, samples] in [-1, 1].
        name: what pairs it with a recording of the same name in the reference; its file name without suffix.
        prompt: the text it was made from.
        label: what it should be, in the words of a classifier.
    """

    waveform: Tensor
    sample_rate: int
    name: str
    prompt: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class AudioEmbeddings:
    """What is known of n sounds once they were embedded.

    Attributes:
        seconds: duration of each.
        embeddings: by backbone, for each sound [windows, dim].
        logits: by backbone that classifies, [n, classes].
        classes: by backbone that classifies, their names; empty where they are not known.
        sounds_as_text: by metric of likeness to the text, the sounds' embeddings in its space [n, dim].
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
    sounds_as_text: dict[str, Tensor]
    texts: dict[str, Tensor]
    checks: Checks

    def __len__(self) -> int:
        return len(self.names)

    def wanted(self) -> list[str | None]:
        """What each sound should be: its label, or else its prompt, which may be exactly the name of a class."""
        return [label or prompt for label, prompt in zip(self.labels, self.prompts, strict=True)]

    def pick(self, indices: Sequence[int]) -> "AudioEmbeddings":
        """Some of the sounds."""
        chosen = list(indices)

        def of(values: list[Any]) -> list[Any]:
            return [values[index] for index in chosen]

        return AudioEmbeddings(
            of(self.names),
            of(self.prompts),
            of(self.labels),
            of(self.seconds),
            {name: of(windows) for name, windows in self.embeddings.items()},
            {name: logits[chosen] for name, logits in self.logits.items()},
            self.classes,
            {name: embeddings[chosen] for name, embeddings in self.sounds_as_text.items()},
            {name: embeddings[chosen] for name, embeddings in self.texts.items()},
            self.checks.pick(chosen),
        )

    def with_texts_shuffled(self, generator: torch.Generator) -> "AudioEmbeddings":
        """The same sounds with their prompts and labels, and so their names, dealt anew."""
        order = torch.randperm(len(self), generator=generator).tolist()
        other = self.pick(order)
        return replace(self, names=other.names, prompts=other.prompts, labels=other.labels, texts=other.texts)


class TextEncoder(Protocol):
    """Texts to embeddings [n, dim], as `diffaudio.models.clip.Clip` does it."""

    name: str

    def encode_text(self, texts: list[str]) -> Tensor: ...


class Embedder:
    """Backbones to hear with, and a memory of the texts already read.

    Args:
        backbones: each name once.
        clip: adds the CLIP-space score to every backbone whose classes have names.
        clip_name: of `clip` in the metrics' names; letters, digits and underscores.
        clip_checkpoint: sha256 of its weights, where they are a local file.
        batch_size: sounds at a time.
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
        self._read: dict[tuple[str, str], Tensor] = {}

    def embed(self, sounds: Iterable[Sound]) -> AudioEmbeddings:
        """Hear every sound; they may come one by one from files.

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
            joined(lambda part: part.names),
            joined(lambda part: part.prompts),
            joined(lambda part: part.labels),
            joined(lambda part: part.seconds),
            {b.name: [w for part in parts for w in part.embeddings[b.name]] for b in self.backbones},
            stacked(lambda part: part.logits),
            parts[0].classes,
            stacked(lambda part: part.sounds_as_text),
            stacked(lambda part: part.texts),
            join_checks([part.checks for part in parts]),
        )

    def _embed_batch(self, sounds: list[Sound]) -> AudioEmbeddings:
        for sound in sounds:
            if sound.waveform.numel() == 0 or not sound.waveform.isfinite().all():
                raise UserError(f"{sound.name}: the sound is empty or damaged (not all samples are numbers)")
        texts = [sound.prompt or sound.label for sound in sounds]
        embeddings, logits, classes = {}, {}, {}
        sounds_as_text, read = {}, {}
        for backbone in self.backbones:
            mono = [resample(mix_channels(s.waveform, 1)[0], s.sample_rate, backbone.sample_rate) for s in sounds]
            windows, scores = backbone.embed(mono)
            embeddings[backbone.name] = [each.double().cpu() for each in windows]
            if isinstance(backbone, TextBackbone):
                metric = f"clap_score_{backbone.name}"
                sounds_as_text[metric] = torch.stack([each.mean(dim=0) for each in embeddings[backbone.name]])
                read[metric] = self._texts(backbone.name, backbone.embed_text, texts, backbone.embedding_dim)
            if scores is not None:
                logits[backbone.name], classes[backbone.name] = scores.double().cpu(), backbone.labels or []
                if self._clip is not None and self.clip_name is not None and backbone.labels is not None:
                    metric, encode = f"clip_score_{self.clip_name}_{backbone.name}", self._clip.encode_text
                    names = self._texts(self.clip_name, encode, backbone.labels)
                    sounds_as_text[metric] = conse(logits[backbone.name].softmax(dim=1), names)
                    read[metric] = self._texts(self.clip_name, encode, texts, names.shape[1])
        return AudioEmbeddings(
            [sound.name for sound in sounds],
            [sound.prompt for sound in sounds],
            [sound.label for sound in sounds],
            [sound.waveform.shape[-1] / sound.sample_rate for sound in sounds],
            embeddings,
            logits,
            classes,
            sounds_as_text,
            read,
            join_checks([check(sound.waveform, sound.sample_rate) for sound in sounds]),
        )

    def _texts(
        self, space: str, read: Callable[[list[str]], Tensor], texts: Sequence[str | None], dim: int = 0
    ) -> Tensor:
        """Embeddings [len(texts), dim]; each text is read once, NaN stands for None."""
        new = sorted({text for text in texts if text is not None and (space, text) not in self._read})
        if new:
            for text, embedding in zip(new, read(new).double().cpu(), strict=True):
                self._read[space, text] = embedding
        missing = torch.full((dim,), float("nan"), dtype=torch.float64)
        return torch.stack([missing if text is None else self._read[space, text] for text in texts])


def _batches(sounds: Iterable[Sound], size: int) -> Iterator[list[Sound]]:
    batch: list[Sound] = []
    for sound in sounds:
        batch.append(sound)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
