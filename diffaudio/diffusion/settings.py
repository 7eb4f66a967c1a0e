"""Generation settings: the one home of every option that changes a generated sound, with its default and its range.

The pipeline's call, the commands, the axes of a sweep, training samples and the JSON beside each sound all take their
names and defaults from here. The module imports no torch, so that a command can check its options at once.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diffaudio.diffusion.sampler_table import check_sampler
from diffaudio.errors import UserError
from diffaudio.file_names import shorten

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

MAX_DURATION_S = 600.0
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
    """Adaptive projected guidance (APG, Sadat et al. 2024, arXiv:2410.02416): what becomes of the difference x_c - x_0.

    Attributes:
        parallel: how much of its component parallel to x_c is kept (the paper's eta); 1 keeps all of it.
        threshold: its root mean square is scaled down to this, in standard deviations of the latents; the paper's r
            divided by the square root of the number of values, so that it does not depend on the duration.
        momentum: of the running sum over noise levels (the paper's beta); negative values favour new directions.
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
        rescale: 0 to 1, how far the result is brought to the standard deviation of the conditional prediction.
        interval: (low, high], the noise levels that are guided, from 0 (clean) to 1 (noise); the others take the
            conditional prediction.
        schedule: a name of `GUIDANCE_SCHEDULES`: how w - 1 is spread over the noise levels. Linear and cosine rise
            towards the clean end.
        projection: adaptive projected guidance (APG); None is off.
        zero_star: CFG-Zero*, scale D_0 to the best fit of D_c; for flow matching only, like `zero_init`.
        zero_init: the fraction of the noise levels, from the top, where the latents stay as they are and no U-Net
            pass is made; the paper's 0.04 is the first of 25 evenly spaced steps, and the first of fewer.
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
        """w at a noise level s, where `scale` is its mean over the levels that are guided."""
        if self.interval is not None and not self.interval[0] < level <= self.interval[1]:
            return 1.0
        if self.schedule == "constant":
            return scale
        return 1 + (scale - 1) * GUIDANCE_SCHEDULES[self.schedule](level)

    def num_held(self, levels: Sequence[float]) -> int:
        """How many of the first steps `zero_init` holds still, of those that begin at falling noise levels.

        Raises:
            UserError: all of them.
        """
        # rounded, or else a step that begins on the bound would be held or not by chance
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
    """Everything but the prompt, the seed and the model that decides how a sound is generated.

    Attributes:
        steps: sampling steps, 1 to 1000; diffusers' `num_inference_steps`.
        guidance_scale: 0 ignores the prompt, 1 follows the conditional model, above 1 exaggerates it.
        sampler: one that `diffaudio samplers` lists.
        spacing: of the sampler's noise levels: trailing, linear, karras or exponential; None is what suits the sampler.
        eta: 0 to 1, how much fresh noise each step draws, for samplers that have an eta; None is the sampler's own.
        duration_s: length of each sound, up to 600.
        negative_prompt: a text to steer away from; needs a guidance scale above 1.
        guidance: how the guidance scale is applied.
        weak_model: folder or hub id of a weaker model, for autoguidance: sounds are guided away from its predictions.
        loudness: integrated loudness of each sound in LUFS (ITU-R BS.1770), -70 to -5, as far as its peak stays within
            full scale; None leaves each sound at the level at which it was generated.
    """

    steps: int = 25
    guidance_scale: float = 3.0
    sampler: str = "dpm++2m_sde"
    spacing: str | None = None
    eta: float | None = None
    duration_s: float = 5.0
    negative_prompt: str | None = None
    guidance: Guidance = PLAIN_CFG
    weak_model: str | None = None
    loudness: float | None = -23.0

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

    def to_json(self) -> dict[str, Any]:
        """For the JSON beside a sound. Of `guidance`, what differs from the defaults; None where nothing does."""
        defaults = asdict(PLAIN_CFG)
        changed = {name: value for name, value in asdict(self.guidance).items() if value != defaults[name]}
        return json.loads(json.dumps({**asdict(self), "guidance": changed or None}))


def check_loudness(loudness: float | None) -> None:
    """Refuse a loudness in LUFS that no sound should have."""
    if loudness is not None and not -70 <= loudness <= -5:
        raise UserError(f"loudness is {loudness}; give -70 to -5 LUFS, or none to leave levels as they are")


def check_prompt(prompt: str, name: str = "prompt") -> None:
    """Refuse a prompt that is no text.

    Raises:
        UserError: it is empty, or was made of bytes that are not UTF-8, which no file can hold.
    """
    if not isinstance(prompt, str):
        raise UserError(f"a {name} is of type {type(prompt).__name__}; give a text")
    if not prompt.strip():
        raise UserError(f"a {name} is empty; say in a few words what to hear")
    if not prompt.isascii() and any("\ud800" <= character <= "\udfff" for character in prompt):
        raise UserError(f"a {name} is not valid UTF-8: {shorten(prompt)!r}")
