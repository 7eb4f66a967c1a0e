"""What commands and scripts share: the settings of a sound as options, and those that several commands have."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from diffaudio.config import Count
from diffaudio.diffusion.settings import GenerationSettings, Projection
from diffaudio.errors import UserError
from diffaudio.hub import is_hub_id

__all__ = [
    "GENERATION_FLAGS",
    "GENERATION_GROUPS",
    "GenerationOptions",
    "check_exists",
    "check_model",
    "check_report_path",
    "check_resamples",
]

# The names that sections have on the command line; all else is called as its field.
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
}
GENERATION_GROUPS = {"generation.guidance.": "guidance, beyond the scale", "generation": "sound"}

ZERO_INIT = 0.04  # the paper's, with --cfg-zero


@dataclass(kw_only=True)
class GenerationOptions:
    """How to generate, for `diffaudio generate` and sample/generate.py.

    Attributes:
        model: model folder or hub id (default: the bundled one).
        batch_size: sounds at a time.
        plot: draw the spectrogram of each sound beside it (.png).
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: auto, float32, float16, bfloat16; auto is float16 on CUDA and float32 elsewhere.
        apg: adaptive projected guidance: drop what only makes the sound louder.
        zero_init: the fraction of the way at whose beginning the latents are held still; with --cfg-zero 0.04.
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
        """All that decides how a sound is generated.

        Raises:
            ValueError: a value is out of range, or without effect.
        """
        guidance = self.generation.guidance
        zero_init = self.zero_init
        if zero_init is None:
            zero_init = ZERO_INIT if guidance.zero_star else 0.0
        projection = guidance.projection or (Projection() if self.apg else None)
        return replace(self.generation, guidance=replace(guidance, projection=projection, zero_init=zero_init))


def check_resamples(resamples: int) -> None:
    """Refuse too few draws for an interval."""
    if resamples < 20:
        raise UserError(f"--resamples is {resamples}; an interval needs at least 20 draws")


def check_exists(*paths: Path | None) -> None:
    """Refuse inputs that are not there, before anything heavy is imported."""
    for path in paths:
        if path is not None and not path.exists():
            raise UserError(f"{path}: there is no such file or folder")


def check_model(model: str | None) -> None:
    """Refuse a model that is neither a folder nor can be a hub id, before anything heavy is imported."""
    if model is None or is_hub_id(model):
        return
    if not Path(model).is_dir():
        raise UserError(f"{model}: there is no such model folder")
    if not (Path(model) / "model_index.json").is_file():
        raise UserError(f"{model}: not a model folder, model_index.json is missing")


def check_report_path(path: Path) -> None:
    """Refuse what is no .json file, and make the folder that it is to lie in."""
    if path.suffix != ".json" or path.is_dir():
        raise UserError(f"{path}: name a .json file")
    path.parent.mkdir(parents=True, exist_ok=True)
