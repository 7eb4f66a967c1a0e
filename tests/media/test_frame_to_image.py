"""Pictures as a player shows them."""

import math
import struct
from itertools import product

import numpy as np
import pytest
from media import numbered_pictures, write_media
from PIL import Image

from diffaudio.media.video_frames import read_frames

MIRRORS = {"none": np.eye(2), "left-right": np.diag([-1.0, 1]), "top-bottom": np.diag([1.0, -1])}


def with_matrix(path, target, matrix):
    """A copy of an MP4 file with another display matrix [[a, b], [c, d]], (x', y') = (x, y) [[a, b], [c, d]]."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    (a, b), (c, d) = (np.asarray(matrix) * 65536).round().astype(int).tolist()
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
    return target


@pytest.mark.parametrize(("mirror", "degrees"), list(product(MIRRORS, (0, 90, 180, 270))))
def test_every_mirroring_and_turn_of_a_display_matrix_is_applied(tmp_path, mirror, degrees):
    picture = numbered_pictures(0.25, size=(64, 48))[0]
    picture.paste((250, 0, 0), (0, 0, 32, 24))  # left at the top
    picture.paste((0, 250, 0), (32, 0, 64, 24))
    picture.paste((0, 0, 250), (0, 24, 32, 48))
    path = write_media(tmp_path / "a.mp4", pictures=[picture] * 4)
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    matrix = (MIRRORS[mirror] @ turn).round()
    ((_, found),) = read_frames(with_matrix(path, tmp_path / "b.mp4", matrix), [0.0])
    pixels = np.asarray(picture)
    corners = np.array([[-32, -24], [32, 24]]) @ matrix
    low, (width, height) = corners.min(axis=0), np.abs(corners[1] - corners[0]).astype(int)
    expected = np.zeros((height, width, 3), int)
    for y, x in product(range(48), range(64)):
        to_x, to_y = (np.array([x - 31.5, y - 23.5]) @ matrix - low - 0.5).round().astype(int)
        expected[to_y, to_x] = pixels[y, x]
    assert found.size == (width, height)
    assert np.abs(np.asarray(found).astype(int) - expected).mean() < 12


def test_a_matrix_that_only_scales_or_says_nothing_leaves_the_picture(tmp_path):
    path = write_media(tmp_path / "a.mp4", pictures=numbered_pictures(1))
    for matrix in (np.eye(2) * 2, np.zeros((2, 2))):
        ((_, found),) = read_frames(with_matrix(path, tmp_path / "b.mp4", matrix), [0.0])
        assert isinstance(found, Image.Image) and found.size == (64, 48)
