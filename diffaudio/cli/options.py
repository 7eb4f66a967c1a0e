"""What all commands and scripts share: the parser, the options that say how to generate."""

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from diffaudio.diffusion.settings import GenerationSettings, Guidance, Projection
from diffaudio.errors import UserError

__all__ = [
    "Parser",
    "add_guidance",
    "add_settings",
    "between",
    "read_guidance",
    "read_settings",
]


class Parser(argparse.ArgumentParser):
    """argparse, with errors as ValueError, so that they are told like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def between(kind: type, low: float, high: float | None = None) -> Callable[[str], Any]:
    """An argument type: a number from `low` to `high`."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not (low <= value and (high is None or value <= high)):
            allowed = f"{low:g} or more" if high is None else f"{low:g} to {high:g}"
            raise argparse.ArgumentTypeError(f"{text} is out of range; choose {allowed}")
        return value

    parse.__name__ = {int: "whole number", float: "number"}[kind]
    return parse


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The options that say how to generate; sample/generate.py has the same."""
    defaults = GenerationSettings()
    parser.add_argument(
        "--model", metavar="FOLDER|ID", help="model folder or hub id (default: the one that comes along)"
    )
    parser.add_argument(
        "--steps",
        type=between(int, 1, 1000),
        default=GenerationSettings.steps,
        help="sampling steps (default: %(default)s)",
    )
    parser.add_argument(
        "--guidance-scale",
        type=between(float, 0, 100),
        default=defaults.guidance_scale,
        help="0 ignores the prompt, 1 follows it, more exaggerates it (default: %(default)s)",
    )
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what to steer away from")
    parser.add_argument(
        "--sampler",
        default=defaults.sampler,
        help="one that `diffaudio samplers` lists (default: %(default)s)",
    )
    parser.add_argument(
        "--spacing",
        metavar="NAME",
        help="of the sampler's noise levels: trailing, linear, karras, exponential (default: what suits)",
    )
    parser.add_argument(
        "--eta", type=between(float, 0, 1), help="how much noise each step draws anew, where the sampler has this"
    )
    parser.add_argument(
        "--duration",
        type=between(float, 1, 30),
        default=defaults.duration_s,
        metavar="SECONDS",
        help="1 to 30 (default: %(default)s)",
    )
    parser.add_argument("--batch-size", type=between(int, 1), default=8, help="sounds at a time (default: %(default)s)")
    parser.add_argument("--plot", action="store_true", help="draw each sound's spectrogram beside it (.png)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        default="auto",
        help="auto, float32, float16, bfloat16 (default: float16 on CUDA, float32 elsewhere)",
    )
    add_guidance(parser)


def add_guidance(parser: argparse.ArgumentParser) -> None:
    """The options that say how the guidance scale is applied, for `read_guidance`; and the weaker model."""
    group = parser.add_argument_group("guidance", "beyond the scale; docs and papers: diffaudio/diffusion/guidance.py")
    group.add_argument(
        "--guidance-rescale",
        type=between(float, 0, 1),
        default=0.0,
        metavar="PART",
        help="0 to 1: bring the level of the prediction back to what it is without guidance",
    )
    group.add_argument(
        "--guidance-interval",
        nargs=2,
        type=between(float, 0, 1),
        metavar=("LOW", "HIGH"),
        help="guide only at these noise levels, from 0 (clean) to 1 (noise)",
    )
    group.add_argument(
        "--guidance-schedule",
        default="constant",
        metavar="NAME",
        help="how the scale goes with the noise level: constant, linear, cosine, inverse_linear, sine, lambda, v",
    )
    group.add_argument("--apg", action="store_true", help="projected guidance: drop what only makes it louder")
    group.add_argument("--apg-parallel", type=float, metavar="PART", help="how much of that is kept (default: 0)")
    group.add_argument("--apg-threshold", type=float, metavar="SIZE", help="of the greatest correction, such as 0.1")
    group.add_argument("--apg-momentum", type=float, metavar="BETA", help="of the corrections, negative as a rule")
    group.add_argument("--cfg-zero", action="store_true", help="CFG-Zero*, with a zero-init of 0.04")
    group.add_argument("--zero-init", type=float, metavar="PART", help="hold still for the first part of the way")
    group.add_argument("--weak-model", metavar="FOLDER|ID", help="autoguidance: lead away from this weaker model")


def read_guidance(given: argparse.Namespace) -> Guidance:
    """What the options of `add_guidance` say, but for the weaker model.

    Raises:
        ValueError: a value out of range, or without effect.
    """
    apg = {"parallel": given.apg_parallel, "threshold": given.apg_threshold, "momentum": given.apg_momentum}
    apg = {name: value for name, value in apg.items() if value is not None}
    zero_init = given.zero_init if given.zero_init is not None else 0.04 * given.cfg_zero
    return Guidance(
        rescale=given.guidance_rescale,
        interval=None if given.guidance_interval is None else tuple(given.guidance_interval),
        schedule=given.guidance_schedule,
        projection=Projection(**apg) if given.apg or apg else None,
        zero_star=given.cfg_zero,
        zero_init=zero_init,
    )


def read_settings(given: argparse.Namespace) -> GenerationSettings:
    """What the options of `add_settings` say of the sounds.

    Raises:
        ValueError: see `read_guidance`.
    """
    return GenerationSettings(
        steps=given.steps,
        guidance_scale=given.guidance_scale,
        sampler=given.sampler,
        duration_s=given.duration,
        negative_prompt=given.negative_prompt,
        spacing=given.spacing,
        eta=given.eta,
        guidance=read_guidance(given),
        weak_model=given.weak_model,
    )
