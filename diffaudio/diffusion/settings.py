"""Generation settings: the single definition of every option that affects a generated sound, with default and range.

The pipeline's call, the commands, the axes of a sweep, training samples and the JSON beside each sound all take their
names and defaults from here. The module imports no torch, so that a command can check its options at once.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from diffaudio.adapter_names import parse_adapter
from diffaudio.diffusion.edit_settings import EditSettings
from diffaudio.diffusion.sampler_table import check_sampler
from diffaudio.errors import UserError
from diffaudio.file_names import shorten
from diffaudio.media.file_settings import FileSettings
from diffaudio.prompt_templates import check_templates

__all__ = [
    "GUIDANCE_SCHEDULES",
    "MAX_DURATION_S",
    "PLAIN_CFG",
    "GenerationSettings",
    "Guidance",
    "Projection",
    "check_loudness",
    "check_prompt",
]

MAX_DURATION_S = 24 * 3600.0
MAX_STEPS = 1000

# Wang et al. 2024 (arXiv:2404.13040), as factors of w - 1 at a noise level s. Each has mean 1 over s, so that the same
# amount of guidance is spread out differently.
GUIDANCE_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda s: 1.0,
    "linear": lambda s: 2 * (1 - s),
    "cosine": lambda s: 1 + math.cos(math.pi * s),
    "inverse_linear": lambda s: 2 * s,
    "sine": lambda s: 1 - math.cos(math.pi * s),
    "lambda": lambda s: 4 * min(s, 1 - s),
    "v": lambda s: 4 * abs(s - 0.5),
}


@dataclass(frozen=True)
class Projection:
    """Adaptive projected guidance (APG, Sadat et al. 2024, arXiv:2410.02416) of the difference x_c - x_0.

    Attributes:
        parallel: factor of its component parallel to x_c (the paper's eta); 1 retains all of it.
        threshold: its root mean square is scaled down to this, in standard deviations of the latents; the paper's r
            divided by the square root of the number of values, so that it does not depend on the duration.
        momentum: momentum of the running sum over noise levels (the paper's beta); negative favours new directions.
    """

    parallel: float = 0.0
    threshold: float | None = None
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.parallel < math.inf:
            raise UserError(f"APG: the parallel part is {self.parallel}; 0 (none) or more is allowed, 1 keeps all")
        if self.threshold is not None and not 0 < self.threshold < math.inf:
            raise UserError(f"APG: the threshold is {self.threshold}; more than 0 is needed")
        if not -1 < self.momentum < 1:
            raise UserError(f"APG: the momentum is {self.momentum}; it must lie between -1 and 1")
        if (self.parallel, self.threshold, self.momentum) == (1, None, 0):
            raise UserError("APG has no effect with all of the parallel part, no threshold and no momentum")


@dataclass(frozen=True)
class Guidance:
    """How the guidance scale is applied; the defaults are classifier-free guidance as published.

    Attributes:
        rescale: 0 to 1, how far to rescale the result to the standard deviation of the conditional prediction.
        interval: (low, high], the guided range of noise levels, from 0 (clean) to 1 (noise); the others use
            the conditional prediction.
        schedule: a key of `GUIDANCE_SCHEDULES`: the distribution of w - 1 over the noise levels. Linear and cosine
            increase towards the clean end.
        projection: adaptive projected guidance (APG); None is off.
        zero_star: CFG-Zero*, scale D_0 to the best fit of D_c; for flow matching only, like `zero_init`.
        zero_init: the fraction of the noise levels, from the top, where the latents are left unchanged and the
            U-Net is not evaluated; the paper's 0.04 is the first of 25 uniform steps, or the first of fewer.
    """

    rescale: float = 0.0
    interval: tuple[float, float] | None = None
    schedule: str = "constant"
    projection: Projection | None = None
    zero_star: bool = False
    zero_init: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.rescale <= 1:
            raise UserError(f"guidance rescale is {self.rescale}; 0 (off) to 1 is allowed, 0.7 is usual")
        if self.interval is not None:
            low, high = self.interval
            if not 0 <= low < high <= 1:
                raise UserError(
                    f"guidance interval is {low:g} to {high:g}; give two noise levels from 0 (clean) to 1 (noise), "
                    "the lower one first"
                )
            if (low, high) == (0, 1):
                raise UserError("guidance interval 0 to 1 has no effect, it covers all noise levels; leave it out")
        if self.schedule not in GUIDANCE_SCHEDULES:
            names = ", ".join(GUIDANCE_SCHEDULES)
            raise UserError(f"guidance schedule '{self.schedule}' is unknown; choose from {names}")
        if not 0 <= self.zero_init < 1:
            raise UserError(f"zero-init is {self.zero_init}; from 0 (off) to less than 1 is allowed, 0.04 is usual")
        if self.zero_star and self.projection is not None:
            raise UserError("CFG-Zero* and APG both reshape the same difference; choose one of them")

    def scale_at(self, level: float, scale: float) -> float:
        """The guidance scale w at noise level s; `scale` is its mean over the guided levels."""
        if self.interval is not None and not self.interval[0] < level <= self.interval[1]:
            return 1.0
        if self.schedule == "constant":
            return scale
        return 1 + (scale - 1) * GUIDANCE_SCHEDULES[self.schedule](level)

    def num_held(self, levels: Sequence[float]) -> int:
        """Number of initial steps that `zero_init` skips, given the decreasing noise levels at which steps start.

        Raises:
            UserError: `zero_init` skips every step.
        """
        # rounded, so that rounding error cannot decide whether a step that starts on the bound is skipped
        num_held = sum(round(level, 6) > round(1 - self.zero_init, 6) for level in levels)
        if num_held == len(levels):
            raise UserError(
                f"zero-init {self.zero_init:g} holds all {num_held} steps still, so that only noise would be left; "
                "take more steps, or a smaller part"
            )
        return num_held


PLAIN_CFG = Guidance()


@dataclass(frozen=True)
class GenerationSettings:
    """All generation settings except the prompt, the seed and the model.

    Attributes:
        steps: number of sampling steps, 1 to 1000; diffusers' `num_inference_steps`.
        guidance_scale: 0 ignores the prompt, 1 is the conditional prediction, above 1 follows the prompt more strongly.
        sampler: one of the samplers listed by `diffaudio samplers`.
        spacing: spacing of the noise levels: trailing, linear, karras or exponential; None is the sampler's default.
        eta: fresh noise added at each step, 0 to 1, for samplers that have an eta; None is the sampler's default.
        duration_s: length of each sound in seconds, up to a day.
        negative_prompt: text to steer away from; needs a guidance scale above 1.
        negative_image: image to steer away from, instead of a text.
        bridge: bridge that texts cross: the name of one of the model's, none, a folder or a hub id; None is the model's
            own.
        templates: sentences with {} in place of the text, such as "the sound of {}"; a text's embedding is the mean
            over them; none given are the model's own.
        image_bridge: name of a retrieval bridge through whose training images the embeddings of images and videos pass;
            None leaves them unchanged.
        guidance: how the guidance scale is applied.
        weak_model: folder or hub id of a weaker model, for autoguidance: sounds are guided away from its predictions.
        lora: one or more LoRA adapters that are added to the model, FOLDER or FOLDER::STRENGTH; strength 1 is as
            trained.
        loudness: integrated loudness of each sound in LUFS (ITU-R BS.1770), -70 to -5, limited so that its peak stays
            within full scale; None leaves the generated level unchanged.
        edit: what a sound is made from, beside its prompt.
        layers: texts that are generated as sounds of their own and mixed in, with their gains: "thunder::-6dB".
        file: how the sound is written.
    """

    steps: int = 25
    guidance_scale: float = 3.0
    sampler: str = "dpm++2m_sde"
    spacing: str | None = None
    eta: float | None = None
    duration_s: float = 5.0
    negative_prompt: str | None = None
    negative_image: str | None = None
    bridge: str | None = None
    templates: list[str] = field(default_factory=list)
    image_bridge: str | None = None
    guidance: Guidance = PLAIN_CFG
    weak_model: str | None = None
    lora: list[str] = field(default_factory=list)
    loudness: float | None = -23.0
    edit: EditSettings | None = None
    layers: tuple[str, ...] = ()
    file: FileSettings | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS:
            raise UserError(f"steps is {self.steps}; it must be 1 to {MAX_STEPS}")
        if not 0 <= self.guidance_scale < math.inf:
            raise UserError(
                f"guidance_scale is {self.guidance_scale}; it must be at least 0 "
                "(0 ignores the prompt, 1 follows it, above 1 follows it more closely)"
            )
        check_sampler(self.sampler, self.spacing, self.eta)
        if not 0 < self.duration_s <= MAX_DURATION_S:
            raise UserError(f"duration_s is {self.duration_s}; it must be above 0 and at most {MAX_DURATION_S:g} s")
        check_loudness(self.loudness)
        if self.negative_prompt is not None:
            check_prompt(self.negative_prompt, "negative prompt")
        if self.negative_prompt is not None and self.negative_image is not None:
            raise UserError("give a negative prompt or a negative image, not both")
        if self.templates:
            check_templates(self.templates)
        for adapter in self.lora:
            parse_adapter(adapter)

    def to_json(self) -> dict[str, Any]:
        """The settings for a sound's JSON file. `guidance` holds only non-default values; None if there are none."""
        defaults = asdict(PLAIN_CFG)
        changed = {name: value for name, value in asdict(self.guidance).items() if value != defaults[name]}
        described = {**asdict(self), "guidance": changed or None, "layers": self.layers or None}
        described |= {"templates": self.templates or None, "lora": self.lora or None}
        return json.loads(json.dumps(described, default=str))


def check_loudness(loudness: float | None) -> None:
    """Reject a loudness in LUFS that is out of range."""
    if loudness is not None and not -70 <= loudness <= -5:
        raise UserError(f"loudness is {loudness}; give -70 to -5 LUFS, or none to leave levels as they are")


def check_prompt(prompt: str, name: str = "prompt") -> None:
    """Reject a prompt that is not valid text.

    Raises:
        UserError: it is not a string, is empty, or was decoded from bytes that are not UTF-8 and so cannot be written.
    """
    if not isinstance(prompt, str):
        raise UserError(f"a {name} is of type {type(prompt).__name__}; give a text")
    if not prompt.strip():
        raise UserError(f"a {name} is empty; say in a few words what to hear")
    if not prompt.isascii() and any("\ud800" <= character <= "\udfff" for character in prompt):
        raise UserError(f"a {name} is not valid UTF-8: {shorten(prompt)!r}")
