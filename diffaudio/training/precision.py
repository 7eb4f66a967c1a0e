"""Which precision a device trains in."""

import torch

from diffaudio.errors import UserError

__all__ = ["resolve_precision"]


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turn 'auto' into 'bf16' where the hardware multiplies it, else into 'no' (float32); other values are returned.

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
