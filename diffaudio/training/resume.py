"""States of a run: what resuming needs, one folder of safetensors and JSON every so many steps.

    state/step_00001000/<part>.safetensors    weights of a module, or moments of an optimizer
    state/step_00001000/state.json            step, number of processes, scaler of fp16, SHA-256 of the other files

A state is the last thing that is written at its step, after the lines, samples and model of that step: where there is
one, all that belongs to its steps is there too. Randomness is a function of (seed, step, item): no generator is saved.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffaudio.atomic_io import atomic_folder
from diffaudio.errors import UserError

__all__ = ["latest_state", "resume", "save_state", "state_folders"]

log = logging.getLogger(__name__)

Part = nn.Module | torch.optim.Optimizer


def state_folders(folder: Path) -> list[Path]:
    """The finished states, the newest last."""
    return sorted(path for path in folder.glob("step_*") if path.is_dir())


def latest_state(folder: Path) -> Path | None:
    """The newest finished state, or None where a run begins."""
    return max(state_folders(folder), default=None)


def save_state(
    folder: Path,
    step: int,
    *,
    scaler: torch.amp.GradScaler | None = None,
    num_processes: int = 1,
    max_states: int = 1,
    **parts: Part,
) -> None:
    """Write `folder/step_<step>` whole, then remove what is no longer needed.

    Args:
        step: number of steps done. Later states, which are of steps that are done anew, are removed.
        scaler: of the gradients, where fp16 needs one.
        max_states: how many are kept, this one included.
        parts: the modules and optimizers to save, by name.
    """
    with atomic_folder(folder / f"step_{step:08d}") as temporary:
        for name, part in parts.items():
            tensors = _moments(part) if isinstance(part, torch.optim.Optimizer) else part.state_dict()
            contiguous = {key: value.detach().contiguous().clone() for key, value in tensors.items()}
            save_file(contiguous, temporary / f"{name}.safetensors")
        state = {"step": step, "num_processes": num_processes, "scaler": scaler.state_dict() if scaler else None}
        state["sha256"] = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
    states = state_folders(folder)
    upto = [path for path in states if path.name <= f"step_{step:08d}"]
    for path in states:
        if path not in upto[-max_states:]:
            shutil.rmtree(path)


def resume(
    folder: Path,
    *,
    scaler: torch.amp.GradScaler | None = None,
    num_processes: int = 1,
    newer: Collection[str] = (),
    **parts: Part,
) -> int:
    """Load the newest state that `save_state` wrote and that is not damaged.

    Args:
        folder: of the states.
        newer: parts that earlier versions did not save; where a state lacks them, they begin anew.

    Returns:
        The number of steps done, 0 where there is no state.

    Raises:
        ValueError: there are states, but all are damaged.
    """
    problem = None
    for path in reversed(state_folders(folder)):
        try:
            state = _load_state(path, scaler, parts, newer)
        except _DamagedState as error:
            problem = error
            log.warning("%s; trying the state before it", error)
            continue
        before = state.get("num_processes", num_processes)
        if before != num_processes:
            log.warning(
                "%s was saved by %d processes, %d go on: batches and what is drawn for them stay the same, "
                "the masks of the U-Net's dropout do not",
                path, before, num_processes,
            )  # fmt: skip
        return state["step"]
    if problem is not None:
        raise UserError(f"{problem}; there is no other state to go on from: begin in another --out, or remove {folder}")
    return 0


class _DamagedState(Exception):
    """The message names the file."""


def _load_state(
    folder: Path, scaler: torch.amp.GradScaler | None, parts: dict[str, Part], newer: Collection[str]
) -> dict[str, Any]:
    file = folder / "state.json"
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        if f"step_{state['step']:08d}" != folder.name:
            raise ValueError("it is of another step")
        checksums = state.get("sha256")  # states of version 0.4 and before have none
        for name, part in parts.items():
            file = folder / f"{name}.safetensors"
            if name in newer and not file.exists() and file.name not in (checksums or {}):
                continue
            if checksums is not None and checksums[file.name] != _sha256(file):
                raise ValueError("its checksum is another than that in state.json")
            tensors = load_file(file)
            if isinstance(part, torch.optim.Optimizer):
                _load_moments(part, tensors)
            else:
                part.load_state_dict(tensors)
    except (FileNotFoundError, KeyError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())[:200]
        raise _DamagedState(f"{file} is damaged ({reason})") from error
    if scaler and state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    return state


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    states = optimizer.state_dict()["state"].items()
    return {f"{index}.{key}": value for index, values in states for key, value in values.items()}


def _load_moments(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = value
    current = optimizer.state_dict()
    for index, values in moments.items():
        parameter = [p for group in optimizer.param_groups for p in group["params"]][index]
        for name, value in values.items():
            if name != "step" and value.shape != parameter.shape:
                raise ValueError(f"{index}.{name} has shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
    optimizer.load_state_dict({"state": moments, "param_groups": current["param_groups"]})
