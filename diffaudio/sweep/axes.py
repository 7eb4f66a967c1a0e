"""The settings that a sweep can vary, and how their values are written on the command line."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from diffaudio.diffusion.settings import GenerationSettings, Projection
from diffaudio.errors import UserError

__all__ = ["AXES", "Axis"]


@dataclass(frozen=True)
class Axis:
    """A setting that a sweep varies.

    Attributes:
        apply: sets a value in settings.
        help: description of the setting, and of the syntax of its values.
        kind: type of its values.
        default: the value if the axis is not given; None if it is required.
        short: prefix of the value in a combination's name.
    """

    apply: Callable[[GenerationSettings, Any], GenerationSettings]
    help: str
    kind: type = str
    default: Any = None
    short: str = ""


def _guided(**change: Any) -> Callable[[GenerationSettings], GenerationSettings]:
    return lambda settings: replace(settings, guidance=replace(settings.guidance, **change))


def _interval(settings: GenerationSettings, text: str) -> GenerationSettings:
    if text == "none":
        return settings
    low, high = _numbers("interval", text, "LOW:HIGH", 2, 2)
    return _guided(interval=(low, high))(settings)


def _apg(settings: GenerationSettings, text: str) -> GenerationSettings:
    if text == "off":
        return settings
    numbers = [] if text == "on" else _numbers("apg", text, "off, on or PARALLEL:THRESHOLD:MOMENTUM", 1, 3)
    names = ("parallel", "threshold", "momentum")
    return _guided(projection=Projection(**dict(zip(names, numbers, strict=False))))(settings)


def _cfg_zero(settings: GenerationSettings, text: str) -> GenerationSettings:
    if text == "off":
        return settings
    numbers = [0.04] if text == "on" else _numbers("cfg_zero", text, "off, on or the part of zero-init", 1, 1)
    return _guided(zero_star=True, zero_init=numbers[0])(settings)


def _eta(settings: GenerationSettings, text: str) -> GenerationSettings:
    return settings if text == "auto" else replace(settings, eta=_numbers("eta", text, "auto or 0 to 1", 1, 1)[0])


def _numbers(axis: str, text: str, form: str, least: int, most: int) -> list[float]:
    parts = text.split(":")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if not least <= len(numbers) <= most:
        raise UserError(f"{axis} is '{text}'; give {form}")
    return numbers


_DEFAULTS = GenerationSettings()

AXES = {
    "sampler": Axis(lambda s, v: replace(s, sampler=v), "of those that `diffaudio samplers` lists"),
    "steps": Axis(lambda s, v: replace(s, steps=v), "sampling steps", int, _DEFAULTS.steps, "steps"),
    "guidance_scale": Axis(
        lambda s, v: replace(s, guidance_scale=v), "guidance scales", float, _DEFAULTS.guidance_scale, "scale"
    ),
    "spacing": Axis(
        lambda s, v: s if v == "auto" else replace(s, spacing=v),
        "of the noise levels: trailing, linear, karras, exponential",
        default="auto",
    ),
    "eta": Axis(_eta, "how much noise each step draws anew", default="auto", short="eta"),
    "rescale": Axis(lambda s, v: _guided(rescale=v)(s), "guidance rescale, 0 to 1", float, 0.0, "rescale"),
    "interval": Axis(_interval, "noise levels that are guided, LOW:HIGH", default="none", short="interval"),
    "schedule": Axis(
        lambda s, v: _guided(schedule=v)(s), "of the scale: constant, linear, cosine, …", default="constant"
    ),
    "apg": Axis(_apg, "projected guidance: off, on or PARALLEL:THRESHOLD:MOMENTUM", default="off", short="apg"),
    "cfg_zero": Axis(_cfg_zero, "CFG-Zero*: off, on or the part of zero-init", default="off", short="cfgzero"),
    "bridge": Axis(
        lambda s, v: s if v == "own" else replace(s, bridge=v),
        "that texts cross: own, none, another of the model's, a folder or a hub id",
        default="own",
        short="bridge",
    ),
    "weak_model": Axis(
        lambda s, v: s if v == "none" else replace(s, weak_model=v),
        "autoguidance: folder or hub id of a weaker model",
        default="none",
        short="weak",
    ),
}
