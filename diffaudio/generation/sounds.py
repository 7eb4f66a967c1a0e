"""Sounds in batches by the settings: prompts in time, variations and layers on top of a call of the pipeline."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffaudio.diffusion.edit_settings import parse_span
from diffaudio.diffusion.settings import GenerationSettings
from diffaudio.diffusion.varied_noise import VariedNoise
from diffaudio.generation.design_checks import is_streamed
from diffaudio.generation.file_output import mix_layers
from diffaudio.generation.native_recording import keeps_recording, with_native_recording
from diffaudio.generation.timeline import parse_layer, parse_timeline
from diffaudio.pipeline import DiffAudioPipeline
from diffaudio.pipeline_inputs import AudioPipelineOutput, embedding_noise_level
from diffaudio.queries.embedding import QueryEncoder
from diffaudio.queries.query import Query, parse_parts
from diffaudio.seeding import seeded_generator

__all__ = ["Sounds", "generate", "pipeline_arguments"]


@dataclass(frozen=True)
class Sounds:
    """The sounds of a batch.

    Attributes:
        output: of the pipeline; for a stream, complete once all pieces have been taken.
    """

    output: AudioPipelineOutput
    settings: GenerationSettings
    sample_rate: int

    def of(self, index: int) -> tuple[Tensor | Iterator[Tensor], int]:
        """One sound, [channels, samples] or an iterator over its pieces, and its sample rate in Hz."""
        if not isinstance(self.output.audios, Tensor):
            return (piece[index] for piece in self.output.audios), self.sample_rate
        sound = self.output.audios[index].cpu()
        if keeps_recording(self.settings):
            return with_native_recording(sound, self.sample_rate, self.settings)
        return sound, self.sample_rate


def generate(
    pipe: DiffAudioPipeline,
    queries: Sequence[Query],
    seeds: Sequence[int],
    settings: GenerationSettings,
    *,
    encoder: QueryEncoder,
    query_embeds: Mapping[Query, Tensor] | None = None,
    **arguments: Any,
) -> Sounds:
    """Generate the sounds of a batch.

    Args:
        queries: of each sound; one with a timeline is the same for all.
        query_embeds: see `batch.render`.
        arguments: further ones of the pipeline's call.
    """
    timed = parse_timeline(queries[0].prompt or "")
    count = len(queries)
    if timed is not None:
        parts = [Query(parse_parts(each.text)) for each in timed]
        embeddings = encoder.encode_queries(parts, warn_if_far=True)
        ranges = [(each.start_s, each.end_s) for each in timed]
        arguments |= {"prompt_ranges": ranges, "num_waveforms_per_prompt": count}
    elif query_embeds is None:
        embeddings = encoder.encode_queries(queries, warn_if_far=True)
    else:
        embeddings = torch.stack([query_embeds[query] for query in queries])
    special: dict[str, Any] = {"output_type": "stream", "loudness": "auto"} if is_streamed(settings) else {}
    if keeps_recording(settings):
        special = {"loudness": None}  # which is that of the sound as it is written
    noise: list[Any] = [_noise(seed, settings) for seed in seeds]
    own: dict[str, Any] = (
        pipeline_arguments(settings) | special | _level(pipe, encoder, of_text=queries[0].has_text) | arguments
    )
    output = pipe(prompt_embeds=embeddings, generator=noise, **own)
    if not settings.layers:
        return Sounds(output, settings, pipe.autoencoder.sample_rate)
    mixed = output.audios.cpu()
    layers = [parse_layer(each) for each in settings.layers]
    apart: dict[str, Any] = (
        pipeline_arguments(settings, with_edit=False)
        | _level(pipe, encoder, of_text=True)
        | {
            name: value
            for name, value in arguments.items()
            if name not in ("prompt_ranges", "num_waveforms_per_prompt")
        }
    )
    layer_sounds = []
    for number, layer in enumerate(layers, start=1):
        embedding = encoder.encode_queries([Query(parse_parts(layer.text))], warn_if_far=True)
        generators = [seeded_generator(seed, number) for seed in seeds]
        layer_sounds.append(pipe(prompt_embeds=embedding.repeat(count, 1), generator=generators, **apart).audios.cpu())
    output.audios = torch.stack(
        [
            mix_layers(
                sound,
                [(sounds[index], layer.gain_db) for sounds, layer in zip(layer_sounds, layers, strict=True)],
                pipe.autoencoder.sample_rate,
                settings.loudness,
            )
            for index, sound in enumerate(mixed)
        ]
    )
    return Sounds(output, settings, pipe.autoencoder.sample_rate)


def pipeline_arguments(settings: GenerationSettings, *, with_edit: bool = True) -> dict[str, Any]:
    """The arguments of a pipeline call for these settings, except those of queries, and the weaker model."""
    edit = settings.edit if with_edit else None
    edited = {} if edit is None else {
        "init_audio": edit.init_audio,
        "strength": edit.strength,
        "mask": [parse_span(each) for each in edit.mask],
        "continue_audio": edit.continue_audio,
        "lead_in_audio": edit.lead_in_audio,
        "loop": edit.loop,
        "resamples": edit.resamples,
    }  # fmt: skip
    return {
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "guidance": settings.guidance,
        "audio_length_in_s": settings.duration_s,
        "sampler": settings.sampler,
        "spacing": settings.spacing,
        "eta": settings.eta,
        "loudness": settings.loudness,
        **edited,
    }


def _level(pipe: DiffAudioPipeline, encoder: QueryEncoder, *, of_text: bool) -> dict[str, Any]:
    """The noise level of the embeddings, for a U-Net that is conditioned on it."""
    if not pipe.unet.config["embedding_noise_level"]:
        return {}
    return {"embedding_noise": embedding_noise_level(None, encoder.bridge, pipe.unet, of_text=of_text)}


def _noise(seed: int, settings: GenerationSettings) -> torch.Generator | VariedNoise:
    own = torch.Generator().manual_seed(seed)
    edit = settings.edit
    if edit is None or edit.variation_seed is None or edit.amount is None:
        return own
    return VariedNoise(torch.Generator().manual_seed(edit.variation_seed), own, edit.amount)
