"""Models without weights worth the name, and corpora without videos, for tests of what stands around them."""

import io
from pathlib import Path

import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor, nn

from diffaudio.corpus import store
from diffaudio.media.audio import encode_flac


class FakeAutoencoder(nn.Module):
    """Latents are the samples themselves: frame f, channel c is sample 100 f + c."""

    name, sample_rate, audio_channels, latent_channels, latent_rate = "fake", 8000, 1, 100, 80.0

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.batches: list[tuple[int, ...]] = []

    def encode(self, waveform: Tensor) -> Tensor:
        self.batches.append(tuple(waveform.shape))
        padded = nn.functional.pad(waveform, (0, -waveform.shape[-1] % 100))
        return self.gain * padded.view(len(waveform), -1, 100).transpose(1, 2)


class FakeClip(nn.Module):
    """The embedding of a picture is the direction of its mean colour."""

    name, embedding_dim = "colours", 3

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.tensor(1))
        self.batches: list[int] = []

    def encode_image(self, pictures: list[Image.Image]) -> Tensor:
        return self.encode_pixels(self.preprocess(pictures))

    def preprocess(self, pictures: list[Image.Image]) -> Tensor:
        colours = [picture.convert("RGB").resize((1, 1)).getpixel((0, 0)) for picture in pictures]
        return torch.tensor(colours).float()

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        self.batches.append(len(pixels))
        return nn.functional.normalize(pixels, dim=-1)


def write_clips(
    folder: Path,
    waveforms: list[Tensor],
    colours: list[list[tuple[int, int, int]]],
    *,
    sample_rate: int = 8000,
    clips_per_part: int = 2,
    finished: bool = True,
) -> Path:
    """Write a corpus of clips: waveforms [channels, samples], and for each the colours of its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "id": f"clip{index}",
            "source": f"{index}.mp4",
            "start_s": 0.0,
            "duration_s": waveform.shape[1] / sample_rate,
            "sample_rate": sample_rate,
            "audio": encode_flac(waveform, sample_rate),
            "frames": [{"time_s": float(i), "image": picture(colour)} for i, colour in enumerate(clip_colours)],
        }
        for index, (waveform, clip_colours) in enumerate(zip(waveforms, colours, strict=True))
    ]
    for part, first in enumerate(range(0, len(rows), clips_per_part)):
        table = pa.Table.from_pylist(rows[first : first + clips_per_part], schema=store.CLIP_SCHEMA)
        store.write_tables(store.part_path(folder, "clips", part), [table], {"sources": []})
    seconds = sum(row["duration_s"] for row in rows)
    head = {"format": "diffaudio-clips", "version": 1, "settings": {}, "clips": len(rows), "seconds": seconds}
    store.write_manifest(folder, head | {"dropped": 0, "finished": finished})
    return folder


def picture(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(file, "JPEG", quality=95)
    return file.getvalue()
