"""Digests of a network's weights, which tell apart models of the same name, such as one that was trained again."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["describe_weights", "has_same_weights"]


def describe_weights(model: nn.Module) -> dict[str, str]:
    """For a corpus' manifest: digests of the weights as they are, and as a checkpoint in half precision holds them."""
    return {"weights": _digest(model), "half_weights": _digest(model, torch.float16)}


def has_same_weights(described: Mapping[str, Any], model: nn.Module) -> bool:
    """Whether a manifest describes the weights of a model, possibly rounded to half precision since.

    A manifest of an older version cannot tell rounded weights from others, so they count as the same.
    """
    if "half_weights" not in described:
        return True
    return described["half_weights"] == _digest(model, torch.float16)


def _digest(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu()
        tensor = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
