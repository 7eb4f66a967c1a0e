"""LoRA adapters and models: whether one is for the other, and adding it.

An adapter changes the U-Net's weights. One that was trained here also brings what a retrieval bridge has to remember,
the pictures of the new sounds; without them, the new words would still be carried to pictures of the old ones.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffaudio.errors import UserError
from diffaudio.models.bridge.bridges import Bridge, RetrievalBridge
from diffaudio.models.bridge.folder import load_bridge
from diffaudio.models.lora import Adapter, Conditions, apply_adapter, find_adapter, read_adapter
from diffaudio.models.unet import UNet1D

__all__ = ["add_adapter", "describe_model", "remember", "unet_fingerprint"]

logger = logging.getLogger(__name__)


def add_adapter(parts: Mapping[str, Any], adapter: str, strength: float = 1.0, *, is_first: bool = True) -> None:
    """Add an adapter to a model, in place.

    Args:
        parts: of the model: unet, autoencoder, clip, bridge.
        adapter: folder or hub id.
        strength: factor of the change of the weights; 1 is as trained. What the bridge remembers does not depend on it.
        is_first: whether the U-Net is as it was loaded. If so, and the adapter was trained on other weights, a warning
            is logged.

    Raises:
        UserError: the adapter cannot be read, or is for another model; the model is then unchanged.
    """
    found = read_adapter(find_adapter(adapter), adapter)
    _check_fits(found, parts)
    wanted = found.trained_on.get("unet")
    if is_first and wanted is not None and wanted != unet_fingerprint(parts["unet"]):
        logger.warning("%s: was trained on other weights than this model's; it may do less, or something else", adapter)
    apply_adapter(parts["unet"], found, strength)
    if found.conditions is not None:
        remember(parts["bridge"], found.conditions)


def describe_model(unet: UNet1D, autoencoder: Any, clip: Any) -> dict[str, Any]:
    """What an adapter notes of the model it is trained on."""
    return {"autoencoder": autoencoder.name, "clip": clip.name, "unet": unet_fingerprint(unet)}


def unet_fingerprint(unet: nn.Module) -> str:
    """SHA-256 of the weights in half precision, as a model folder holds them, whatever their dtype in memory."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unet.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_fits(adapter: Adapter, parts: Mapping[str, Any]) -> None:
    for name in ("autoencoder", "clip"):
        wanted, own = adapter.trained_on.get(name), parts[name].name
        if wanted is not None and wanted != own:
            raise UserError(f"{adapter.place}: was trained with {name} '{wanted}', the model's is '{own}'")
    if adapter.conditions is not None:
        dim, own = adapter.conditions.memory.shape[1], parts["unet"].config["embedding_dim"]
        if dim != own:
            raise UserError(f"{adapter.place}: is for embeddings of {dim} values, the model's have {own}")


def _retrieval_bridges(own: Bridge) -> Iterator[RetrievalBridge]:
    """The model's own bridge and its alternatives, as far as they remember pictures."""
    for name, bridge in list(own.alternatives.items()):
        if not isinstance(bridge, Bridge):
            bridge = own.alternatives[name] = load_bridge(bridge)
        if isinstance(bridge, RetrievalBridge):
            yield bridge
    if isinstance(own, RetrievalBridge):
        yield own


def remember(own: Bridge, conditions: Conditions) -> None:
    """Add the pictures of new sounds to what a model's bridge and its alternatives remember, in place."""
    for bridge in _retrieval_bridges(own):
        bridge.memory = _extended(bridge.memory, conditions.memory)
        bridge.memory_keys = _extended(bridge.memory_keys, conditions.memory_keys)
        bridge.register_to_config(memory_size=len(bridge.memory))
        if bridge.known_texts is not None:
            bridge.known_texts = _extended(bridge.known_texts, conditions.texts)
            bridge.register_to_config(known_size=len(bridge.known_texts))


def _extended(rows: Tensor, more: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.cat([rows, more.to(rows)]), requires_grad=False)
