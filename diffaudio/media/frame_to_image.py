"""A decoded video frame -> a picture as a player shows it: square pixels, upright, RGB."""

import math
import threading
from fractions import Fraction
from typing import Any

import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter
from PIL import Image

__all__ = ["to_image"]

_THREAD = threading.local()

# What makes a picture upright, by the signs (a, b, c, d) of the display matrix: x' = a x + c y, y' = b x + d y
TRANSPOSES = {
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


def to_image(frame: Any, aspect: Fraction | None, max_side: int | None) -> Image.Image:
    """Scale to square pixels and at most `max_side`, then turn upright as the display matrix says.

    Args:
        aspect: how much wider than high a pixel is; None is square.
    """
    width, height = max(1, round(frame.width * float(aspect or 1))), frame.height
    scale = min(1.0, (max_side or max(width, height)) / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    form = {"format": "rgb24", "interpolation": "BICUBIC", "threads": 1}
    rgb = _reformatter().reformat(frame, width=size[0], height=size[1], **form)
    plane = rgb.planes[0]
    image = Image.frombytes("RGB", size, memoryview(plane), "raw", "RGB", plane.line_size, 1)
    return _upright(image, frame)


def _upright(image: Image.Image, frame: Any) -> Image.Image:
    side_data = frame.side_data.get(Type.DISPLAYMATRIX)
    if side_data is None:
        return image
    a, b, _, c, d, *_ = np.frombuffer(side_data, np.int32).tolist()
    largest = max(abs(value) for value in (a, b, c, d))
    if largest == 0:
        return image
    signs = tuple(round(value / largest) for value in (a, b, c, d))
    if all(abs(value / largest - sign) < 0.02 for value, sign in zip((a, b, c, d), signs, strict=True)):
        transpose = TRANSPOSES.get(signs)
        return image.transpose(transpose) if transpose is not None else image
    if a * d - b * c < 0:  # mirrored, then turned by another angle
        image, a, b = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), -a, -b
    return image.rotate(-math.degrees(math.atan2(b, a)), expand=True)


def _reformatter() -> VideoReformatter:
    """This thread's: a new one for each file would cost more than what it does."""
    if not hasattr(_THREAD, "reformatter"):
        _THREAD.reformatter = VideoReformatter()
    return _THREAD.reformatter
