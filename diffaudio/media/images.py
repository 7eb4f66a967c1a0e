"""Images and videos as queries: files, PIL images, arrays and tensors become upright RGB images.

    still       an image file, a PIL image, an array [height, width, 3], [height, width, 4] or [height, width], or a
                tensor [3, height, width], as in diffusers
    animation   GIF, WebP, PNG or AVIF with several frames, of which some are used, evenly spaced in time

Files are decoded in a child process. Values are 0 to 255 (integers) or 0 to 1 (floating point).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from diffaudio.errors import UserError
from diffaudio.media.container import MediaError, check_is_file, open_media
from diffaudio.media.subprocess_decoding import decode
from diffaudio.media.video_frames import check_has_video, read_frames, video_duration_s

__all__ = ["Picture", "Video", "decode_picture", "decode_video", "read_image", "read_video"]

Picture = Image.Image | np.ndarray | str | Path | Any  # Any: a torch.Tensor, which is not loaded here
Video = Any  # a file, or a sequence of stills

NUM_FRAMES = 8  # frames used of a video or an animation
MAX_PIXELS = 250_000_000  # maximum size of an image; photographs have up to 200 million
MAX_SIDE = 4096  # larger images are reduced; no image encoder needs more
ANIMATIONS = ("GIF", "WEBP", "PNG", "AVIF")
FORMATS = (
    *ANIMATIONS,
    "JPEG",
    "BMP",
    "TIFF",
    "PPM",
    "JPEG2000",
    "ICO",
    "TGA",
)  # no decoder that runs a program


def read_image(image: Picture) -> list[Image.Image]:
    """A still as one image, an animation as up to 8, all RGB and upright.

    Args:
        image: a still or an animation, see the module docstring.

    Raises:
        UserError: it is not an image, or too large; a file that is missing or damaged (`MediaError`).
    """
    if isinstance(image, str | Path):
        return _images(decode("picture", Path(image), count=NUM_FRAMES))
    if isinstance(image, Image.Image):
        return _frames_of(image, NUM_FRAMES, "the picture")
    return [_from_array(image, "the picture")]


def read_video(video: Video) -> list[Image.Image]:
    """The given frames, or 8 evenly spaced frames of a video file or an animation.

    Args:
        video: a file; a sequence of stills; an array [frames, height, width, 3] or a tensor [frames, 3, height, width].

    Raises:
        UserError: there are no frames, or the file is missing, damaged or has no video track (`MediaError`).
    """
    if isinstance(video, str | Path):
        return _images(decode("video", Path(video), count=NUM_FRAMES))
    if isinstance(video, Image.Image):
        return _frames_of(video, NUM_FRAMES, "the video")
    if _is_array(video) and video.ndim != 4:
        raise UserError(f"the video has the shape {list(video.shape)}; expected {_expected(video, 'frames, ')}")
    if not _is_array(video) and not isinstance(video, Sequence):
        raise UserError(f"the video is a {type(video).__name__}; give a file, a list of frames, an array or a tensor")
    if len(video) == 0:
        raise UserError("the video has no frames")
    return [frame for number, each in enumerate(video) for frame in _frame(each, f"frame {number} of the video")]


def decode_picture(path: Path, count: int) -> list[Image.Image]:
    """The image in a file, or `count` frames of an animation, decoded in this process.

    Raises:
        MediaError: the file is missing, not an image, damaged or too large.
    """
    path = check_is_file(path)
    try:
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as picture:
            _check_size(picture, str(path))
            picture.draft("RGB", (MAX_SIDE, MAX_SIDE))  # only JPEG can be decoded at a reduced size
            return _frames_of(picture, count, str(path))
    except (MediaError, MemoryError):
        raise
    except Exception as error:  # Pillow does not document the errors of its decoders
        what = "is no picture" if isinstance(error, Image.UnidentifiedImageError) else "is damaged"
        detail = "" if isinstance(error, Image.UnidentifiedImageError) else f" ({error or type(error).__name__})"
        raise MediaError(f"{path}: cannot be read as a picture: it {what}{detail}") from error


def decode_video(path: Path, count: int) -> list[Image.Image]:
    """`count` evenly spaced frames of a video file or an animation, decoded in this process.

    Raises:
        MediaError: the file is missing, damaged or has no video track.
    """
    path = check_is_file(path)
    if _is_animation(path):
        return decode_picture(path, count)
    with open_media(path) as media:
        check_has_video(media, path)
        duration_s = media.info.video_duration_s if media.is_indexed else None
    found = read_frames(path, _spread(duration_s, count)) if duration_s else []
    if not duration_s or not found or found[-1][0] < duration_s * (1 - 2 / count):  # none, or a wrong one
        found = read_frames(path, _spread(video_duration_s(path), count))
    if not found:
        raise MediaError(f"{path}: no picture decodes")
    return [picture for _, picture in found]


def _spread(duration_s: float, count: int) -> list[float]:
    return [(index + 0.5) / count * duration_s for index in range(count)]


def _images(replies: Any) -> list[Image.Image]:
    return [Image.fromarray(array) for _, (array,) in replies]


def _is_animation(path: Path) -> bool:
    """Whether Pillow rather than FFmpeg reads this file."""
    with path.open("rb") as file:
        head = file.read(16)
    is_riff = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return (
        is_riff or head[:6] in (b"GIF87a", b"GIF89a") or head[:8] == b"\x89PNG\r\n\x1a\n" or head[4:12] == b"ftypavis"
    )


def _check_size(picture: Image.Image, name: str) -> None:
    if picture.width * picture.height > MAX_PIXELS:
        raise MediaError(
            f"{name}: is a picture of {picture.width} x {picture.height} pixels; at most {MAX_PIXELS // 10**6} million "
            "are read; make it smaller"
        )


def _frames_of(picture: Image.Image, count: int, name: str) -> list[Image.Image]:
    """The image, or some of its frames, upright."""
    try:
        if getattr(picture, "n_frames", 1) == 1 or picture.format not in ANIMATIONS:
            return [_upright_rgb(picture, name)]
        durations_ms = []
        for index in range(picture.n_frames):  # type: ignore[attr-defined]
            picture.seek(index)
            picture.load()
            durations_ms.append(max(float(picture.info.get("duration") or 0), 1.0))
        ends_ms = np.cumsum(durations_ms)
        indices = np.searchsorted(ends_ms, _spread(float(ends_ms[-1]), count), side="right")
        frames = []
        for index in sorted(set(indices.tolist())):
            picture.seek(index)
            frames.append(_upright_rgb(picture, name))
        return frames
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise MediaError(
            f"{name}: cannot be read as a picture: it is damaged ({error or type(error).__name__})"
        ) from error


def _upright_rgb(picture: Image.Image, name: str) -> Image.Image:
    _check_size(picture, name)
    image = ImageOps.exif_transpose(picture)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    if max(image.size) > MAX_SIDE:
        image.thumbnail((MAX_SIDE, MAX_SIDE))
    return image.convert("RGB")


def _to_8_bits(grey: np.ndarray) -> np.ndarray:
    """Greyscale of 16 bits, of 32 bits with values of 8 or 16, or of floating point up to 1."""
    largest = float(grey.max(initial=0))
    full_scale = 65535.0 if grey.dtype.itemsize == 2 or largest > 255 else 255.0
    if grey.dtype.kind == "f" and largest <= 1:
        full_scale = 1.0
    return (np.clip(np.nan_to_num(grey.astype(np.float32)) / full_scale, 0, 1) * 255).round().astype(np.uint8)


def _frame(frame: Any, name: str) -> list[Image.Image]:
    if isinstance(frame, str | Path):
        return _images(decode("picture", Path(frame), count=1))
    if isinstance(frame, Image.Image):
        return _frames_of(frame, 1, name)
    return [_from_array(frame, name)]


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or _is_tensor(value)


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach") and hasattr(value, "cpu")


def _expected(value: Any, before: str = "") -> str:
    return f"[{before}3, height, width]" if _is_tensor(value) else f"[{before}height, width, 3]"


def _from_array(value: Any, name: str) -> Image.Image:
    """Channels last for arrays, first for tensors."""
    if not _is_array(value):
        raise UserError(f"{name} is a {type(value).__name__}; give a file, a PIL image, an array or a tensor")
    pixels = np.asarray(value.detach().cpu().float() if _is_tensor(value) and value.is_floating_point() else value)
    if _is_tensor(value) and pixels.ndim == 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim not in (2, 3) or pixels.size == 0 or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        raise UserError(f"{name} has the shape {list(value.shape)}; expected {_expected(value)}")
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    low, high = pixels.min(), pixels.max()
    if pixels.dtype.kind == "f":
        if not (low >= 0 and high <= 1):  # NaN too
            raise UserError(f"{name} has values from {low:g} to {high:g}; floating point goes from 0 to 1")
        pixels = (pixels.astype(np.float32) * 255).round()
    elif pixels.dtype == np.uint16:
        pixels = (pixels / 257.0).round()
    elif pixels.dtype.kind not in "ui" or low < 0 or high > 255:
        raise UserError(f"{name} has values of {pixels.dtype} from {low} to {high}; integers go from 0 to 255")
    return Image.fromarray(np.ascontiguousarray(pixels.astype(np.uint8))).convert("RGB")
