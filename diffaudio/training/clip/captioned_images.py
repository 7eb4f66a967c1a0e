"""Captioned photographs: Parquet files read, a part held out by source, training crops.

A caption is a string; a *caption set* is the tuple of all captions of a picture ("a dog", "a dog barking", "a puppy").
"""

import hashlib
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from diffaudio.errors import UserError

__all__ = ["Photograph", "draw_crops", "hold_out", "load_photographs", "sampling_weights"]

SMALL_SOURCE = 20  # a web site's few pictures; such a source is held out as a whole or not at all


@dataclass(frozen=True)
class Photograph:
    """One row: the encoded picture, its caption set, and where it came from."""

    data: bytes
    captions: tuple[str, ...]
    source: str

    def open(self) -> Image.Image:
        return Image.open(io.BytesIO(self.data)).convert("RGB")


def load_photographs(folder: Path) -> list[Photograph]:
    """All rows of a folder's Parquet files, in the order of the files' names.

    Raises:
        ValueError: there is no Parquet file, or one lacks a column.
    """
    photographs = []
    for path in sorted(folder.glob("*.parquet")):
        try:
            rows = pq.read_table(path).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path}: cannot be read as Parquet: {error}") from None
        for row in rows:
            if not row.keys() >= {"image", "captions"}:
                raise UserError(f"{path}: columns are {', '.join(row)}; expected 'image' and 'captions'")
            photographs.append(Photograph(row["image"], tuple(row["captions"]), row.get("source") or ""))
    if not photographs:
        raise UserError(f"{folder}: no Parquet file with pictures; expected columns 'image' and 'captions'")
    return photographs


def hold_out(
    photographs: Sequence[Photograph], *, one_source_in: int, one_picture_in: int, general_source: str | None
) -> tuple[list[int], list[int], list[int]]:
    """Split pictures into training, held-out, and general held-out ones; a function of the pictures alone.

    A source with at most `SMALL_SOURCE` pictures goes to one side as a whole: pictures of one web site resemble each
    other. Of larger ones single pictures are held out.

    Args:
        one_source_in, one_picture_in: how many are held out, one in so many; 0 holds none out.
        general_source: the source whose pictures with a single caption are all held out, to measure what the model
            still knows beyond what it was trained for.

    Returns:
        Indices of training pictures, of held-out ones, and of those of `general_source`.
    """
    sizes = Counter(photograph.source for photograph in photographs)
    training, held_out, general = [], [], []
    for index, photograph in enumerate(photographs):
        small = sizes[photograph.source] <= SMALL_SOURCE
        key, one_in = (photograph.source.encode(), one_source_in) if small else (photograph.data, one_picture_in)
        if general_source is not None and photograph.source == general_source and len(photograph.captions) == 1:
            general.append(index)
        elif one_in and int.from_bytes(hashlib.sha256(key).digest()[:4], "big") % one_in == 0:
            held_out.append(index)
        else:
            training.append(index)
    return training, held_out, general


def sampling_weights(caption_sets: Sequence[tuple[str, ...]], sounding_weight: float) -> Tensor:
    """How often each picture is drawn, [pictures]: a caption set of n pictures in proportion to sqrt(n).

    Args:
        sounding_weight: factor for caption sets with several captions; in the image set those are the ones that also
            say what is heard.
    """
    sizes = Counter(caption_sets)
    return torch.tensor([sizes[names] ** -0.5 * (sounding_weight if len(names) > 1 else 1.0) for names in caption_sets])


def draw_crops(pictures: Sequence[Image.Image], size: int, min_area: float, generator: torch.Generator) -> Tensor:
    """Training crops: a random part of each picture, mirrored in half the cases, its colours changed a little.

    Args:
        pictures: RGB pictures of any sizes.
        size: pixels a side.
        min_area: smallest share of the picture's area to show; aspect ratios run from 3/4 to 4/3.

    Returns:
        [pictures, 3, size, size] in [0, 1].
    """
    draws = torch.rand(len(pictures), 8, generator=generator, dtype=torch.float64).tolist()
    crops = torch.stack([_crop(picture, size, min_area, *u[:5]) for picture, u in zip(pictures, draws, strict=True)])
    u = torch.tensor([row[5:] for row in draws]).float().view(-1, 3, 1, 1, 1)
    brightness, contrast, saturation = (0.7 + 0.6 * u).unbind(dim=1)
    crops = crops * brightness
    mean = crops.mean(dim=(1, 2, 3), keepdim=True)
    crops = mean + contrast * (crops - mean)
    grey = crops.mean(dim=1, keepdim=True)
    return (grey + saturation * (crops - grey)).clamp(0, 1)


def _crop(
    picture: Image.Image, size: int, min_area: float, area: float, aspect: float, x: float, y: float, mirror: float
) -> Tensor:
    """Each of the last five is uniform in [0, 1]."""
    side = math.sqrt((min_area + (1 - min_area) * area) * picture.width * picture.height)
    stretch = math.exp((aspect - 0.5) * math.log(4 / 3))
    width, height = min(picture.width, side * stretch), min(picture.height, side / stretch)
    left, top = x * (picture.width - width), y * (picture.height - height)
    box = (left, top, left + width, top + height)
    crop = picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
    if mirror < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(crop)).permute(2, 0, 1).float() / 255
