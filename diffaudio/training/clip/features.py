"""Features of a frozen image tower, computed once for several crops of each picture and stored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from diffaudio.atomic_io import atomic_file
from diffaudio.seeding import seeded_generator
from diffaudio.training.clip.captioned_images import Photograph, draw_crops

__all__ = ["FeatureSettings", "stored_features"]

BATCH = 64


class FeatureSettings(Protocol):
    """The training settings that determine the features."""

    crop_size: int
    min_crop: float
    projection_views: int
    seed: int


@torch.no_grad()
def stored_features(
    trunk: nn.Module,
    photographs: Sequence[Photograph],
    settings: FeatureSettings,
    normalisation: tuple[Tensor, Tensor],
    folder: Path,
    accelerator: Any,
) -> Tensor:
    """The trunk's features of `projection_views` crops of each picture, [views, pictures, features] in half precision.

    Each process computes its share of the views and writes each to a file in `folder`; views that lie there already
    are read.

    Args:
        normalisation: mean and std of the pixels, [3, 1, 1] each.
    """
    mean, std = normalisation
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"view_{view:03d}.safetensors" for view in range(settings.projection_views)]
    for view, path in enumerate(paths):
        if view % accelerator.num_processes != accelerator.process_index or path.is_file():
            continue
        batches = []
        for start in tqdm(range(0, len(photographs), BATCH), desc=path.stem, leave=False):
            generator = seeded_generator(settings.seed, "view", view, start)
            pictures = [photograph.open() for photograph in photographs[start : start + BATCH]]
            pixels = (draw_crops(pictures, settings.crop_size, settings.min_crop, generator) - mean) / std
            with accelerator.autocast():
                features = trunk(pixels.to(accelerator.device).contiguous(memory_format=torch.channels_last))
            batches.append(features.half().cpu())
        with atomic_file(path) as temporary:
            save_file({"features": torch.cat(batches)}, temporary)
    accelerator.wait_for_everyone()
    return torch.stack([load_file(path)["features"] for path in paths])
