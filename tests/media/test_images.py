"""Pictures and videos as queries, whatever they come as."""

import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from media import numbered_pictures, patched, picture_number, tone, write_media
from PIL import Image

from diffaudio.errors import UserError
from diffaudio.media.images import decode_picture, decode_video, read_image, read_video

UPRIGHT = Image.new("RGB", (60, 40), (10, 20, 30))
UPRIGHT.paste((250, 240, 230), (0, 0, 30, 20))  # bright at the left of the top
TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def difference(a, b) -> float:
    return float(np.abs(np.asarray(a).astype(float) - np.asarray(b).astype(float)).mean())


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_pictures_are_turned_as_exif_says_from_a_file_and_as_an_object(tmp_path, orientation, suffix):
    turn = TURNS[orientation]
    stored = UPRIGHT.transpose(turn) if turn is not None else UPRIGHT
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"a{suffix}", exif=exif)
    with Image.open(tmp_path / f"a{suffix}") as opened:
        for (found,) in (decode_picture(tmp_path / f"a{suffix}", 1), read_image(opened)):
            assert found.size == (60, 40) and found.mode == "RGB"
            assert difference(found, UPRIGHT) < 4


def test_grey_of_sixteen_bits_stays_grey(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    expected = np.repeat((ramp / 257).round().astype(np.uint8)[..., None], 3, axis=2)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    Image.fromarray((ramp / 65535).astype(np.float32)).save(tmp_path / "b.tif")
    Image.fromarray(ramp.astype(np.int32)).save(tmp_path / "c.tif")
    for name in ("a.png", "a.tif", "b.tif", "c.tif"):
        (found,) = decode_picture(tmp_path / name, 1)
        assert difference(found, expected) < 1, name
    for picture in (ramp, Image.fromarray(ramp), Image.fromarray(ramp.astype(np.int32))):
        assert difference(read_image(picture)[0], expected) < 1


def test_arrays_and_tensors_are_pictures_as_diffusers_takes_them():
    pixels = np.asarray(UPRIGHT)
    as_float = pixels.astype(np.float32) / 255
    channels_first = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    with_alpha = np.dstack([pixels, np.full(pixels.shape[:2], 128, np.uint8)])
    for picture in (pixels, as_float, as_float.astype(np.float64), channels_first, channels_first / 255, with_alpha):
        (found,) = read_image(picture)
        assert found.mode == "RGB" and difference(found, UPRIGHT) == 0
    half = (channels_first / 255).to(torch.bfloat16).requires_grad_()
    assert difference(read_image(half)[0], UPRIGHT) < 1
    assert difference(read_image(pixels[..., 0])[0], UPRIGHT.getchannel(0).convert("RGB")) == 0


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((3, 40, 60)), r"the picture has the shape \[3, 40, 60\]; expected \[height, width, 3\]"),
        (torch.zeros(40, 60, 3), r"the picture has the shape \[40, 60, 3\]; expected \[3, height, width\]"),
        (np.full((4, 4, 3), 255.0), "values from 255 to 255; floating point goes from 0 to 1"),
        (np.full((4, 4, 3), np.nan), "values from nan to nan; floating point goes from 0 to 1"),
        (np.full((4, 4, 3), 256), "integers go from 0 to 255"),
        (np.zeros((4, 4, 3), bool), "integers go from 0 to 255"),
        (np.zeros((0, 4, 3)), "has the shape"),
        (np.zeros((2, 2, 2, 2, 2)), "has the shape"),
        (7, "the picture is a int; give a file, a PIL image, an array or a tensor"),
        (b"\x89PNG", "the picture is a bytes"),
        (["a.png"], "the picture is a list"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_sentence(picture, message):
    with pytest.raises(UserError, match=message):
        read_image(picture)


def test_videos_are_frames_in_a_list_an_array_or_a_tensor():
    frames = np.stack([np.asarray(picture) for picture in numbered_pictures(1)])
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    for video in (numbered_pictures(1), list(frames), frames, tensor, tensor / 255, tuple(numbered_pictures(1))):
        assert [picture_number(frame) for frame in read_video(video)] == [0, 1, 2, 3]
    for video, message in (
        ([], "the video has no frames"),
        (np.zeros((0, 4, 4, 3)), "the video has no frames"),
        (frames[0], r"the video has the shape \[48, 64, 3\]; expected \[frames, height, width, 3\]"),
        (tensor[0], r"the video has the shape \[3, 48, 64\]; expected \[frames, 3, height, width\]"),
        ([frames[0], 3], "frame 1 of the video is a int"),
        (3, "the video is a int; give a file"),
    ):
        with pytest.raises(UserError, match=message):
            read_video(video)


def write_png_header(path: Path, width: int, height: int) -> Path:
    """A PNG file of a few bytes that claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(100))), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.parametrize(("width", "height"), [(40_000, 25_000), (1_000_000, 1000), (65_000, 65_000)])
def test_a_picture_of_a_billion_pixels_is_refused_from_its_header(tmp_path, width, height):
    path = write_png_header(tmp_path / "bomb.png", width, height)
    for read in (read_image, read_video):
        with pytest.raises(
            UserError, match=rf"bomb\.png: is a picture of {width} x {height} pixels; at most 250 million"
        ):
            read(path)


def test_photographs_of_a_hundred_million_pixels_are_read_without_a_warning(tmp_path):
    Image.new("L", (12_000, 9_000), 90).save(tmp_path / "large.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = read_image(tmp_path / "large.jpg")
    assert max(found.size) <= 8192 and found.size[0] * 3 == found.size[1] * 4 and found.getpixel((9, 9)) == (90, 90, 90)


def test_pipes_devices_folders_and_damaged_pictures_are_one_sentence_each(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    UPRIGHT.save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    UPRIGHT.save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:300])
    (tmp_path / "crc.png").write_bytes(data[:40] + b"\xff" * 8 + data[48:])
    (tmp_path / "text.png").write_text("no picture at all")
    (tmp_path / "program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    for name, message in (
        ("pipe.png", "is a pipe or a device; give a file"),
        (".", "is a folder; give a file"),
        ("none.png", "there is no such file"),
        ("cut.png", "cannot be read as a picture: it is damaged"),
        ("cut.jpg", "cannot be read as a picture: it is damaged"),
        ("crc.png", "cannot be read as a picture: it is"),
        ("text.png", "cannot be read as a picture: it is no picture"),
        ("program.eps", "cannot be read as a picture: it is no picture"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_an_animation_gives_frames_spread_over_its_time(tmp_path, suffix):
    pictures = [Image.new("RGB", (32, 32), (value, value, value)) for value in range(0, 250, 10)]
    durations_ms = [4000] + [40] * (len(pictures) - 1)  # the first stands for most of the time
    options = {"lossless": True} if suffix == ".webp" else {}
    path = tmp_path / f"a{suffix}"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations_ms, loop=0, **options)
    for frames in (read_image(path), read_video(path), decode_picture(path, 8)):
        levels = [frame.getpixel((5, 5))[0] for frame in frames]
        assert 2 <= len(levels) <= 8 and levels == sorted(set(levels)) and levels[0] < 5
    with Image.open(path) as opened:
        assert len(read_image(opened)) == len(frames)


def test_one_picture_of_several_that_are_no_animation_is_read_as_one(tmp_path):
    UPRIGHT.save(tmp_path / "pages.tif", save_all=True, append_images=[UPRIGHT.rotate(90)])
    assert len(read_image(tmp_path / "pages.tif")) == 1


def test_a_video_longer_in_sound_than_in_picture_gives_its_pictures(tmp_path):
    for suffix, rate in ((".mp4", 44100), (".mkv", 8000)):
        path = write_media(tmp_path / f"a{suffix}", sound=tone(40, rate), pictures=numbered_pictures(4))
        assert [picture_number(frame) for frame in read_video(path)] == [1, 3, 5, 7, 9, 11, 13, 15]


def test_a_video_without_a_duration_gives_pictures_from_all_of_it(tmp_path):
    path = write_media(tmp_path / "a.webm", sound=tone(4, 48000), pictures=numbered_pictures(4), muxer={"live": "1"})
    found = [picture_number(frame) for frame in decode_video(path, 8)]
    assert found == [1, 3, 5, 7, 9, 11, 13, 15]


def test_a_header_that_claims_too_long_a_picture_is_not_believed(tmp_path):
    path = write_media(tmp_path / "a.mp4", pictures=numbered_pictures(4))
    data = path.read_bytes()
    at = data.index(b"mdhd") + 4 + 16  # duration of the track's media
    (duration,) = struct.unpack(">I", data[at : at + 4])
    longer = patched(path, tmp_path / "b.mp4", b"", struct.pack(">I", 20 * duration), after=b"mdhd", skip=16)
    assert len(read_video(longer)) == 8


def test_sound_is_no_video(tmp_path):
    path = write_media(tmp_path / "a.mp4", sound=tone(1, 44100))
    with pytest.raises(UserError, match=r"a\.mp4: has no picture track"):
        read_video(path)
