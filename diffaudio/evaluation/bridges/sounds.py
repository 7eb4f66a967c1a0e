"""The sounds of every bridge: one for each query, from the same noise, written like those of `diffaudio generate`.

OUT/sounds/NAME/clip-1b2c3d4e.wav, .json    NAME: a bridge, or `pictures` for the queries by pictures
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffaudio.diffusion.settings import GenerationSettings
from diffaudio.evaluation.bridges.queries import Queries
from diffaudio.evaluation.embed import Sound
from diffaudio.generation.batch import Item, is_generated, render
from diffaudio.media.audio import read_audio
from diffaudio.models.bridge.bridges import Bridge, IdentityBridge
from diffaudio.pipeline import DiffAudioPipeline
from diffaudio.queries.query import Part, Query

__all__ = ["PICTURES", "generate", "map_texts", "read_generated"]

PICTURES = "pictures"


def map_texts(pipe: DiffAudioPipeline, bridges: Mapping[str, Bridge], labels: Sequence[str]) -> dict[str, Tensor]:
    """The labels as each bridge maps them, on the CPU: [labels, dim], unit norm."""
    own, mapped = pipe.bridge, {}
    try:
        for name, bridge in bridges.items():
            pipe.bridge = bridge
            embeddings = pipe.encode_prompt(list(labels)).float().cpu()
            mapped[name] = torch.nn.functional.normalize(embeddings, dim=-1)
    finally:
        pipe.bridge = own
    return mapped


def generate(
    pipe: DiffAudioPipeline,
    bridges: Mapping[str, Bridge],
    mapped: Mapping[str, Tensor],
    pictures: Mapping[str, Tensor],
    queries: Queries,
    settings: GenerationSettings,
    *,
    out: Path,
    seed: int,
    batch_size: int,
    on_sound: Callable[[], Any] = lambda: None,
) -> dict[str, list[Item]]:
    """Generate the sound of each query by every bridge and by pictures; those that are there already are kept.

    Args:
        mapped: of `map_texts`.
        pictures: [clips, dim], embeddings of the queries' pictures by the names of their rows, such as `pictures`.
        on_sound: called once a sound exists.

    Returns:
        The sounds by bridge, and by the names of `pictures`; in the order of the queries.

    Raises:
        ValueError: a sound is there that was made with other settings.
    """
    own, sounds = pipe.bridge, {}
    try:
        for name in [*bridges, *pictures]:
            pipe.bridge = bridges[name] if name in bridges else IdentityBridge(queries.pictures.shape[1])
            embeddings = mapped[name][queries.kinds] if name in mapped else pictures[name]
            sounds[name] = _items(name, queries, out, seed, of_text=name in mapped)
            (out / "sounds" / name).mkdir(parents=True, exist_ok=True)
            missing = []
            for item, embedding in zip(sounds[name], embeddings, strict=True):
                if is_generated(item, settings, pipe.name_or_path):
                    on_sound()
                else:
                    missing.append((item, embedding))
            embeddings_of = {item.query: embedding.to(pipe.device) for item, embedding in missing}
            items = [item for item, _ in missing]
            for _ in render(pipe, items, settings, batch_size=batch_size, query_embeds=embeddings_of):
                on_sound()
    finally:
        pipe.bridge = own
    return sounds


def read_generated(items: Sequence[Item]) -> Iterator[Sound]:
    """The sounds, one by one, for an `Embedder`."""
    for item in items:
        waveform, sample_rate = read_audio(item.path)
        yield Sound(waveform, sample_rate, item.path.stem, item.query.prompt, item.label)


def _items(name: str, queries: Queries, out: Path, seed: int, *, of_text: bool) -> list[Item]:
    """A sound for each clip; its seed depends on the clip alone, so that bridges differ in the embedding only."""
    items = []
    for index, clip in enumerate(queries.names):
        label = queries.label(index)
        prompt = label if of_text else f"pictures of {clip}"
        path = out / "sounds" / name / f"clip-{zlib.crc32(clip.encode()):08x}.wav"
        items.append(Item(Query((Part("text", prompt),)), (seed + zlib.crc32(clip.encode())) % 2**31, path, label))
    return items
