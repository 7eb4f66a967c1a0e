"""A small corpus of real mp4 files, made from formulas: shapes that move and the sounds they would make.

    python tests/synthetic.py FOLDER      # a dozen videos, to try the commands of the README on

The same arguments give the same pictures and the same samples.
"""

import argparse
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

__all__ = ["KINDS", "write_corpus", "write_video"]

SAMPLE_RATE = 44100
FRAME_RATE = 8
SIDE = 96  # pixels

Sound = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Picture = Callable[[ImageDraw.ImageDraw, float, np.random.Generator], None]


def bounce_sound(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    since = t % 0.5
    return np.sin(2 * np.pi * rng.uniform(70, 110) * since) * np.exp(-12 * since)


def bounce_picture(draw: ImageDraw.ImageDraw, t: float, rng: np.random.Generator) -> None:
    phase = (t % 0.5) / 0.5
    y = 80 - 60 * 4 * phase * (1 - phase)
    draw.ellipse((36, y - 12, 60, y + 12), fill="red")


def bell_sound(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    since, pitch = t % 1.0, rng.uniform(400, 700)
    partials = [(0.5, 1.0), (1.0, 1.0), (1.19, 0.8), (1.5, 0.5), (2.0, 0.6), (2.74, 0.3)]
    return sum(a * np.sin(2 * np.pi * pitch * f * since) * np.exp(-3 * f * since) for f, a in partials) / 3


def bell_picture(draw: ImageDraw.ImageDraw, t: float, rng: np.random.Generator) -> None:
    x = 48 + 16 * np.sin(2 * np.pi * t)
    draw.polygon([(x, 15), (x - 28, 80), (x + 28, 80)], fill="gold")


def engine_sound(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 0.6 * (2 * ((rng.uniform(25, 45) * t) % 1) - 1) + 0.1 * rng.standard_normal(len(t))


def engine_picture(draw: ImageDraw.ImageDraw, t: float, rng: np.random.Generator) -> None:
    draw.ellipse((18, 18, 78, 78), outline="black", width=6)
    x, y = 30 * np.cos(12 * t), 30 * np.sin(12 * t)
    draw.line((48 - x, 48 - y, 48 + x, 48 + y), fill="black", width=6)


def rain_sound(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    drops = rng.standard_normal(len(t)) * (rng.random(len(t)) < 0.002) * 4
    return 0.15 * rng.standard_normal(len(t)) + np.convolve(drops, np.exp(-np.arange(200) / 30), mode="same")


def rain_picture(draw: ImageDraw.ImageDraw, t: float, rng: np.random.Generator) -> None:
    for x, start in zip(rng.uniform(0, SIDE, 40), rng.uniform(0, SIDE, 40), strict=True):
        y = (start + 200 * t) % SIDE
        draw.line((x, y, x, y + 8), fill="blue", width=2)


def siren_sound(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    middle = rng.uniform(700, 900)
    return 0.5 * np.sin(2 * np.pi * middle * t - 150 * np.cos(2 * np.pi * t))


def siren_picture(draw: ImageDraw.ImageDraw, t: float, rng: np.random.Generator) -> None:
    on_left = t % 1.0 < 0.5
    draw.rectangle((8, 30, 44, 66), fill="red" if on_left else "darkred")
    draw.rectangle((52, 30, 88, 66), fill="navy" if on_left else "deepskyblue")


KINDS: dict[str, tuple[Picture, Sound]] = {
    "bounce": (bounce_picture, bounce_sound),
    "bell": (bell_picture, bell_sound),
    "engine": (engine_picture, engine_sound),
    "rain": (rain_picture, rain_sound),
    "siren": (siren_picture, siren_sound),
}


def write_video(path: Path, kind: str, *, duration_s: float = 2.0, seed: int = 0) -> None:
    """Write one H.264 + AAC mp4 of a kind; the seed varies pitch, background and noise."""
    picture, sound = KINDS[kind]
    background = tuple(np.random.default_rng(seed).integers(150, 256, size=3).tolist())
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FRAME_RATE, options={"threads": "1", "preset": "ultrafast"})
        video.width = video.height = SIDE
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for index in range(round(duration_s * FRAME_RATE)):
            image = Image.new("RGB", (SIDE, SIDE), background)
            picture(ImageDraw.Draw(image), index / FRAME_RATE, np.random.default_rng(seed))
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = index, Fraction(1, FRAME_RATE)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        t = np.arange(round(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
        samples = 0.5 * np.clip(sound(t, np.random.default_rng(seed)), -1, 1).astype(np.float32)
        chunk = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        chunk.sample_rate, chunk.pts, chunk.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
        container.mux(audio.encode(chunk))
        container.mux(audio.encode(None))


def write_corpus(folder: Path, *, videos: int = 12, duration_s: float = 2.0, seed: int = 0) -> list[Path]:
    """Write `videos` files into `folder`, the kinds in turn; their names tell nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:03}.mp4" for index in range(videos)]
    for index, path in enumerate(paths):
        write_video(path, list(KINDS)[index % len(KINDS)], duration_s=duration_s, seed=seed + index)
    return paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a small corpus of synthetic videos with sound.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--videos", type=int, default=12, help="how many (default: %(default)s)")
    parser.add_argument("--duration", type=float, default=2.0, help="seconds each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_corpus(options.folder, videos=options.videos, duration_s=options.duration, seed=options.seed)
