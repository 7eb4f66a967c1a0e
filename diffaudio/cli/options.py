"""Options shared by commands and scripts: generation settings, and checks that several commands use."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from diffaudio.adapter_names import parse_adapter
from diffaudio.config import Count, parse_command
from diffaudio.diffusion.settings import GenerationSettings, Projection
from diffaudio.errors import UserError
from diffaudio.generation.design_checks import recording_duration_s
from diffaudio.generation.reproduce import Recipe
from diffaudio.hub import is_hub_id

__all__ = [
    "GENERATION_FLAGS",
    "GENERATION_GROUPS",
    "GenerationOptions",
    "check_adapters",
    "check_exists",
    "check_model",
    "check_report_path",
    "check_resamples",
    "parse_generation",
]

T = TypeVar("T", bound="GenerationOptions")

# The flags of settings in sections; all other flags are named after their fields.
GENERATION_FLAGS: dict[str, tuple[str, ...]] = {
    "generation.duration_s": ("--duration",),
    "generation.guidance.rescale": ("--guidance-rescale",),
    "generation.guidance.interval": ("--guidance-interval",),
    "generation.guidance.schedule": ("--guidance-schedule",),
    "generation.guidance.projection.parallel": ("--apg-parallel",),
    "generation.guidance.projection.threshold": ("--apg-threshold",),
    "generation.guidance.projection.momentum": ("--apg-momentum",),
    "generation.guidance.zero_star": ("--cfg-zero",),
    "generation.guidance.zero_init": (),
    "generation.edit.continue_audio": ("--continue",),
    "generation.edit.lead_in_audio": ("--lead-in",),
    "generation.layers": ("--layer",),
}
GENERATION_GROUPS = {
    "generation.guidance.": "guidance, beyond the scale",
    "generation.edit.": "sound design",
    "generation.file.": "file",
    "generation": "sound",
}

ZERO_INIT = 0.04  # the value of the CFG-Zero* paper, used with --cfg-zero


@dataclass(kw_only=True)
class GenerationOptions:
    """Generation options of `diffaudio generate` and sample/generate.py.

    Attributes:
        model: model folder or hub id (default: the bundled model).
        batch_size: sounds per batch.
        plot: write a spectrogram next to each sound (.png).
        device: auto, cpu, cuda, cuda:N (such as cuda:1) or mps.
        dtype: auto, float32, float16 or bfloat16; auto is float16 on CUDA and float32 elsewhere.
        apg: adaptive projected guidance: remove the guidance component that only makes the sound louder.
        zero_init: initial fraction of the noise levels at which the latents are left unchanged (default:
            0.04 with --cfg-zero, otherwise 0).
    """

    model: str | None = None
    batch_size: Count = 8
    plot: bool = False
    device: str = "auto"
    dtype: str = "auto"
    apg: bool = False
    zero_init: float | None = None
    generation: GenerationSettings = field(default_factory=GenerationSettings)

    @property
    def settings(self) -> GenerationSettings:
        """All settings that determine how a sound is generated.

        Raises:
            ValueError: a value is out of range, or has no effect.
        """
        guidance = self.generation.guidance
        zero_init = self.zero_init
        if zero_init is None:
            zero_init = ZERO_INIT if guidance.zero_star else 0.0
        projection = guidance.projection or (Projection() if self.apg else None)
        return replace(self.generation, guidance=replace(guidance, projection=projection, zero_init=zero_init))


def parse_generation(options: type[T], arguments: list[str], *, recipe: Recipe | None = None, **command: Any) -> T:
    """Parse the options of a command that generates sounds.

    A sound made from recordings has their level, and the duration of the one that it starts from, unless these are
    given.

    Args:
        recipe: of a sound whose settings take the place of the defaults.
        command: further arguments of `parse_command`.
    """
    source, presets = (Path("command line"), {}) if recipe is None else (recipe.file, recipe.options)
    given = parse_command(options, arguments, presets=(source, presets), **command)
    edit = given.generation.edit
    if edit is None or not edit.recordings:
        return given
    generation = dict(presets.get("generation", {}))
    if {argument.split("=")[0] for argument in arguments} & {"--init-audio", "--continue", "--lead-in"}:
        for name in ("loudness", "duration_s"):  # they were those of another recording
            generation.pop(name, None)
    defaults: dict[str, Any] = {"loudness": None}
    if edit.init_audio is not None:
        defaults["duration_s"] = recording_duration_s(edit.init_audio)
    presets = presets | {"generation": defaults | generation}
    return parse_command(options, arguments, presets=(source, presets), **command)


def check_resamples(resamples: int) -> None:
    """Raise an error if there are too few resamples for an interval."""
    if resamples < 20:
        raise UserError(f"--resamples is {resamples}; an interval needs at least 20 draws")


def check_adapters(lora: Sequence[str]) -> None:
    """Raise an error unless each adapter is a folder or a possible hub id, before anything heavy is imported."""
    for text in lora:
        place, _ = parse_adapter(text)
        if Path(place).is_dir():
            if not (Path(place) / "adapter_config.json").is_file():
                raise UserError(f"{place}: not an adapter folder, adapter_config.json is missing")
        elif not is_hub_id(place):
            raise UserError(f"{place}: there is no such adapter folder")


def check_exists(*paths: Path | None) -> None:
    """Raise an error for missing inputs, before anything heavy is imported."""
    for path in paths:
        if path is not None and not path.exists():
            raise UserError(f"{path}: there is no such file or folder")


def check_model(model: str | None) -> None:
    """Raise an error unless the model is a folder or a possible hub id, before anything heavy is imported."""
    if model is None or is_hub_id(model):
        return
    if not Path(model).is_dir():
        raise UserError(f"{model}: there is no such model folder")
    if not (Path(model) / "model_index.json").is_file():
        raise UserError(f"{model}: not a model folder, model_index.json is missing")


def check_report_path(path: Path) -> None:
    """Raise an error unless the path is a .json file, and create its parent folder."""
    if path.suffix != ".json" or path.is_dir():
        raise UserError(f"{path}: name a .json file")
    path.parent.mkdir(parents=True, exist_ok=True)
