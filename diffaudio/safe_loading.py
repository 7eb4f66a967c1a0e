"""Reading folders of models that nobody vouches for: no code is run, nothing outside the folder is read.

A config may say anything. What is checked before a network is built of it:

    JSON        an object of bounded size and depth, without NaN
    links       none that lead out of the folder
    keys        those that the class takes, and none that would make a library fetch or run something
    weights     safetensors only; their header says which tensors there are, and how large
    size        building stops at the first parameter beyond those of the header, before it is filled

and after it: names, shapes, kinds of dtype, and that all values are finite. See SECURITY.md.
"""

import difflib
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from diffaudio.errors import UserError

__all__ = [
    "Weights",
    "build_within",
    "check_folder",
    "check_keys",
    "load_network",
    "load_weights",
    "loading_errors",
    "read_json",
    "refuse_remote_code",
]

T = TypeVar("T")

MAX_JSON_BYTES = 64 * 2**20  # the largest tokenizer.json in use has about half of it
MAX_COUNT = 2**20  # of layers, channels and the like, where the weights do not have more values
MAX_TEMPORARY_ELEMENTS = 2**26  # of one tensor that is computed while a network is built, such as a mel filter bank
EXTRA_TENSORS, EXTRA_ELEMENTS = 64, 2**22  # layers that a library makes and replaces, such as timm's classifier
LIBRARY_NOTES = {"_class_name", "_diffusers_version", "_name_or_path"}  # diffusers' own; nothing here acts on them

# Keys by which transformers, diffusers, timm or open_clip run code, or fetch it, at any depth of a config.
REMOTE_CODE_KEYS = {
    "_attn_implementation", "_attn_implementation_internal", "_experts_implementation", "adapter_kwargs",
    "attn_implementation", "auto_map", "base_model_name_or_path", "code_revision", "custom_object", "custom_pipeline",
    "custom_pipelines", "experts_implementation", "pretrained_cfg", "quantization_config", "trust_remote_code",
    "use_kernels",
}  # fmt: skip

# How layers are initialised. Weights from a file replace that, so it costs no time and draws nothing from torch's seed.
RANDOM_FILLS = {torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default}

# Their outputs, and what they compute in between, are no larger than a square matrix of the input's longer side.
LINEAR_ALGEBRA = {torch.ops.aten._linalg_svd.default, torch.ops.aten.linalg_pinv.atol_rtol_tensor}

FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
OTHERS = {
    "F64": torch.float64, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@contextmanager
def loading_errors(place: str | Path) -> Iterator[None]:
    """Turn what a library raises over a damaged folder into a `UserError` that begins with the place."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except BaseException as error:
        # what Rust code panics with is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{place}: cannot be loaded: {reason}") from error


def read_json(file: Path, *, may_be_infinite: bool = False) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        may_be_infinite: whether Infinity and NaN are read too, which are no JSON; diffusers writes -Infinity.

    Raises:
        UserError: the file is missing, no plain file, too large, or holds something else.
    """
    if not file.is_file():
        raise UserError(f"{file.parent}: {file.name} is missing or no plain file")
    if file.stat().st_size > MAX_JSON_BYTES:
        raise UserError(f"{file}: is larger than {MAX_JSON_BYTES // 2**20} MB; a config is a few kilobytes")
    try:
        content = json.loads(
            file.read_text(encoding="utf-8"), parse_constant=float if may_be_infinite else _refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is damaged, it holds no JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: is damaged, it holds no JSON object but {type(content).__name__}")
    return content


def check_folder(folder: Path) -> None:
    """Refuse a folder with symbolic links that lead out of it, and with what is neither file nor folder, at any depth.

    A snapshot of the Hugging Face hub's cache may link to the files of its own repository, which lie beside it.

    Raises:
        UserError: see above.
    """
    root = folder.resolve()
    allowed = [root]
    for parent in (root, *root.parents):
        if parent.parent.name == "snapshots" and parent.parents[1].name.startswith("models--"):
            allowed.append(parent.parents[1] / "blobs")
    for entry in folder.rglob("*") if folder.is_dir() else ():
        target = _resolve(entry)
        if not any(target.is_relative_to(place) for place in allowed):
            raise UserError(f"{entry}: leads out of the folder, to {target}; a model holds its own files")
        if not (target.is_file() or target.is_dir()):
            raise UserError(f"{entry}: is neither file nor folder")


def _resolve(entry: Path) -> Path:
    try:
        return entry.resolve()
    except (OSError, RuntimeError) as error:  # links that go round in a circle
        raise UserError(f"{entry}: cannot be followed: {error}") from error


def refuse_remote_code(config: Any, file: Path | str, above: str = "") -> None:
    """Refuse a config that asks a library to run or fetch code, at any depth.

    Raises:
        UserError: it does; the message names the key.
    """
    if isinstance(config, dict):
        for key, value in config.items():
            name = f"{above}{key}"
            if key in REMOTE_CODE_KEYS and value not in (None, False):
                raise UserError(f"{file}: {name} is refused: it would run or fetch code that is not diffaudio's")
            refuse_remote_code(value, file, f"{name}.")
    elif isinstance(config, list):
        for index, value in enumerate(config):
            refuse_remote_code(value, file, f"{above}{index}.")
    elif isinstance(config, str) and config.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        raise UserError(f"{file}: {above.rstrip('.')} is {config!r}; a model folder may not name another place")


def check_keys(config: Mapping[str, Any], known: set[str], file: Path | str, where: str = "") -> None:
    """Refuse keys that are not known.

    Raises:
        UserError: names the key, and the one that may have been meant.
    """
    for key in config:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{file}: {where}unknown key {key!r}{hint}")


@dataclass(frozen=True)
class Weights:
    """Safetensors files of one network, by their headers.

    Attributes:
        files: the shards.
        tensors: name -> (dtype as safetensors writes it, shape).
    """

    files: tuple[Path, ...]
    tensors: dict[str, tuple[str, tuple[int, ...]]]

    @property
    def num_elements(self) -> int:
        return sum(math.prod(shape) for _, shape in self.tensors.values())

    @classmethod
    def of(cls, folder: Path, stem: str = "diffusion_pytorch_model") -> "Weights":
        """Read the headers of a folder's weights, `stem`.safetensors or the shards that its index names.

        Raises:
            UserError: there are none, one is damaged, or the index names files elsewhere.
        """
        file, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        files = [file]
        if file.exists() and index.exists():  # libraries differ in which they read
            raise UserError(f"{index}: is refused beside {file.name}; weights are one file, or shards with an index")
        if index.exists():
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
                raise UserError(f"{index}: is damaged, weight_map is no list of files")
            files = [folder / name for name in sorted(set(shards.values()))]
            for shard in files:
                if shard.parent != folder or not shard.name.endswith(".safetensors"):
                    raise UserError(f"{index}: names {shard.name!r}; shards are safetensors in the same folder")
        tensors = {}
        for shard in files:
            tensors |= _header(shard)
        return cls(tuple(files), tensors)

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and tensor, one after the other; values are checked to be finite.

        Raises:
            UserError: names the file and the tensor that is not.
        """
        for file in self.files:
            with loading_errors(file), safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - this is no dictionary
                    tensor = opened.get_tensor(name)
                    if tensor.is_floating_point() and not tensor.isfinite().all():
                        raise UserError(f"{file}: tensor {name} holds values that are not finite (NaN or infinite)")
                    yield name, tensor

    def check_values(self) -> None:
        """See `items`."""
        for _ in self.items():
            pass


def load_network(network: Callable[..., T], folder: Path) -> T:
    """Read a network of ours from its folder, config.json and diffusion_pytorch_model.safetensors, ready for use.

    Args:
        network: its class; the arguments of its constructor are what the config may hold.

    Returns:
        The network in evaluation mode, float32 whatever the dtype on disk.

    Raises:
        UserError: names the file and what is wrong with it.
    """
    file = folder / "config.json"
    config = read_json(file)
    check_folder(folder)
    check_keys(config, set(inspect.signature(network).parameters) | LIBRARY_NOTES, file)
    refuse_remote_code(config, file)
    weights = Weights.of(folder)
    settings = {name: value for name, value in config.items() if name not in LIBRARY_NOTES}
    _check_counts(settings, max(weights.num_elements, MAX_COUNT), file)
    with loading_errors(file), build_within(weights, file):
        built: Any = network(**settings)
    load_weights(built, weights)
    return built.eval()


def _check_counts(config: Any, largest: int, file: Path, name: str = "") -> None:
    """Refuse whole numbers beyond the number of weights: no network has more layers, channels or samples than that."""
    if isinstance(config, dict):
        for key, value in config.items():
            if not key.endswith("seed"):
                _check_counts(value, largest, file, f"{name}.{key}" if name else key)
    elif isinstance(config, list):
        for value in config:
            _check_counts(value, largest, file, name)
    elif isinstance(config, int) and abs(config) > largest:
        raise UserError(f"{file}: {name} is {config}, which is more than the weights beside it can have")


def load_weights(network: nn.Module, weights: Weights, ignored: Sequence[str] = ()) -> None:
    """Fill a network from safetensors that hold exactly its tensors.

    Args:
        ignored: beginnings of names that the files may hold for nothing, such as a fixed front end's.

    Raises:
        UserError: a tensor is missing, one too many, of another shape or kind of dtype, or not finite.
    """
    places = ", ".join(map(str, weights.files))
    wanted = network.state_dict()
    given = {name: kind for name, kind in weights.tensors.items() if not name.startswith(tuple(ignored))}
    for names, what in ((wanted.keys() - given.keys(), "lacks"), (given.keys() - wanted.keys(), "should not hold")):
        if names:
            number = "1 tensor" if len(names) == 1 else f"{len(names)} tensors, such as"
            raise UserError(f"{places}: {what} {number} {min(names)}; it does not fit config.json")
    for name, (dtype, shape) in given.items():
        tensor = wanted[name]
        if tuple(tensor.shape) != shape:
            raise UserError(f"{places}: tensor {name} is {list(shape)}; config.json asks for {list(tensor.shape)}")
        if not (tensor.dtype in FLOATS.values() and dtype in FLOATS) and OTHERS.get(dtype) != tensor.dtype:
            raise UserError(f"{places}: tensor {name} is of type {dtype}, which does not fit {tensor.dtype}")
    network.load_state_dict({name: tensor for name, tensor in weights.items() if name in given})


@contextmanager
def build_within(weights: Weights, file: Path | str, slack: float = 1.0) -> Iterator[None]:
    """Stop the building of a network, in this thread, at the first tensor that the weights cannot hold.

    A layer registers its parameters before it fills them, so that memory is asked for but not yet used.

    Args:
        slack: how many times the number of tensors and of elements may be reached; a library that renames and
            splits tensors while it loads needs more than 1.

    Raises:
        UserError: the config asks for more.
    """
    allowed = slack * len(weights.tensors) + EXTRA_TENSORS
    elements = slack * weights.num_elements + EXTRA_ELEMENTS
    counted = {"parameters": 0, "elements": 0, "modules": 0, "buffers": 0}

    def stop() -> UserError:
        return UserError(
            f"{file}: asks for more than the weights beside it hold, "
            f"{len(weights.tensors)} tensors of {weights.num_elements} values"
        )

    def on_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            counted["parameters"] += 1
            counted["elements"] += parameter.numel()
            if counted["parameters"] > allowed or counted["elements"] > elements:
                raise stop()

    def on_buffer(module: nn.Module, name: str, buffer: torch.Tensor | None) -> None:
        counted["buffers"] += 1 if buffer is None else buffer.numel()
        if counted["buffers"] > elements + MAX_TEMPORARY_ELEMENTS:
            raise stop()

    def on_module(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
        counted["modules"] += 1
        if counted["modules"] > 100 * allowed + 1000:
            raise stop()

    hooks = [
        register_module_parameter_registration_hook(on_parameter),
        register_module_buffer_registration_hook(on_buffer),
        register_module_module_registration_hook(on_module),
    ]
    try:
        with _AllocationLimit(max(weights.num_elements, MAX_TEMPORARY_ELEMENTS), file):
            yield
    finally:
        for hook in hooks:
            hook.remove()


class _AllocationLimit(TorchDispatchMode):
    """Refuse single tensors above a size before they are computed."""

    def __init__(self, max_elements: int, file: Path | str) -> None:
        super().__init__()
        self.max_elements, self.file = max_elements, file

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import torch._dynamo, which takes seconds, to keep compiled code out of this mode

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in RANDOM_FILLS and kwargs.get("generator") is None:
            return args[0]
        # what changes a tensor in place, or looks at one, makes no new memory
        if not func._schema.is_mutable and not func.is_view:
            for shape in _output_shapes(func, args, kwargs, self.max_elements):
                if math.prod(shape) > self.max_elements:
                    raise UserError(f"{self.file}: asks for a tensor of {list(shape)}, which cannot be right")
        return func(*args, **kwargs)


def _output_shapes(func: Any, args: Any, kwargs: Any, max_elements: int) -> list[tuple[int, ...]]:
    """Shapes of the tensors that an operation would make, without making them; none if all are below `max_elements`.

    The meta device knows the shapes, but its Python code for some operations imports sympy and torch._dynamo, which
    takes seconds. So it is only asked where simple bounds do not settle the matter.
    """
    leaves = tree_leaves((args, kwargs))
    shapes = [tuple(leaf.shape) for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if torch.Tag.pointwise in func.tags or torch.Tag.reduction in func.tags:
        return [_broadcast(shapes)]  # a reduction's output is smaller
    if func in LINEAR_ALGEBRA:
        return [(*shapes[0][:-2], max(shapes[0][-2:]), max(shapes[0][-2:]))]
    if not shapes and args and isinstance(args[0], list | tuple):
        return [tuple(args[0])]  # such as zeros(size)
    if func is torch.ops.aten.linspace.default and len(args) > 2:
        return [(args[2],)]
    # No operation makes more elements than the square of this: at most, outer products of its inputs, or its numbers
    # multiplied as sizes, repetitions, or a range and its step.
    size = 1.0 + sum(map(math.prod, shapes))
    for number in leaves:
        if isinstance(number, int | float) and not isinstance(number, bool):
            size *= (1 + abs(number)) * (1 + 1 / abs(number) if isinstance(number, float) and number else 1)
    if size**2 <= max_elements:
        return []
    try:
        args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        if "device" in kwargs:
            kwargs = kwargs | {"device": torch.device("meta")}
        return [tuple(leaf.shape) for leaf in tree_leaves(func(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]
    except (RuntimeError, NotImplementedError):  # the output's shape depends on the values; it is no larger
        return []


def _broadcast(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape that tensors of these shapes broadcast to, as far as they do."""
    dims = zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1)
    return tuple(0 if 0 in sizes else max(sizes) for sizes in dims)[::-1]


def _header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    if not file.is_file():
        raise UserError(f"{file}: is missing; weights are read from safetensors only, convert others first")
    with loading_errors(file), safe_open(file, framework="pt") as opened:
        parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        tensors = {name: (str(part.get_dtype()), tuple(part.get_shape())) for name, part in parts.items()}
    for name, (dtype, _) in tensors.items():
        if dtype not in FLOATS and dtype not in OTHERS:
            raise UserError(f"{file}: tensor {name} is of type {dtype}; choose from {', '.join([*FLOATS, *OTHERS])}")
    return tensors


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")
