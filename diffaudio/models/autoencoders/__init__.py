"""Autoencoders: waveform <-> latents, one interface for all (see `base.py`)."""

from diffaudio.models.autoencoders.base import Autoencoder, TrainingPass
from diffaudio.models.autoencoders.loading import load_autoencoder, size_on_disk
from diffaudio.models.autoencoders.spectral import SpectralAutoencoder

__all__ = ["Autoencoder", "SpectralAutoencoder", "TrainingPass", "load_autoencoder", "size_on_disk"]
