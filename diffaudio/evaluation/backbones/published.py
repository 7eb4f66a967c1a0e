"""Weights in the files their authors publish: .pth and .pt of PyTorch, .h5 of Keras. Nothing in them can run code.

PyTorch's files are read by its restricted unpickler (`weights_only=True`), which makes tensors and plain containers and
nothing else; NumPy arrays are allowed too, since PANNs' checkpoint holds some beside the weights.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffaudio.errors import UserError
from diffaudio.safe_loading import loading_errors

__all__ = ["PUBLISHED_SUFFIXES", "load_tensors", "read_published"]

PUBLISHED_SUFFIXES = (".pth", ".pt", ".ckpt", ".tar", ".h5", ".hdf5")
NESTED = ("state_dict", "model", "model_state_dict")  # where checkpoints keep their weights
KERAS_VARIABLES = {
    "kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias", "moving_mean": "running_mean",
    "moving_variance": "running_var",
}  # fmt: skip
EMBEDDING_LAYER = "audio_embedding_layer"
MAX_BYTES = 2**30  # of all arrays of an .h5 when unpacked; OpenL3's have 20 MB


def read_published(path: Path) -> dict[str, Tensor]:
    """The tensors of a published file, under their keys; of .h5, under those that the PyTorch ports use.

    Raises:
        ValueError: the file is damaged, would run code, holds no tensors, or needs h5py, which is not installed.
    """
    tensors = _read_keras(path) if path.suffix in (".h5", ".hdf5") else _read_torch(path)
    if not tensors:
        raise UserError(f"{path}: holds no weights")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{path}: tensor {name} holds values that are not finite (NaN or infinite)")
    return tensors


def load_tensors(network: nn.Module, tensors: dict[str, Tensor], path: Path, ignored: Sequence[str] = ()) -> None:
    """Load tensors into a network.

    Args:
        path: of the file they are from, for messages.
        ignored: prefixes of names that are not needed.

    Raises:
        ValueError: some are missing, of other shapes, or not the network's.
    """
    wanted = network.state_dict()
    found = {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(ignored))}
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    surplus = [name for name in found if name not in wanted]
    for what, names in (("lacks", missing), ("holds, and the network does not,", surplus)):
        if names:
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            raise UserError(f"{path}: {what} {len(names)} tensor{'s'[: len(names) > 1]} {shown}")
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise UserError(f"{path}: {name} has the shape {tuple(tensor.shape)}, not {tuple(wanted[name].shape)}")
    network.load_state_dict(found, strict=False)


def _read_torch(path: Path) -> dict[str, Tensor]:
    with loading_errors(path), torch.serialization.safe_globals(_numpy_globals()):
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    for name in NESTED:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {type(content).__name__}, no table of weights")
    return {name: tensor for name, tensor in content.items() if isinstance(name, str) and isinstance(tensor, Tensor)}


def _numpy_globals() -> list[Any]:
    """What pickled arrays of numbers are made by, under the names of old and new NumPy."""
    reconstruct = np._core.multiarray._reconstruct  # pyright: ignore[reportAttributeAccessIssue]
    scalar = np._core.multiarray.scalar  # pyright: ignore[reportAttributeAccessIssue]
    allowed: list[Any] = [np.ndarray, np.dtype, reconstruct, scalar]
    allowed += [(reconstruct, "numpy.core.multiarray._reconstruct"), (scalar, "numpy.core.multiarray.scalar")]
    numbers = (np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8, np.bool_)
    return allowed + [type(np.dtype(number)) for number in numbers]


def _read_keras(path: Path) -> dict[str, Tensor]:
    """Convolutions and batch normalisations, numbered from 1 in the order in which Keras numbered them."""
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path}: needs h5py to be read; install diffaudio[openl3]") from error
    layers: dict[str, dict[str, Tensor]] = {}
    with loading_errors(path), h5py.File(path, "r") as file:
        size = sum(dataset.nbytes for _, dataset in _datasets(file, h5py))
        if size > MAX_BYTES:
            raise UserError(f"{path}: unpacks to {size / 1e6:.0f} MB; OpenL3's weights have 20 MB")
        for name, dataset in _datasets(file, h5py):
            values = dataset[()]
            *_, layer, variable = name.split("/")
            layers.setdefault(layer, {})[variable.split(":")[0]] = torch.from_numpy(np.asarray(values))
    tensors: dict[str, Tensor] = {}
    norms = [layer for layer, variables in layers.items() if "gamma" in variables]
    convolutions = [
        layer
        for layer, variables in layers.items()
        if layer != EMBEDDING_LAYER and "kernel" in variables and variables["kernel"].ndim == 4
    ]
    names = {layer: f"batch_normalization_{index}" for index, layer in enumerate(sorted(norms, key=_number), start=1)}
    names |= {layer: f"conv2d_{index}" for index, layer in enumerate(sorted(convolutions, key=_number), start=1)}
    names |= {EMBEDDING_LAYER: EMBEDDING_LAYER} if EMBEDDING_LAYER in layers else {}
    for layer, name in names.items():
        for variable, tensor in layers[layer].items():
            if variable not in KERAS_VARIABLES:
                raise UserError(f"{path}: layer {layer} has a variable {variable}, which OpenL3's do not have")
            # a kernel is [height, width, in, out]
            tensors[f"{name}.{KERAS_VARIABLES[variable]}"] = tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor
    return tensors


def _datasets(group: Any, h5py: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every array of a file with its path; links to other files are not followed."""
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            continue
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from _datasets(item, h5py, f"{above}{name}/")
        elif isinstance(item, h5py.Dataset) and item.external is None and not item.is_virtual:
            yield f"{above}{name}", item


def _number(layer: str) -> int:
    """The number at a layer's end; Keras leaves that of the first out, or calls it 1."""
    found = re.search(r"_(\d+)$", layer)
    return int(found[1]) if found else 0
