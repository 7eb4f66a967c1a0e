"""Tiny random autoencoders in the formats of the libraries they come from, for tests.

folder = LIBRARY_FORMATS["oobleck"](tmp_path / "stable-audio")
autoencoder = load_autoencoder(folder)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderOobleck, MMAudioVAE, MMAudioVocoder
from torch import nn
from transformers import EncodecConfig, EncodecModel, SpeechT5HifiGan, SpeechT5HifiGanConfig

from diffaudio.models.autoencoders import SpectralAutoencoder

ENCODEC: dict[str, Any] = {
    "sampling_rate": 8000, "upsampling_ratios": [5, 4, 4], "num_filters": 4, "hidden_size": 8, "codebook_size": 16,
    "num_lstm_layers": 1, "target_bandwidths": [0.4, 0.8, 1.6],
}  # fmt: skip
STEREO: dict[str, Any] = {
    "audio_channels": 2, "normalize": True, "chunk_length_s": 0.3, "overlap": 0.01, "use_causal_conv": False,
    "norm_type": "time_group_norm",
}  # fmt: skip


def randomised(network: Any) -> Any:
    """Weights, codebooks and statistics that are neither zero nor alike, from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in sorted(nn.Module.state_dict(network).items()):
            if name.endswith(("embed", "data_mean")) or not tensor.any():
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return network.eval().requires_grad_(False)


def randomised_ends(autoencoder: SpectralAutoencoder) -> None:
    """Have the learned parts of a spectral autoencoder do something, which untrained they do not."""
    generator = torch.Generator().manual_seed(0)
    for part in (autoencoder.detail, autoencoder.vocoder):
        if part is not None:
            weight = part.network.end[-1].weight
            with torch.no_grad():
                weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))


def write_encodec(folder: Path, **settings: Any) -> Path:
    network = randomised(EncodecModel(EncodecConfig(**(ENCODEC | settings))))
    network.save_pretrained(folder)
    return folder


def write_encodec_stereo(folder: Path, **settings: Any) -> Path:
    return write_encodec(folder, **(STEREO | settings))


def write_mel_vae(folder: Path) -> Path:
    """As AudioLDM's pipeline lies on a disk, without what makes latents."""
    vae = AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=2, block_out_channels=(4, 4, 8), norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, scaling_factor=0.9,
    )  # fmt: skip
    vocoder = SpeechT5HifiGanConfig(
        model_in_dim=16, sampling_rate=16000, upsample_initial_channel=32, upsample_rates=[5, 4, 4, 2],
        upsample_kernel_sizes=[16, 8, 8, 4], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
        normalize_before=False, initializer_range=0.2,
    )  # fmt: skip
    randomised(vae).save_pretrained(folder / "vae")
    randomised(SpeechT5HifiGan(vocoder)).save_pretrained(folder / "vocoder")
    return folder


def write_mmaudio(folder: Path) -> Path:
    """As the sound part of Kandinsky 6 lies on a disk."""
    vae = MMAudioVAE(
        mel_bins=16, latent_channels=4, hidden_channels=8, channel_multipliers=(1, 2), layers_per_block=1,
        sample_rate=8000, n_fft=256, hop_length=64,
    )  # fmt: skip
    vocoder = MMAudioVocoder(
        num_mels=16, upsample_initial_channel=8, upsample_rates=(8, 8), upsample_kernel_sizes=(16, 16),
        resblock_kernel_sizes=(3,), resblock_dilation_sizes=((1, 3),),
    )  # fmt: skip
    randomised(vae).save_pretrained(folder / "audio_vae")
    randomised(vocoder).save_pretrained(folder / "vocoder")
    return folder


def write_oobleck(folder: Path) -> Path:
    """As Stable Audio's pipeline lies on a disk."""
    network = AutoencoderOobleck(
        encoder_hidden_size=16, downsampling_ratios=[2, 4, 8], channel_multiples=[1, 1, 2], decoder_channels=8,
        decoder_input_channels=8, sampling_rate=8000,
    )  # fmt: skip
    randomised(network).save_pretrained(folder / "vae")
    return folder


LIBRARY_FORMATS: dict[str, Callable[..., Path]] = {
    "encodec": write_encodec,
    "encodec_stereo": write_encodec_stereo,
    "mel_vae": write_mel_vae,
    "mmaudio": write_mmaudio,
    "oobleck": write_oobleck,
}
