"""An encoded corpus as the tiny model of `tiny_model.py` would have made it."""

from pathlib import Path

import torch

from diffaudio.corpus import latent_shards, store
from diffaudio.models.autoencoders import load_autoencoder


def write_latents(folder: Path, model: Path, *, clips: int = 3, **autoencoder: str) -> Path:
    """An encoded corpus of smooth random latents, as the tiny model's encoders would have made it."""
    made_by = load_autoencoder(model / "autoencoder")
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(clips):
        frames = 15 + 20 * index
        latents = torch.randn(made_by.latent_channels, frames, generator=generator).cumsum(1) / frames**0.5
        embeddings = torch.nn.functional.normalize(torch.randn(2, 16, generator=generator), dim=1)
        row = {"id": str(index), "source": f"{index}.mp4", "start_s": 0.0, "duration_s": frames / made_by.latent_rate}
        row |= {"copy": 0, "num_latent_frames": frames, "num_pictures": 2}
        row |= {"latents": latents.flatten().half().tolist()}
        rows.append(row | {"embeddings": embeddings.half().tolist()})
    folder.mkdir()
    latent_shards.write_part(store.part_path(folder, "latents", 0), rows, {})
    names = ("name", "sample_rate", "audio_channels", "latent_channels", "latent_rate")
    manifest = {"format": "diffaudio-latents", "version": 3, "clip": {"name": "tiny", "embedding_dim": 16}}
    manifest |= {"autoencoder": {name: getattr(made_by, name) for name in names} | autoencoder}
    store.write_manifest(folder, manifest | {"clips": clips, "seconds": 1.0, "finished": True})
    return folder
