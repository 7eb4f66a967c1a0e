"""What every training script shares: seeded generators, learning rate, averaged weights, resuming, the run's log.

A run folder holds

    config.yaml     the resolved settings
    metrics.jsonl   one line a logged step
    events…         the same for TensorBoard
    samples/        sounds and pictures made while training
    state/          step_00001000/: what resuming needs, safetensors and JSON
    model/          the inference-ready folder

Randomness is a function of (seed, process, step), so `state/` keeps no generator: a run that is
stopped and started again draws what it would have drawn.
"""

import json
import math
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffaudio.atomic_io import atomic_file, atomic_folder
from diffaudio.config import to_yaml
from diffaudio.corpus.datasets.latents import LatentDataset
from diffaudio.errors import UserError
from diffaudio.models.autoencoders import Autoencoder
from diffaudio.models.clip import Clip
from diffaudio.seeding import seeded_generator

__all__ = [
    "RunLog",
    "average_decay",
    "begin_run",
    "check_encoders",
    "latest_state",
    "learning_rate",
    "load_state",
    "loss_by_level",
    "resolve_precision",
    "save_state",
    "seeded_generator",
    "update_average",
]


def begin_run(folder: Path, settings: Any, *, free: Collection[str]) -> None:
    """Make the run folder and keep the settings there.

    Args:
        settings: dataclass instance.
        free: dotted names of settings, or of whole sections, that may change while a run goes on.

    Raises:
        ValueError: the run was begun with other settings, which would make it another one.
    """
    path, now = folder / "config.yaml", to_yaml(settings)
    if latest_state(folder / "state") and path.is_file():
        before = _dotted(yaml.safe_load(path.read_text(encoding="utf-8")))
        for name, value in _dotted(yaml.safe_load(now)).items():
            if name in free or name.split(".")[0] in free or before.get(name) == value:
                continue
            raise UserError(
                f"{folder}: the run was begun with {name} {before.get(name)}, not {value}; "
                "go on with that, or choose another --out"
            )
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(now, encoding="utf-8")


def _dotted(content: dict[str, Any], above: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in content.items():
        values |= _dotted(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return values


def check_encoders(dataset: LatentDataset, autoencoder: Autoencoder, clip: Clip) -> None:
    """See that a corpus was encoded by the models that go into the checkpoint.

    Raises:
        ValueError: it was not.
    """
    made, wanted = dataset.autoencoder, autoencoder
    if made["name"] != wanted.name:
        raise UserError(
            f"{dataset.folders[0]}: latents were made by autoencoder '{made['name']}' "
            f"({made['latent_rate']:g} Hz, {made['latent_channels']} channels), the checkpoint wants '{wanted.name}' "
            f"({wanted.latent_rate:g} Hz, {wanted.latent_channels} channels); "
            "encode the corpus again with that one as --autoencoder"
        )
    if dataset.clip["name"] != clip.name:
        raise UserError(
            f"{dataset.folders[0]}: embeddings were made by CLIP '{dataset.clip['name']}', "
            f"the checkpoint wants '{clip.name}'; encode the corpus again with that one as --clip"
        )


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int, final_fraction: float = 0.0) -> float:
    """Linear warm-up to `peak`, then a half cosine down to `peak * final_fraction` at `total_steps`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return peak * (final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress)))


def loss_by_level(seen: Tensor) -> dict[str, float]:
    """The mean loss, and that of each quarter of the noise levels; [items, 2] holds loss and level (0 clean to 1)."""
    losses, levels = seen.unbind(dim=1)
    values = {"loss": losses.mean().item()}
    quarters = (levels * 4).long().clamp(0, 3)
    for quarter in quarters.unique().tolist():
        values[f"loss_level_{quarter * 25}_{quarter * 25 + 25}"] = losses[quarters == quarter].mean().item()
    return values


def average_decay(num_updates: int, max_decay: float) -> float:
    """How much of the average stays at an update: (1 + t) / (10 + t) after t updates, at most `max_decay`."""
    return min(max_decay, (1 + num_updates) / (10 + num_updates))


@torch.no_grad()
def update_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * module, in place; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
    for kept, new in zip(average.buffers(), module.buffers(), strict=True):
        kept.copy_(new)


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turn 'auto' into 'bf16' where the hardware multiplies it, else 'no'; other values stay.

    Without such instructions bf16 is emulated, hundreds of times slower than float32.

    Raises:
        ValueError: 'fp16' on a CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise UserError("precision 'fp16' needs a GPU; choose auto, no or bf16 on a CPU")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "bf16"
    return "no"


def save_state(
    state_folder: Path,
    step: int,
    *,
    scaler: torch.amp.GradScaler | None = None,
    **parts: nn.Module | torch.optim.Optimizer,
) -> None:
    """Write `state_folder/step_<step>` whole, then drop the older ones.

    Args:
        scaler: of the gradients, where fp16 needs one.
        parts: what to keep the weights or the moments of, by name: the network, its average, the optimizer.
    """
    with atomic_folder(state_folder / f"step_{step:08d}") as folder:
        for name, part in parts.items():
            tensors = _moments(part) if isinstance(part, torch.optim.Optimizer) else part.state_dict()
            _save_tensors(tensors, folder / f"{name}.safetensors")
        state = {"step": step, "scaler": scaler.state_dict() if scaler else None}
        (folder / "state.json").write_text(json.dumps(state))
    for older in sorted(state_folder.glob("step_*"))[:-1]:
        shutil.rmtree(older)


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    states = optimizer.state_dict()["state"].items()
    return {f"{index}.{key}": value for index, values in states for key, value in values.items()}


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: value.detach().contiguous().clone() for name, value in tensors.items()}, path)


def latest_state(state_folder: Path) -> Path | None:
    """The newest finished state, or None where a run begins."""
    return max(state_folder.glob("step_*"), default=None)


def load_state(
    folder: Path,
    *,
    scaler: torch.amp.GradScaler | None = None,
    **parts: nn.Module | torch.optim.Optimizer,
) -> int:
    """Put a state written by `save_state` back in place.

    Returns:
        The number of steps that were done.
    """
    for name, part in parts.items():
        tensors = load_file(folder / f"{name}.safetensors")
        if isinstance(part, torch.optim.Optimizer):
            _load_moments(part, tensors)
        else:
            part.load_state_dict(tensors)
    state = json.loads((folder / "state.json").read_text())
    if scaler and state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    return state["step"]


def _load_moments(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


class RunLog:
    """Scalars, sounds and pictures of a run: metrics.jsonl and TensorBoard events side by side.

    Args:
        folder: the run folder.
        done: how many steps the state holds that the run goes on from. Lines with a higher number,
            written before the run was stopped, are dropped: these steps are done again. None drops nothing.
    """

    def __init__(self, folder: Path, done: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "metrics.jsonl"
        if path.is_file() and done is not None:
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            with atomic_file(path) as temporary:
                temporary.write_text("".join(line for line in lines if _is_done(line, done)), encoding="utf-8")
        self._lines = path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(folder), purge_step=None if done is None else done + 1)

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        """One line in metrics.jsonl and one point a value in TensorBoard."""
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def sound(self, step: int, name: str, waveform: Tensor, sample_rate: int, picture: Figure) -> None:
        """A sound [channels, samples] and its spectrogram in TensorBoard."""
        self.board.add_audio(name, waveform.mean(dim=0), step, sample_rate=sample_rate)
        self.board.add_figure(name, picture, step)

    def close(self) -> None:
        self._lines.close()
        self.board.close()


def _is_done(line: str, done: int) -> bool:
    try:
        return json.loads(line)["step"] <= done
    except json.JSONDecodeError:
        return False  # the process was killed while it wrote
