"""Components of the pipeline's call: argument checks, counting of U-Net passes, loudness and output."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils import BaseOutput
from torch import Tensor

from diffaudio.diffusion.settings import MAX_DURATION_S, Guidance
from diffaudio.errors import UserError
from diffaudio.metrics.audio_checks import loudness_lufs
from diffaudio.models.bridge.bridges import Bridge
from diffaudio.models.unet import UNet1D

__all__ = [
    "AudioPipelineOutput",
    "CountedUNet",
    "at_loudness",
    "check_numbers",
    "check_only_embeds",
    "check_weak_unet",
    "embedding_noise_level",
    "one_generator_each",
    "with_rescale",
]

PEAK = 0.99
MIN_LOUDNESS_S = 0.4  # the block length of ITU-R BS.1770


@dataclass
class AudioPipelineOutput(BaseOutput):
    """Same as the output of diffusers' audio pipelines; importing theirs would load the code of all their models.

    Attributes:
        audios: [sounds, channels, samples], a tensor or an array.
        num_passes: number of U-Net passes per sound, including those of a weaker model; guidance usually needs two for
            each pass of the sampler.
        out_of_range: the share of each sound's spectrogram, 0 to 1, that was louder than any recording can be and
            was limited to that level by the decoder; empty for latents.
    """

    audios: Any
    num_passes: int = 0
    out_of_range: list[float] = field(default_factory=list)


def check_numbers(steps: int, duration_s: float | None, waveforms: int, output_type: str) -> None:
    """Reject values out of range, with their argument names in the pipeline's call."""
    if steps < 1:
        raise UserError(f"num_inference_steps is {steps}; at least 1 is needed")
    if duration_s is not None and not 0 < duration_s <= MAX_DURATION_S:
        raise UserError(f"audio_length_in_s is {duration_s:g}; it must be above 0 and at most {MAX_DURATION_S:g} s")
    if waveforms < 1:
        raise UserError(f"num_waveforms_per_prompt is {waveforms}; at least 1 is needed")
    if output_type not in ("pt", "np", "latent", "stream"):
        raise UserError(f"output_type '{output_type}' is unknown; choose from pt, np, latent, stream")


def embedding_noise_level(given: float | None, bridge: Bridge, unet: UNet1D, *, of_text: bool) -> float:
    """The noise level that the U-Net is told: as given, or that of the bridge for texts and 0 for pictures.

    Raises:
        ValueError: the U-Net is not conditioned on a level, or was trained with lower ones only.
    """
    highest = unet.config["embedding_noise_level"]
    level = 0.0 if given is None else given
    if given is None and of_text and highest:
        level = bridge.config.get("level", 0.0)
    elif given is not None and not highest:
        raise UserError("embedding_noise has no effect: the U-Net was not trained with noise levels")
    if not 0 <= level <= highest:
        raise UserError(f"the noise level of embeddings is {level:g}; the U-Net was trained with 0 to {highest:g}")
    return level


def check_only_embeds(**others: Any) -> None:
    """Reject anything that has no effect beside `prompt_embeds`."""
    names = [name for name, value in others.items() if value is not None]
    if names:
        raise UserError(f"give one of prompt, image, video, prompt_embeds, not {' and '.join(names)} and prompt_embeds")


def check_weak_unet(weak_unet: UNet1D, unet: UNet1D) -> None:
    """Reject a weaker U-Net whose inputs differ in size from those of the other one."""
    for size in ("in_channels", "embedding_dim"):
        if weak_unet.config[size] != unet.config[size]:
            weak, strong = weak_unet.config[size], unet.config[size]
            raise UserError(f"weak_unet's {size} is {weak} where the unet's is {strong}; they do not fit")


def with_rescale(guidance: Guidance, rescale: float) -> Guidance:
    """Guidance with diffusers' `guidance_rescale` applied; 0 means unset.

    Raises:
        ValueError: both specify a rescaling.
    """
    if rescale != 0 and guidance.rescale != 0:
        raise UserError("give one of guidance_rescale and guidance.rescale, not both")
    return replace(guidance, rescale=rescale) if rescale != 0 else guidance


def one_generator_each(generator: torch.Generator | list[torch.Generator] | None, count: int) -> list[torch.Generator]:
    """One generator per sound; a shared generator draws for the sounds in order.

    Args:
        generator: None creates one with a random seed.

    Raises:
        ValueError: the length of the list differs from `count`, or a generator that is not on the CPU.
    """
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    generators = generator if isinstance(generator, list) else [generator] * count
    if len(generators) != count:
        raise UserError(f"{len(generators)} generators for {count} sounds; give one a sound, or a single one")
    for each in generators:
        if each.device.type != "cpu":
            raise UserError(
                f"a generator is on {each.device}; make it on the CPU, so that a seed sounds alike everywhere"
            )
    return generators


def at_loudness(audio: Tensor, loudness: float | None, sample_rate: int) -> Tensor:
    """[channels, samples], with a single gain: to a loudness in LUFS, or to a peak of 0.99 if that is quieter."""
    peak = audio.abs().max()
    if peak == 0:
        return audio
    gain = torch.ones_like(peak)
    if loudness is not None:
        shortest = math.ceil(MIN_LOUDNESS_S * sample_rate)
        repeated = audio.repeat(1, math.ceil(shortest / audio.shape[-1]))  # loudness is undefined for shorter sounds
        # measured at a peak of 1, since BS.1770 ignores blocks below -70 LUFS
        measured = loudness_lufs(repeated / peak, sample_rate) + 20 * math.log10(float(peak))
        if math.isfinite(measured):
            gain *= 10 ** ((loudness - measured) / 20)
    return audio * gain.clamp(max=PEAK / peak)


class CountedUNet:
    """Runs a U-Net in its own dtype while the sampler stays in float32, and counts the items processed.

    Args:
        noise_level: noise level of the embeddings, for a U-Net that is conditioned on it.
    """

    def __init__(self, unet: UNet1D, noise_level: float = 0.0) -> None:
        self.unet, self.items, self.dtype = unet, 0, next(unet.parameters()).dtype
        self.noise_level = noise_level if unet.config["embedding_noise_level"] else 0.0

    def __call__(self, latents: Tensor, timestep: Tensor | float, *conditions: Tensor) -> Tensor:
        self.items += len(latents)
        if self.noise_level and conditions:
            embedding, *mask = conditions
            conditions = F.pad(embedding, (0, 1), value=self.noise_level), *mask
        return self.unet(latents.to(self.dtype), timestep, *conditions).float()
