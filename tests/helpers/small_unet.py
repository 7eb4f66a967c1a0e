"""A U-Net of a few thousand weights, for tests."""

import torch

from diffaudio.models.unet import UNet1D


def small_unet(seed: int = 0) -> UNet1D:
    """With random weights in all layers, the last ones too, so that everything shows in the output."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet1D(
            4, 6, channels=(16, 32), blocks_per_level=1, middle_blocks=1, attention_levels=(0,),
            attention_head_dim=8, condition_dim=32,
        )  # fmt: skip
        for parameter in unet.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return unet.eval()
