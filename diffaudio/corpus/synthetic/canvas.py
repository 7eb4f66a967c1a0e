"""A scene (a sound and a function that draws it at any time) and the canvas it is drawn on."""

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

__all__ = ["Canvas", "Color", "Scene", "backdrop", "color", "mixed", "surroundings"]

SMOOTH = 2  # supersampling factor, for antialiasing

Color = tuple[int, int, int]
Points = Sequence[tuple[float, float]]


class Canvas:
    """A square image to draw on; x increases rightward, y downward, both from 0 to 1; lengths use the same unit."""

    def __init__(self, background: Image.Image) -> None:
        self._image = background.copy()
        self._draw = ImageDraw.Draw(self._image)
        self._side = background.width

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Color) -> None:
        """An ellipse around a point."""
        s = self._side
        self._draw.ellipse((s * (x - rx), s * (y - ry), s * (x + rx), s * (y + ry)), fill)

    def disc(self, x: float, y: float, radius: float, fill: Color) -> None:
        """A disc around a point."""
        self.ellipse(x, y, radius, radius, fill)

    def circle(self, x: float, y: float, rx: float, ry: float, stroke: Color, width: float) -> None:
        """The outline of an ellipse around a point."""
        s = self._side
        box = (s * (x - rx), s * (y - ry), s * (x + rx), s * (y + ry))
        self._draw.ellipse(box, outline=stroke, width=max(1, round(s * width)))

    def box(self, left: float, top: float, right: float, bottom: float, fill: Color) -> None:
        """A rectangle."""
        s = self._side
        self._draw.rectangle((s * left, s * top, s * right, s * bottom), fill)

    def shape(self, points: Points, fill: Color) -> None:
        """A polygon."""
        self._draw.polygon([(self._side * x, self._side * y) for x, y in points], fill)

    def line(self, points: Points, width: float, stroke: Color) -> None:
        """A line through points."""
        scaled = [(self._side * x, self._side * y) for x, y in points]
        self._draw.line(scaled, stroke, max(1, round(self._side * width)), joint="curve")

    def picture(self) -> Image.Image:
        """The drawn image at its final size."""
        return self._image.reduce(SMOOTH)


@dataclass(frozen=True)
class Scene:
    """A moving object and its sound.

    Attributes:
        sound: [samples] at `acoustics.SAMPLE_RATE`, mono, in arbitrary units.
        draw: draws the scene at a given time (seconds) on a canvas.
        x: position of the sound source, 0 (left) to 1 (right); one number, or one per sample.
        wall: colour of the background above the horizon.
        floor: colour below it.
        horizon: height of the line between them, from the top.
    """

    sound: np.ndarray
    draw: Callable[[Canvas, float], None]
    x: float | np.ndarray
    wall: Color
    floor: Color
    horizon: float


def color(rng: Generator, *, saturation: float = 0.8, value: float = 0.8) -> Color:
    """A colour of random hue."""
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def mixed(one: Color, other: Color, part: float) -> Color:
    """Linear blend of two colours, with weight `part` on the second."""
    red, green, blue = (round((1 - part) * a + part * b) for a, b in zip(one, other, strict=True))
    return red, green, blue


def surroundings(rng: Generator, horizon: float) -> dict[str, Any]:
    """Keyword arguments of `Scene` for a pale wall and a duller floor in random colours."""
    wall = color(rng, saturation=rng.uniform(0.05, 0.35), value=0.93)
    return {"wall": wall, "floor": color(rng, saturation=0.25, value=0.68), "horizon": horizon}


def backdrop(scene: Scene, rng: Generator, side: int) -> Image.Image:
    """The background of a scene: wall and floor, lit from above, with a little grain.

    Args:
        side: side length of the final images, in pixels.
    """
    y = np.arange(SMOOTH * side) / (SMOOTH * side)
    light = np.where(y < scene.horizon, 1.05 - 0.15 * y, 0.85 + 0.15 * y)
    rows = np.where(y[:, None] < scene.horizon, scene.wall, scene.floor) * light[:, None]
    grain = 3 * np.repeat(np.repeat(rng.standard_normal((side, side)), SMOOTH, axis=0), SMOOTH, axis=1)
    return Image.fromarray(np.clip(rows[:, None] + grain[..., None], 0, 255).astype(np.uint8))
