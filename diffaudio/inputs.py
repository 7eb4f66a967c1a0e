"""What a call of the pipeline is given: checked, and read where it is a file."""

from dataclasses import replace

import torch

from diffaudio.diffusion.settings import MAX_DURATION_S, Guidance
from diffaudio.errors import UserError
from diffaudio.models.unet import UNet1D

__all__ = [
    "check_numbers",
    "check_weak_unet",
    "one_generator_each",
    "with_rescale",
]


def check_numbers(steps: int, duration_s: float, waveforms: int, output_type: str) -> None:
    """Refuse what is out of range, under the name it has in the pipeline's call."""
    if steps < 1:
        raise UserError(f"num_inference_steps is {steps}; at least 1 is needed")
    if not 0 < duration_s <= MAX_DURATION_S:
        raise UserError(f"audio_length_in_s is {duration_s:g}; it must be above 0 and at most {MAX_DURATION_S:g} s")
    if waveforms < 1:
        raise UserError(f"num_waveforms_per_prompt is {waveforms}; at least 1 is needed")
    if output_type not in ("pt", "np", "latent"):
        raise UserError(f"output_type '{output_type}' is unknown; choose from pt, np, latent")


def check_weak_unet(weak_unet: UNet1D, unet: UNet1D) -> None:
    """Refuse a weaker U-Net that does not take what the other one takes."""
    for size in ("in_channels", "embedding_dim"):
        if weak_unet.config[size] != unet.config[size]:
            weak, strong = weak_unet.config[size], unet.config[size]
            raise UserError(f"weak_unet's {size} is {weak} where the unet's is {strong}; they do not fit")


def with_rescale(guidance: Guidance, rescale: float) -> Guidance:
    """Guidance with diffusers' `guidance_rescale`, 0 where that is not given.

    Raises:
        ValueError: both say how far to rescale.
    """
    if rescale != 0 and guidance.rescale != 0:
        raise UserError("give one of guidance_rescale and guidance.rescale, not both")
    return replace(guidance, rescale=rescale) if rescale != 0 else guidance


def one_generator_each(generator: torch.Generator | list[torch.Generator] | None, count: int) -> list[torch.Generator]:
    """One generator a sound; where all share one, it is drawn from in their order.

    Args:
        generator: None makes one with a seed of its own.

    Raises:
        ValueError: a list of another length than `count`, or a generator that is not on the CPU.
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
