"""Rows of clips -> rows of latents: cut to length, copied and augmented, encoded in batches.

    clip    a row of `store.CLIP_SCHEMA`
    piece   the whole clip, or a segment of `crop_s` seconds of it
    item    a piece as it was recorded (copy 0), or an augmented copy of it: a row of `latent_shards.LATENT_SCHEMA`

Threads read, resample and augment the next clips while the device computes. An augmented copy is a function of
(seed, id, copy) alone: neither of the batch around it nor of the process that encodes it.
"""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import soundfile
import torch
from PIL import Image
from torch import Tensor

from diffaudio.corpus.augment import AugmentSettings, augment_picture, augment_sound
from diffaudio.errors import UserError
from diffaudio.media.audio import PEAK, crop_or_pad, decode_flac, mix_channels, resample, scale_to_peak
from diffaudio.seeding import seeded_generator

__all__ = ["EncodeSettings", "Encoders", "encoded_rows"]

T = TypeVar("T")
R = TypeVar("R")
MAX_BATCH_SAMPLES = 2**25  # that the autoencoder encodes at once: 128 MB of float32, 23 minutes of mono at 24 kHz
MAX_HELD_SAMPLES = 2**26  # of the clips that are encoded together, and again of those that are read ahead


@dataclass(frozen=True)
class EncodeSettings:
    """How clips become rows of an encoded corpus.

    Attributes:
        peak: each clip is scaled so that its largest sample is this.
        crop_s: length of the pieces that clips are cut into, end to end; the rest at the end is dropped. A clip
            that is shorter is repeated to that length. None leaves clips whole.
        pad: whether a shorter clip is followed by silence instead.
        copies: number of augmented copies of each piece, besides the recording.
        augment: how the copies are augmented.
        seed: of the copies.
    """

    peak: float = PEAK
    crop_s: float | None = None
    pad: bool = False
    copies: int = 0
    augment: AugmentSettings | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.peak <= 1:
            raise UserError(f"peak is {self.peak}; it must lie above 0 and be at most 1")
        if self.crop_s is not None and self.crop_s <= 0:
            raise UserError(f"crop_s is {self.crop_s}; it must be above 0, or None for whole clips")
        if self.pad and self.crop_s is None:
            raise UserError("pad has no effect without crop_s: clips stay whole")
        if self.copies < 0:
            raise UserError(f"copies is {self.copies}; it must be 0 or more")
        changes = self.augment is not None and (self.augment.changes_sound or self.augment.changes_pictures)
        if self.copies and not changes:
            raise UserError(f"{self.copies} copies would be the recording again: augment changes nothing")
        if not self.copies and (self.augment is not None or self.seed):
            raise UserError("augment and seed have no effect without copies")


@dataclass(frozen=True)
class Encoders:
    """The models, and how they are run; see `encode.run.encode`."""

    autoencoder: Any
    clip: Any
    device: str | torch.device
    batch_size: int
    num_threads: int


@dataclass
class _Item:
    """A row without its latents and embeddings, its waveform [channels, samples] and its preprocessed pictures.

    `pixels` is None where the pictures are those of the item before.
    """

    row: dict[str, Any]
    waveform: Tensor
    pixels: Tensor | None


@torch.no_grad()
def encoded_rows(
    clips: Iterable[dict[str, Any]], encoders: Encoders, settings: EncodeSettings
) -> Iterator[list[dict[str, Any]]]:
    """Encode clips; yields the rows of a few clips at a time, in order, each recording followed by its copies.

    Args:
        clips: rows of `store.CLIP_SCHEMA`, of which only a few are held, fewer where they are long.

    Raises:
        ValueError: sound or pictures of a clip cannot be decoded, or its latents or embeddings are not finite.
    """
    max_clips = max(1, -(-2 * encoders.batch_size // (1 + settings.copies)))
    samples_per_s = encoders.autoencoder.sample_rate * encoders.autoencoder.audio_channels * (1 + settings.copies)
    with ThreadPoolExecutor(encoders.num_threads) as pool:
        prepared = _read_ahead(
            pool,
            lambda clip: _items(clip, encoders, settings),
            clips,
            max_items=max_clips,
            max_cost=MAX_HELD_SAMPLES,
            cost=lambda clip: round(samples_per_s * (clip["duration_s"] or 0)),
        )
        for lists in _chunks(prepared, max_clips, MAX_HELD_SAMPLES, _num_samples):
            yield _encode([item for items in lists for item in items], encoders)


def _num_samples(items: list[_Item]) -> int:
    return sum(item.waveform.numel() for item in items)


def _encode(items: list[_Item], encoders: Encoders) -> list[dict[str, Any]]:
    latents = _encode_sounds([item.waveform for item in items], encoders)
    pixels = [item.pixels for item in items if item.pixels is not None]
    batches = torch.cat(pixels).split(encoders.batch_size)
    embeddings = torch.cat([encoders.clip.encode_pixels(batch).float().cpu() for batch in batches])
    by_item = iter(embeddings.split([len(of_item) for of_item in pixels]))
    rows, embedding = [], embeddings
    for item, latent in zip(items, latents, strict=True):
        embedding = embedding if item.pixels is None else next(by_item)
        rows.append(
            item.row
            | {
                "num_latent_frames": latent.shape[1],
                "num_pictures": len(embedding),
                "latents": _half(latent, item.row, "latents", encoders.autoencoder.name).ravel(),
                "embeddings": list(_half(embedding, item.row, "embeddings", encoders.clip.name)),
            }
        )
    return rows


def _half(values: Tensor, row: dict[str, Any], what: str, model: str) -> np.ndarray:
    """The values in half precision.

    Raises:
        ValueError: they are not finite, or too large for it (65,504).
    """
    half = values.to(torch.float16)
    if not half.isfinite().all():
        copy = f", copy {row['copy']}" if row["copy"] else ""
        raise UserError(
            f"clip {row['id']} of {row['source']}{copy}: {int((~half.isfinite()).sum())} of {half.numel()} values of "
            f"its {what}, by {model}, are not finite or above 65504; check that model, or take the source out of the "
            "corpus"
        )
    return half.numpy()


def _encode_sounds(waveforms: list[Tensor], encoders: Encoders) -> list[Tensor]:
    """Encode in batches of equal length, as padding would change the latents.

    Args:
        waveforms: [channels, samples] each.

    Returns:
        [latent_channels, frames] each, in the same order.
    """
    by_length: dict[int, list[int]] = {}
    for index, waveform in enumerate(waveforms):
        by_length.setdefault(waveform.shape[-1], []).append(index)
    latents: dict[int, Tensor] = {}
    for indices in by_length.values():
        for batch in _chunks(indices, encoders.batch_size, MAX_BATCH_SAMPLES, lambda index: waveforms[index].numel()):
            encoded = encoders.autoencoder.encode(torch.stack([waveforms[i] for i in batch]).to(encoders.device))
            latents.update(zip(batch, encoded.float().cpu(), strict=True))
    return [latents[index] for index in range(len(waveforms))]


def _items(clip: dict[str, Any], encoders: Encoders, settings: EncodeSettings) -> list[_Item]:
    """The pieces of a clip, each followed by its copies."""
    autoencoder, preprocess = encoders.autoencoder, encoders.clip.preprocess
    rate, items = autoencoder.sample_rate, []
    for row, waveform, pictures in _pieces(clip, autoencoder, settings):
        items.append(_Item(row, waveform, preprocess(pictures)))
        for copy in range(1, settings.copies + 1):
            assert settings.augment is not None
            by_sound, by_picture = (seeded_generator(settings.seed, row["id"], copy, of) for of in ("sound", "picture"))
            sound = augment_sound(waveform, rate, settings.augment, by_sound)
            if settings.crop_s is not None:
                sound = _fit_length(sound, waveform.shape[-1], settings.pad)
            pixels = None
            if settings.augment.changes_pictures:
                pixels = preprocess([augment_picture(picture, settings.augment, by_picture) for picture in pictures])
            copied = row | {"copy": copy}
            if sound.shape[-1] != waveform.shape[-1]:
                copied["duration_s"] = sound.shape[-1] / rate
            items.append(_Item(copied, sound, pixels))
    return items


def _pieces(
    clip: dict[str, Any], autoencoder: Any, settings: EncodeSettings
) -> Iterator[tuple[dict[str, Any], Tensor, list[Image.Image]]]:
    """Row, waveform and pictures of each piece; a crop has the pictures within it, or else the one nearest to it."""
    try:
        waveform, rate = decode_flac(clip["audio"])
        pictures = [Image.open(io.BytesIO(frame["image"])).convert("RGB") for frame in clip["frames"]]
        times_s = [frame["time_s"] for frame in clip["frames"]]
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        message = f"clip {clip['id']} of {clip['source']}: its sound or pictures are damaged ({error})"
        raise UserError(f"{message}; `diffaudio validate` names all such clips") from error
    waveform = resample(mix_channels(waveform, autoencoder.audio_channels), rate, autoencoder.sample_rate)
    waveform = scale_to_peak(waveform, settings.peak)
    row = {key: clip.get(key) for key in ("id", "source", "start_s", "duration_s", "caption")} | {"copy": 0}
    if settings.crop_s is None:
        yield row, waveform, pictures
        return
    num_samples = round(settings.crop_s * autoencoder.sample_rate)
    frame_samples = autoencoder.sample_rate / autoencoder.latent_rate  # the last crop may be short by a latent frame
    for index in range(max(1, int((waveform.shape[-1] + frame_samples) // num_samples))):
        start_s, end_s = (clip["start_s"] + place * settings.crop_s for place in (index, index + 1))
        within = [picture for picture, time_s in zip(pictures, times_s, strict=True) if start_s <= time_s < end_s]
        nearest = min(range(len(times_s)), key=lambda number: abs(times_s[number] - (start_s + end_s) / 2))
        piece = waveform[:, index * num_samples : (index + 1) * num_samples]
        place = {"id": f"{clip['id']}-{index}", "start_s": start_s, "duration_s": settings.crop_s}
        yield row | place, _fit_length(piece, num_samples, settings.pad), within or [pictures[nearest]]


def _fit_length(waveform: Tensor, num_samples: int, pad: bool) -> Tensor:
    """[channels, samples] -> [channels, num_samples]: cut, followed by silence, or repeated."""
    available = waveform.shape[-1]
    if pad or available >= num_samples:
        return crop_or_pad(waveform, num_samples, 1)
    return waveform.repeat(1, -(-num_samples // available))[:, :num_samples]


def _chunks(items: Iterable[T], max_items: int, max_cost: int, cost: Callable[[T], int]) -> Iterator[list[T]]:
    """Lists of at most so many items, and of at most that cost together unless one alone costs more."""
    chunk: list[T] = []
    total = 0
    for item in items:
        if chunk and (len(chunk) == max_items or total + cost(item) > max_cost):
            yield chunk
            chunk, total = [], 0
        chunk.append(item)
        total += cost(item)
    if chunk:
        yield chunk


def _read_ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    max_items: int,
    max_cost: int,
    cost: Callable[[T], int],
) -> Iterator[R]:
    """`function` of each item, in order, while the next ones are computed: some items, of some cost together."""
    pending: deque[tuple[Any, int]] = deque()
    for item in items:
        pending.append((pool.submit(function, item), cost(item)))
        while len(pending) > max_items or (len(pending) > 1 and sum(each for _, each in pending) > max_cost):
            yield pending.popleft()[0].result()
    while pending:
        yield pending.popleft()[0].result()
