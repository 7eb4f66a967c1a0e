"""An encoded corpus for the tiny model, whose second clip has an augmented copy."""

from pathlib import Path
from typing import Any

import torch

from diffaudio.corpus import latent_shards, store

CAPTIONS = "file,label,other\n0.mp4,a dog,x\n1.mp4,rain,y\n1.mp4,a roof,z\n2.mp4,the sound,w\n"


def write_encoded_corpus(folder: Path, *, embeddings: torch.Tensor | None = None) -> Path:
    """Write the corpus, and beside it labels.csv with captions of its first three clips.

    Args:
        embeddings: [clips, 16], of the pictures of each clip; None: three clips, the same values everywhere.
    """
    rows, clips = [], 3 if embeddings is None else len(embeddings)
    for number, copy in ((0, 0), (1, 0), (1, 1), *((number, 0) for number in range(2, clips))):
        row: dict[str, Any] = {"id": f"{number}", "source": f"videos/{number}.mp4", "start_s": 0.0, "duration_s": 1.0}
        row |= {"caption": f"caption {number}", "copy": copy, "num_latent_frames": 9, "num_pictures": 2}
        picture = [0.25] * 16 if embeddings is None else embeddings[number].tolist()
        row |= {"latents": [0.5] * 72, "embeddings": [picture] * 2}
        rows.append(row)
    folder.mkdir(parents=True)
    latent_shards.write_part(store.part_path(folder, "latents", 0), rows, {})
    autoencoder = {"name": "tiny", "sample_rate": 8000, "audio_channels": 1, "latent_channels": 8, "latent_rate": 25}
    manifest = {"format": "diffaudio-latents", "version": 3, "clip": {"name": "tiny", "embedding_dim": 16}}
    manifest |= {"autoencoder": autoencoder, "clips": clips, "seconds": float(clips), "finished": True}
    store.write_manifest(folder, manifest)
    (folder.parent / "labels.csv").write_text(CAPTIONS)
    return folder
