"""Training a LoRA adapter on a U-Net (Hu et al. 2021, arXiv:2106.09685) with peft, and saving it.

The layers' own weights stay as they are; what is trained beside each of them is A and B, of `diffaudio.models.lora`.
Convolutions over frames are linear layers on three frames each, and are adapted as such.
"""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diffaudio.atomic_io import atomic_folder
from diffaudio.config import Count, Positive, Share
from diffaudio.errors import UserError
from diffaudio.models.lora import CONDITIONS, PREFIX, Conditions
from diffaudio.models.unet import UNet1D

__all__ = ["LoraSettings", "add_lora", "save_lora", "without_lora"]

Layers = Literal["attention", "convolutions", "conditioning", "resampling"]

# Layers of the U-Net by what they do: the last part of their names.
LAYERS: dict[str, Collection[str]] = {
    "attention": ("qkv", "out"),
    "convolutions": ("conv1", "conv2", "shortcut", "conv_in", "conv_out"),
    "conditioning": ("film", "linear_1", "linear_2"),
    "resampling": ("downsamplers", "upsamplers"),  # lists, whose items are the layers
}


@dataclass
class LoraSettings:
    """A low-rank adapter that is trained in place of the U-Net's own weights.

    Attributes:
        rank: r; the adapter grows with it.
        alpha: the adapter is scaled by alpha / rank; None is the rank.
        dropout: of the adapter's input.
        layers: which layers are adapted.
        words: share of the new sounds that are conditioned on their words, as a prompt would be, instead of a picture.
        preserve: share of each batch on which the adapted network is kept at what it predicted before, for other
            conditions than those trained on; 0 lets the adapter change everything.
        preserve_sounds: how many sounds of the model itself, generated before the first step, are used for that.
    """

    rank: Count = 16
    alpha: Positive | None = None
    dropout: Share = 0.0
    layers: tuple[Layers, ...] = ("attention", "convolutions", "conditioning")
    words: Share = 0.5
    preserve: Share = 0.5
    preserve_sounds: Count = 32


def add_lora(unet: UNet1D, settings: LoraSettings, seed: int) -> list[str]:
    """Add an untrained adapter to a U-Net, in place; only its weights require gradients. The output stays the same.

    Args:
        seed: of the initial A; B is zero.

    Returns:
        The names of the adapted layers.

    Raises:
        UserError: the package peft is not installed, no layers are chosen, or alpha and rank do not fit.
    """
    peft = _import_peft()
    if not settings.layers:
        raise UserError(f"lora.layers is empty; choose from {', '.join(LAYERS)}")
    targets = list(_targets(unet, settings.layers))
    alpha = settings.rank if settings.alpha is None else settings.alpha
    config = peft.LoraConfig(r=settings.rank, lora_alpha=alpha, lora_dropout=settings.dropout, target_modules=targets)
    config._register_custom_module({type(unet.conv_in): _lora_convolution()})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, unet)
    return targets


def _import_peft() -> Any:
    try:
        import peft
    except ImportError:
        raise UserError(
            "training a LoRA adapter needs the package peft, which is not installed; pip install 'diffaudio[lora]'"
        ) from None
    return peft


def _targets(unet: nn.Module, groups: Collection[str]) -> Iterator[str]:
    ends = {end for group in groups for end in LAYERS[group]}
    for name, module in unet.named_modules():
        parts = [part for part in name.split(".") if not part.isdigit()]
        if isinstance(module, nn.Linear) and parts[-1] in ends:
            yield name


def _lora_convolution() -> type:
    """peft's adapter of a linear layer, which here sees the three frames that the convolution sees."""
    from peft.tuners.lora import Linear

    class LoraConvolution(Linear):
        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            base: Any = self.base_layer
            result = base(x)
            if self.disable_adapters:
                return result
            windows = base.windows(x)
            for name in self.active_adapters:
                a, b = self.lora_A[name], self.lora_B[name]
                result = result + b(a(self.lora_dropout[name](windows))) * self.scaling[name]
            return result

    return LoraConvolution


@contextmanager
def without_lora(unet: nn.Module) -> Iterator[None]:
    """While the block runs, an adapted U-Net predicts what it did before it was adapted."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [module for module in unet.modules() if isinstance(module, BaseTunerLayer)]
    try:
        for layer in layers:
            layer._disable_adapters = True  # peft's own switch also turns gradients on and off, layer by layer
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def save_lora(folder: Path, unet: UNet1D, *, trained_on: dict[str, Any], conditions: Conditions | None = None) -> None:
    """Write the adapter of a U-Net atomically, in peft's format; `diffaudio.models.lora` lists the files.

    Args:
        unet: that `add_lora` adapted.
        trained_on: what identifies the model, for messages.
        conditions: of the sounds it was trained on.
    """
    from peft import get_peft_model_state_dict

    config = unet.peft_config["default"]
    weights = {f"{PREFIX}{name}": x.detach().cpu().contiguous() for name, x in get_peft_model_state_dict(unet).items()}
    written = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": None, "inference_mode": True, "bias": "none",
        "r": config.r, "lora_alpha": config.lora_alpha, "lora_dropout": config.lora_dropout,
        "target_modules": sorted(config.target_modules),
    }  # fmt: skip
    with atomic_folder(folder) as temporary:
        save_file(weights, temporary / "adapter_model.safetensors")
        (temporary / "adapter_config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        (temporary / "trained_on.json").write_text(json.dumps(trained_on, indent=2) + "\n", encoding="utf-8")
        if conditions is not None:
            parts = {name: getattr(conditions, name) for name in ("memory", "memory_keys", "texts")}
            save_file({name: x.detach().cpu().half().contiguous() for name, x in parts.items()}, temporary / CONDITIONS)
