"""A tiny spectral autoencoder, and tones to fit it to."""

import torch

from diffaudio.models.autoencoders import SpectralAutoencoder

RATE = 8000


def tiny(**settings) -> SpectralAutoencoder:
    given = {"n_fft": 256, "hop_length": 80, "num_mels": 32, "patch_steps": 4, "latent_channels": 32} | settings
    return SpectralAutoencoder(RATE, **given)


def sounds(number: int = 4, duration_s: float = 0.8) -> torch.Tensor:
    """[number, 1, samples]: tones that swell and fade over a little noise"""
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(round(duration_s * RATE)) / RATE
    pitches = 200 + 300 * torch.arange(number)[:, None, None]
    tones = 0.4 * torch.sin(2 * torch.pi * pitches * t) * (0.6 + 0.4 * torch.sin(2 * torch.pi * 3 * t))
    return tones + 0.01 * torch.randn(tones.shape, generator=generator)


def fitted(waveforms: torch.Tensor, **settings) -> tuple[SpectralAutoencoder, torch.Tensor]:
    autoencoder = tiny(**settings)
    patches = autoencoder.patches(waveforms).transpose(0, 1).flatten(1).double()
    return autoencoder, autoencoder.fit(patches.shape[1], patches.sum(dim=1), patches @ patches.T)
