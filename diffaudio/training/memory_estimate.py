"""What training a U-Net takes, computed without its weights: on the meta device, where tensors have only shapes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffaudio.models.unet import UNet1D

__all__ = ["TrainingEstimate", "estimate_training"]


@dataclass(frozen=True)
class TrainingEstimate:
    """Memory and work of a training step, of one device.

    Attributes:
        num_parameters: of the U-Net.
        fixed_bytes: weights, gradients, both moments of AdamW and averages in float32, and in half precision the copy
            of the weights that autocast makes.
        activation_bytes: what the forward pass keeps for the backward pass.
        flops: multiplications and additions of a step, forward and backward.
    """

    num_parameters: int
    fixed_bytes: int
    activation_bytes: int
    flops: float

    @property
    def total_bytes(self) -> int:
        """Without buffers of libraries, and what the allocator wastes: about a tenth more on GPUs."""
        return self.fixed_bytes + self.activation_bytes


def estimate_training(
    settings: Mapping[str, Any],
    *,
    batch_size: int,
    num_frames: int,
    averages: int = 1,
    half_precision: bool = False,
    gradient_checkpointing: bool = False,
) -> TrainingEstimate:
    """Compute what a training step takes.

    Args:
        settings: arguments of `UNet1D`.
        batch_size: items that a device computes at once: of one of its micro-batches.
        num_frames: latent frames of an item.
        averages: how many averages of the weights are kept, that of the model included.
        half_precision: whether autocast computes in bf16 or fp16.
        gradient_checkpointing: whether activations are computed anew in the backward pass.
    """
    with torch.device("meta"):
        unet = UNet1D(**settings).train()
        if half_precision:
            nn.Module.to(unet, torch.bfloat16)
        shape = (batch_size, unet.config["in_channels"], num_frames)
        latents, timestep = torch.zeros(shape), torch.zeros(batch_size)
        embedding = torch.zeros(batch_size, unet.config["embedding_dim"])
    weights = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}
    kept: dict[int, dict[int, Tensor]] = {0: {}}  # by block, from 1 on, and 0 for what lies between them
    inputs: list[int] = []
    block = 0

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[block][tensor.untyped_storage()._cdata] = tensor
        return tensor

    def enter(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        nonlocal block
        block = len(kept)
        kept[block] = {}
        inputs.append(arguments[0].nbytes)

    def leave(*_: object) -> None:
        nonlocal block
        block = 0

    for stage in (*unet.down_stages, unet.middle, *unet.up_stages):
        for module in stage.children():
            module.register_forward_pre_hook(enter)
            module.register_forward_hook(leave)
    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        unet(latents, timestep, embedding)
    between, *of_blocks = (sum(x.untyped_storage().nbytes() for x in of.values()) for of in kept.values())
    activations = between + (sum(inputs) + max(of_blocks) if gradient_checkpointing else sum(of_blocks))
    num_parameters = sum(parameter.numel() for parameter in unet.parameters())
    passes = 4 if gradient_checkpointing else 3  # the backward pass is twice the forward pass
    return TrainingEstimate(
        num_parameters=num_parameters,
        fixed_bytes=num_parameters * (4 * (4 + averages) + 2 * half_precision),
        activation_bytes=activations,
        flops=passes * counter.get_total_flops(),
    )
