"""LoRA adapters on disk, and applying them to a network (Hu et al. 2021, arXiv:2106.09685).

    W   weight of a linear layer             [out, in]
    A   down projection                      [r, in]
    B   up projection                        [out, r]
    W + strength * (alpha / r) * B A         the weight with an adapter, eq. 3 of the paper

An adapter is a folder in peft's format,

    adapter_config.json         r, lora_alpha and which layers are adapted
    adapter_model.safetensors   A and B of each layer
    conditions.safetensors      ours, optional: what the model's bridge has to know of the new sounds, see `Conditions`

Adapters are added to the weights when they are applied, so that generation takes no longer; several adapters add up.
Nothing in the folder is run, and the rules of `diffaudio.safe_loading` hold. `diffaudio.training.lora` trains and
saves adapters; only that needs the package peft.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffaudio.adapter_names import check_strength
from diffaudio.errors import UserError
from diffaudio.hub import fetch, is_hub_id
from diffaudio.safe_loading import Weights, check_folder, read_json, refuse_remote_code

__all__ = ["Adapter", "Conditions", "apply_adapter", "find_adapter", "read_adapter"]

PREFIX = "base_model.model."  # of the names that peft writes
CONDITIONS = "conditions.safetensors"

# What peft writes and what has no influence on the weights of a trained adapter.
IRRELEVANT = {
    "base_model_name_or_path", "inference_mode", "init_lora_weights", "lora_dropout", "peft_version", "revision",
    "runtime_config", "target_modules", "task_type",
}  # fmt: skip


@dataclass(frozen=True)
class Conditions:
    """What a retrieval bridge remembers of the sounds that an adapter was trained on.

    Attributes:
        memory: embeddings of their pictures, [pictures, dim].
        memory_keys: what texts are compared with, [pictures, dim].
        texts: embeddings of the texts that describe them, [texts, dim].
    """

    memory: Tensor
    memory_keys: Tensor
    texts: Tensor


@dataclass(frozen=True)
class Adapter:
    """An adapter that has been read and checked.

    Attributes:
        place: the folder or hub id it came from.
        scale: alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA.
        layers: name of a linear layer -> (A [r, in], B [out, r]), float32.
        trained_on: what `diffaudio.training.lora` notes of the model and its CLIP; empty for others' adapters.
        conditions: None where the adapter has none.
    """

    place: str
    scale: float
    layers: dict[str, tuple[Tensor, Tensor]]
    trained_on: dict[str, Any]
    conditions: Conditions | None


def find_adapter(adapter: str | Path, **hub_settings: Any) -> Path:
    """The local folder of an adapter: the given folder, or a download from the hub.

    Raises:
        UserError: there is no such folder, or the hub does not have it.
    """
    folder = Path(adapter)
    if folder.is_dir():
        return folder
    if not is_hub_id(adapter):
        raise UserError(f"{adapter}: there is no such adapter folder")
    return fetch(adapter, **hub_settings)


def read_adapter(folder: Path, place: str | None = None) -> Adapter:
    """Read an adapter's folder.

    Args:
        place: what messages call it; None is the folder.

    Raises:
        UserError: a file is missing or damaged, or the adapter is of a kind that is not supported.
    """
    file = folder / "adapter_config.json"
    config = read_json(file)
    check_folder(folder)
    rank, scale = _check_config(config, file)
    weights = Weights.of(folder, "adapter_model")
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        layer, dot, part = name.removeprefix(PREFIX).rpartition(".lora_")
        part = part.removesuffix(".weight")
        if not dot or part not in ("A", "B") or tensor.ndim != 2:
            raise UserError(f"{weights.files[0]}: holds {name}, which is not a LoRA weight of a linear layer")
        layers.setdefault(layer, {})[part] = tensor.float()
    if not layers:
        raise UserError(f"{weights.files[0]}: holds no weights")
    for layer, parts in layers.items():
        if parts.keys() != {"A", "B"} or parts["A"].shape[0] != rank or parts["B"].shape[1] != rank:
            shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in sorted(parts.items()))
            raise UserError(
                f"{weights.files[0]}: {layer} has {shapes}; r {rank} asks for A [{rank}, in], B [out, {rank}]"
            )
    return Adapter(
        place=place or str(folder),
        scale=scale,
        layers={layer: (parts["A"], parts["B"]) for layer, parts in layers.items()},
        trained_on=read_json(folder / "trained_on.json") if (folder / "trained_on.json").exists() else {},
        conditions=_read_conditions(folder),
    )


def _check_config(config: dict[str, Any], file: Path) -> tuple[int, float]:
    """Rank and scale, where everything else is what plain LoRA has."""
    refuse_remote_code({name: value for name, value in config.items() if name not in IRRELEVANT}, file)
    if config.get("peft_type") != "LORA":
        raise UserError(f"{file}: peft_type is {config.get('peft_type')!r}; only LORA is supported")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise UserError(f"{file}: r is {rank!r}; it must be a whole number above 0")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise UserError(f"{file}: lora_alpha is {alpha!r}; it must be a number")
    allowed = IRRELEVANT | {"peft_type", "r", "lora_alpha", "use_rslora"}
    for name, value in config.items():
        if name not in allowed and value not in (None, False, "none", "no", [], {}):
            raise UserError(f"{file}: {name} is {value!r}, which is not supported; train the adapter without it")
    return rank, alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _read_conditions(folder: Path) -> Conditions | None:
    if not (folder / CONDITIONS).exists():
        return None
    weights = Weights.of(folder, CONDITIONS.removesuffix(".safetensors"))
    tensors = {name: tensor.float() for name, tensor in weights.items()}
    wanted = {"memory", "memory_keys", "texts"}
    if tensors.keys() != wanted or any(tensor.ndim != 2 for tensor in tensors.values()):
        raise UserError(f"{folder / CONDITIONS}: must hold {', '.join(sorted(wanted))}, each [number, dim]")
    if tensors["memory"].shape != tensors["memory_keys"].shape or len({x.shape[1] for x in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(tensors.items()))
        raise UserError(f"{folder / CONDITIONS}: {shapes} do not fit together")
    return Conditions(**tensors)


@torch.no_grad()
def apply_adapter(network: nn.Module, adapter: Adapter, strength: float = 1.0) -> None:
    """Add an adapter to the weights of a network, in place.

    Args:
        network: with the linear layers that the adapter names, in any dtype; sums are computed in float64.
        strength: factor of the adapter; 1 is as trained, negative values do the opposite.

    Raises:
        UserError: the strength is 0 or not finite, a layer is missing or has another shape, or a weight becomes
            infinite. The network is then unchanged.
    """
    check_strength(strength, adapter.place)
    modules = dict(network.named_modules())
    changed: list[tuple[Tensor, Tensor]] = []
    for name, (a, b) in adapter.layers.items():
        layer = modules.get(name)
        if not isinstance(layer, nn.Linear):
            raise UserError(
                f"{adapter.place}: adapts {name}, which is no linear layer of this model; it is for another"
            )
        if layer.weight.shape != (b.shape[0], a.shape[1]):
            raise UserError(
                f"{adapter.place}: {name} is {[b.shape[0], a.shape[1]]}, in this model {list(layer.weight.shape)}; "
                "the adapter is for another model"
            )
        update = (strength * adapter.scale) * (b.double() @ a.double())
        weight = (layer.weight.double().cpu() + update).to(layer.weight.dtype)
        if not weight.isfinite().all():
            raise UserError(f"{adapter.place}: at strength {strength:g}, weights of {name} become infinite; lower it")
        changed.append((layer.weight, weight))
    for weight, value in changed:
        weight.copy_(value)
