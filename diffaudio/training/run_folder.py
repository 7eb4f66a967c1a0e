"""The folder of a run, and who may write there.

It holds

    config.yaml     the resolved settings
    metrics.jsonl   one line for each logged step
    events…         the same for TensorBoard
    samples/        sounds and spectrograms made while training
    state/          step_00001000/: what resuming needs
    model/          the inference-ready folder, as of the newest state
    averages/       snapshots of averages, from which `diffaudio average` builds models
    best/           the same, of the lowest held-out loss so far, where clips are held out
    .lock           held by the process that trains
"""

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from diffaudio.atomic_io import atomic_file, atomic_folder
from diffaudio.config import to_yaml
from diffaudio.errors import UserError
from diffaudio.folder_lock import locked_folder
from diffaudio.training.resume import latest_state, state_folders

__all__ = ["check_data_parallel", "local_batch_size", "open_run", "run_advice"]


@contextmanager
def open_run(
    folder: Path,
    settings: Any,
    accelerator: Accelerator,
    *,
    changeable: Collection[str],
    resume_from: Path | None = None,
) -> Iterator[None]:
    """Make the run folder and write the settings there; while the block runs, no other command trains there.

    Args:
        settings: dataclass instance.
        changeable: dotted names of settings, or of whole sections, that may change while a run goes on.
        resume_from: a run's folder, or one of its states, that this run goes on from until it has states of its own.

    Raises:
        ValueError: there is no state in `resume_from`, the run was begun with other settings, another process trains
            there, or config.yaml is damaged.
    """
    with locked_folder(folder, "training") if accelerator.is_main_process else nullcontext():
        if accelerator.is_main_process:
            if resume_from is not None and latest_state(folder / "state") is None:
                _copy_run(resume_from, folder)
            _begin(folder, settings, changeable)
        accelerator.wait_for_everyone()
        yield
        accelerator.wait_for_everyone()


def _begin(folder: Path, settings: Any, changeable: Collection[str]) -> None:
    path = folder / "config.yaml"
    if latest_state(folder / "state") and path.is_file():
        _check_settings(folder, _read_settings(path), settings, changeable)
    # What an interrupted process left half written:
    for parent in (folder, *(folder / name for name in ("samples", "state", "averages"))):
        for part in parent.glob(".*.part*"):
            shutil.rmtree(part) if part.is_dir() else part.unlink()
    with atomic_file(path) as temporary:
        temporary.write_text(to_yaml(settings), encoding="utf-8")


def _copy_run(source: Path, folder: Path) -> None:
    """Copy what going on needs from another run, or one of its states; the states, which say that it is there, last."""
    is_state = (source / "state.json").is_file()
    run, states = (source.parent.parent, [source]) if is_state else (source, state_folders(source / "state"))
    if not states:
        raise UserError(
            f"resume_from: {source} holds no state; name the folder of a run that was saved at least once, or one of "
            "its state/step_… folders"
        )
    for path in sorted(run.iterdir()) if (run / "config.yaml").is_file() else ():
        if path.is_file() and not path.name.startswith("."):
            with atomic_file(folder / path.name) as temporary:
                shutil.copyfile(path, temporary)
        elif path.is_dir() and path.name in ("averages", "best", "samples"):
            with atomic_folder(folder / path.name) as temporary:
                shutil.copytree(path, temporary, dirs_exist_ok=True)
    with atomic_folder(folder / "state") as temporary:
        for path in states:
            shutil.copytree(path, temporary / path.name)


def _check_settings(folder: Path, before: dict[str, Any], settings: Any, changeable: Collection[str]) -> None:
    for name, value in _dotted(yaml.safe_load(to_yaml(settings))).items():
        if name in changeable or name.split(".")[0] in changeable:
            continue
        if before[name] == value if name in before else _is_default(settings, name):
            continue
        raise UserError(
            f"{folder}: the run was begun with {name} {before.get(name)}, not {value}; "
            "go on with that, or choose another --out"
        )


def _is_default(settings: Any, name: str) -> bool:
    """Whether a setting, by its dotted name, has its default: a run of a version that lacked it may go on then."""
    *sections, last = name.split(".")
    for section in sections:
        settings = getattr(settings, section, None)
    if not is_dataclass(settings):
        return False
    field = next(field for field in fields(settings) if field.name == last)
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return default is not MISSING and getattr(settings, last) == default


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no settings; restore it, or choose another --out")
    return _dotted(content)


def _dotted(content: dict[str, Any], above: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in content.items():
        values |= _dotted(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return values


def check_data_parallel(accelerator: Accelerator) -> None:
    """Refuse configurations of accelerate that shard weights, which averages and states need whole.

    Raises:
        ValueError: FSDP, DeepSpeed or the like is configured.
    """
    kind = accelerator.distributed_type.value
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise UserError(
            f"accelerate is configured for {kind}, which shards weights: averages and states need them whole; choose "
            "MULTI_GPU (`accelerate config`), or use torchrun: configs/one_gpu with 152 million weights takes 8.4 GB"
        )


def local_batch_size(batch_size: int, num_processes: int, accumulation_steps: int = 1) -> int:
    """The share of each process in a batch of all processes, or of each of its micro-batches.

    Raises:
        ValueError: it is not a whole number.
    """
    shares = num_processes * accumulation_steps
    if batch_size % shares:
        among = str(num_processes) if accumulation_steps == 1 else f"{num_processes} times {accumulation_steps}"
        raise UserError(
            f"train.batch_size {batch_size} is shared by all processes and cannot be divided among {among}; "
            f"choose a multiple of {shares}"
        )
    return batch_size // shares


def run_advice(folder: Path, *, clips_gradients: bool = True) -> str:
    """What is left of a run that diverged, and what to do.

    Args:
        clips_gradients: whether the script has a setting `train.grad_clip`.
    """
    state = latest_state(folder / "state")
    saved = f"{state} and the model beside it are as they were" if state else "nothing was saved yet"
    lower = "train.lr or train.grad_clip" if clips_gradients else "train.lr"
    return f"{saved}; begin in another --out with a lower {lower}, or with more train.warmup_steps"
