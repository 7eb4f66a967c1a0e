"""Trackers beside TensorBoard, such as Weights & Biases, through accelerate; none is required."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from matplotlib.figure import Figure
from torch import Tensor

from diffaudio.errors import UserError

__all__ = ["TrackingSettings", "check_trackers", "start_trackers", "track_sound"]


@dataclass
class TrackingSettings:
    """Where a run is logged beside metrics.jsonl and TensorBoard.

    Attributes:
        trackers: names of accelerate's trackers, such as wandb, mlflow, comet_ml, aim, trackio; each needs its package.
        project: under which they list the run, by the name of its folder.
    """

    trackers: list[str] = field(default_factory=list)
    project: str = "diffaudio"


def check_trackers(settings: TrackingSettings) -> list[str]:
    """The trackers, as `Accelerator(log_with=…)` takes them.

    Raises:
        UserError: one is unknown, or its package is not installed.
    """
    known = sorted(name for name in map(str, LOGGER_TYPE_TO_CLASS) if name != "tensorboard")
    installed = {str(name) for name in get_available_trackers()}
    for name in settings.trackers:
        if name == "tensorboard":
            raise UserError("tracking.trackers: tensorboard is always written, into the run folder; leave it out")
        if name not in known:
            raise UserError(f"tracking.trackers: {name!r} is unknown; choose from {', '.join(known)}")
        if name not in installed:
            raise UserError(
                f"tracking.trackers: {name} needs its package, which is not installed; pip install "
                f"{name.replace('_', '-')}, or leave it out"
            )
    return settings.trackers


def start_trackers(
    accelerator: Accelerator, settings: TrackingSettings, run: Path, config: dict[str, Any]
) -> None:  # fmt: skip
    """Begin to track; a run that goes on is continued under the same id where the tracker can do that."""
    if not settings.trackers:
        return
    run_id = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]
    wandb = {"name": run.name, "id": run_id, "resume": "allow", "dir": str(run)}
    accelerator.init_trackers(settings.project, config=_flat(config), init_kwargs={"wandb": wandb})


def track_sound(
    accelerator: Accelerator, step: int, name: str, waveform: Tensor, sample_rate: int, spectrogram: Figure
) -> None:  # fmt: skip
    """Send a sound [channels, samples] and its spectrogram to the trackers that show them."""
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            import wandb  # type: ignore[import-not-found]

            sound = wandb.Audio(waveform.mean(dim=0).numpy(), sample_rate=sample_rate)
            tracker.log({name: sound, f"{name}/spectrogram": wandb.Image(spectrogram)}, step=step)


def _flat(config: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Dotted names, and values that every tracker takes."""
    values: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            values |= _flat(value, f"{above}{name}.")
        else:
            values[above + name] = value if isinstance(value, bool | int | float | str) else str(value)
    return values
