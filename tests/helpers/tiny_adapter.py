"""A LoRA adapter of random numbers, in peft's format, for `small_unet`, or for other layers."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

LAYERS = {"conv_in": (12, 16), "middle.1.qkv": (32, 96), "up_stages.0.0.film": (32, 32)}


def write_adapter(folder: Path, *, rank: int = 2, seed: int = 0, layers=LAYERS, **config) -> Path:
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, (size_in, size_out) in layers.items():
        weights[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, size_in, generator=generator)
        weights[f"base_model.model.{name}.lora_B.weight"] = torch.randn(size_out, rank, generator=generator)
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    written = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "bias": "none", "target_modules": [*layers]}
    (folder / "adapter_config.json").write_text(json.dumps(written | config))
    return folder
