"""Clips -> latents and CLIP embeddings: what training reads, so that it needs neither sound nor pictures.

Every part of the clips becomes one part of latents. Running again does what is missing. Each clip is brought to
the same peak first: recordings differ in level by 40 dB for reasons that no picture shows.
"""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from diffaudio.audio import decode_flac, mix_channels, resample, scale_to_peak
from diffaudio.corpus import prepare, store

__all__ = ["encode"]

FORMAT, VERSION = "diffaudio-latents", 2


@torch.no_grad()
def encode(
    corpus: Path,
    out: Path,
    *,
    autoencoder: Any,
    clip: Any,
    device: str | torch.device = "cpu",
    batch_size: int = 8,
    peak: float = 0.7,
    progress: bool = True,
) -> dict[str, Any]:
    """Encode a corpus of clips; one begun in `out` is continued.

    Args:
        corpus: folder that `prepare` has finished.
        out: folder of the encoded corpus, made where it is missing.
        autoencoder: encodes the sound, resampled to its rate and mixed to its channels.
        clip: encodes the pictures.
        device: both are moved there.
        batch_size: clips of equal length, and pictures, that are encoded at once.
        peak: largest sample of each clip, to which it is scaled.
        progress: show a progress bar.

    Returns:
        The manifest of the encoded corpus.

    Raises:
        ValueError: `corpus` is no finished corpus of clips, or `out` holds something else, or latents made by
            another autoencoder, CLIP or peak.
    """
    clips_manifest = store.read_manifest(corpus, prepare.FORMAT, prepare.VERSION)
    if not clips_manifest["finished"]:
        raise ValueError(f"{corpus}: is not finished; run `diffaudio prepare` on it again first")
    autoencoder, clip = autoencoder.to(device).eval(), clip.to(device).eval()
    manifest = _begin(out, autoencoder, clip, peak)
    parts = store.part_files(corpus, "clips")
    with tqdm(total=clips_manifest["clips"], unit="clip", disable=not progress) as bar:
        for part in parts:
            target = out / part.name.replace("clips", "latents", 1)
            if target.exists():
                bar.update(store.count_rows(part)[0])
                continue
            rows = _encoded_rows(part, autoencoder, clip, device, batch_size, peak, bar)
            store.write_part(target, "latents", rows, {"clips": part.name})
    counts = [store.count_rows(part) for part in store.part_files(out, "latents")]
    totals = {"clips": sum(n for n, _ in counts), "seconds": round(sum(s for _, s in counts), 3), "finished": True}
    store.write_manifest(out, manifest | totals)
    return manifest | totals


def _begin(out: Path, autoencoder: Any, clip: Any, peak: float) -> dict[str, Any]:
    """Make the folder and its manifest, or see that the one there was made by the same models."""
    properties = ("name", "sample_rate", "audio_channels", "latent_channels", "latent_rate")
    made_by = {
        "autoencoder": {key: getattr(autoencoder, key) for key in properties} | {"weights": _fingerprint(autoencoder)},
        "clip": {"name": clip.name, "embedding_dim": clip.embedding_dim, "weights": _fingerprint(clip)},
        "settings": {"peak": peak},
    }
    if (out / "manifest.json").is_file():
        before = store.read_manifest(out, FORMAT, VERSION)
        for key, now in made_by.items():
            if before[key] != now:
                raise ValueError(
                    f"{out}: was encoded with {key} {before[key]}, now it is {now}; "
                    "use the same, or write to another folder"
                )
    else:
        store.make_folder(out)
    manifest = {"format": FORMAT, "version": VERSION, **made_by, "clips": 0, "seconds": 0.0, "finished": False}
    store.write_manifest(out, manifest)
    return manifest


def _fingerprint(model: nn.Module) -> str:
    """Tells models apart that have the same name, such as one trained again."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _encoded_rows(
    part: Path, autoencoder: Any, clip: Any, device: str | torch.device, batch_size: int, peak: float, bar: Any
) -> Iterator[dict[str, Any]]:
    for rows in store.read_groups(part):
        waveforms = [scale_to_peak(_waveform(row, autoencoder), peak) for row in rows]
        latents = _encode_sound(waveforms, autoencoder, device, batch_size)
        pictures = [Image.open(io.BytesIO(frame["image"])) for row in rows for frame in row["frames"]]
        batches = (pictures[first : first + batch_size] for first in range(0, len(pictures), batch_size))
        embeddings = torch.cat([clip.encode_image(batch).float().cpu() for batch in batches])
        by_clip = embeddings.split([len(row["frames"]) for row in rows])
        for row, latent, embedding in zip(rows, latents, by_clip, strict=True):
            yield {key: row.get(key) for key in ("id", "source", "start_s", "duration_s", "caption")} | {
                "copy": 0,
                "num_latent_frames": latent.shape[1],
                "latents": _half(latent).ravel(),
                "embeddings": list(_half(embedding)),
            }
            bar.update()


def _waveform(row: dict[str, Any], autoencoder: Any) -> Tensor:
    waveform, rate = decode_flac(row["audio"])
    return resample(mix_channels(waveform, autoencoder.audio_channels), rate, autoencoder.sample_rate)


def _encode_sound(
    waveforms: list[Tensor], autoencoder: Any, device: str | torch.device, batch_size: int
) -> list[Tensor]:
    """Encode in batches of equal length, so that no padding gets into the latents.

    Args:
        waveforms: [channels, samples] each.

    Returns:
        [latent_channels, frames] each, in the same order.
    """
    by_length: dict[int, list[int]] = {}
    for index, waveform in enumerate(waveforms):
        by_length.setdefault(waveform.shape[-1], []).append(index)
    latents: dict[int, Tensor] = {}
    for indices in by_length.values():
        for first in range(0, len(indices), batch_size):
            batch = indices[first : first + batch_size]
            encoded = autoencoder.encode(torch.stack([waveforms[i] for i in batch]).to(device))
            latents.update(zip(batch, encoded.float().cpu(), strict=True))
    return [latents[index] for index in range(len(waveforms))]


def _half(values: Tensor) -> np.ndarray:
    return values.to(torch.float16).numpy()
