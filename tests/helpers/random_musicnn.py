"""musicnn with random weights, in the file format of its authors' variables, for tests."""

from pathlib import Path

import numpy as np


def variables(num_tags: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """Random variables of the published names and shapes, but for the number of tags."""
    draw = np.random.default_rng(seed)
    shapes = {
        "conv2d": (7, 38, 1, 204), "conv2d_1": (7, 67, 1, 204), "conv2d_2": (128, 1, 1, 51), "conv2d_3": (64, 1, 1, 51),
        "conv2d_4": (32, 1, 1, 51), "conv2d_5": (7, 561, 1, 64), "conv2d_6": (7, 64, 1, 64), "conv2d_7": (7, 64, 1, 64),
        "dense": (1506, 200), "dense_1": (200, num_tags),
    }  # fmt: skip
    found: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        fan_in = int(np.prod(shape[:-1]))
        found[f"{name}/kernel"] = draw.normal(size=shape).astype(np.float32) * (2 / fan_in) ** 0.5
        found[f"{name}/bias"] = draw.normal(size=shape[-1:]).astype(np.float32) * 0.1
    for index, size in enumerate((1, 204, 204, 51, 51, 51, 64, 64, 64, 1506, 200)):
        name = "batch_normalization" + (f"_{index}" if index else "")
        found[f"{name}/gamma"] = draw.uniform(0.5, 1.5, size).astype(np.float32)
        found[f"{name}/beta"] = draw.normal(size=size).astype(np.float32) * 0.1
        found[f"{name}/moving_mean"] = draw.normal(size=size).astype(np.float32) * 0.1
        found[f"{name}/moving_variance"] = draw.uniform(0.5, 1.5, size).astype(np.float32)
    return found


def write_musicnn(path: Path, num_tags: int = 50) -> Path:
    np.savez(path, **variables(num_tags))
    return path
