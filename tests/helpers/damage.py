"""Damaged copies of media files: bytes changed, cut out, cut off, put in, spliced from another file."""

import random
from collections.abc import Callable

__all__ = ["DAMAGES", "damaged"]


def _flip(data: bytearray, _: bytes, random: random.Random) -> bytearray:
    """Change some bytes anywhere."""
    for _time in range(random.choice((1, 4, 30, 300))):
        data[random.randrange(len(data))] = random.randrange(256)
    return data


def _flip_head(data: bytearray, _: bytes, random: random.Random) -> bytearray:
    """Change some bytes of what a demuxer reads first, or (mp4) last."""
    for _time in range(random.choice((1, 3, 10))):
        at = random.randrange(min(2000, len(data)))
        data[at if random.random() < 0.5 else -1 - at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
    return data


def _numbers(data: bytearray, _: bytes, random: random.Random) -> bytearray:
    """Put extreme numbers where there may be a size, a count, a rate or a time."""
    for _time in range(random.choice((1, 3, 10))):
        size = random.choice((2, 4, 8))
        at = random.randrange(max(1, len(data) - size))
        value = random.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1))
        data[at : at + size] = value.to_bytes(size, random.choice(("big", "little")))
    return data


def _cut_off(data: bytearray, _: bytes, random: random.Random) -> bytearray:
    return data[: random.randrange(1, len(data))]


def _cut_out(data: bytearray, _: bytes, random: random.Random) -> bytearray:
    at = random.randrange(len(data))
    del data[at : at + random.choice((1, 17, 1000, 20000))]
    return data


def _put_in(data: bytearray, _: bytes, random: random.Random) -> bytearray:
    at = random.randrange(len(data))
    data[at:at] = random.randbytes(random.choice((1, 17, 1000, 20000)))
    return data


def _repeat(data: bytearray, _: bytes, random: random.Random) -> bytearray:
    at = random.randrange(len(data))
    data[at:at] = data[at : at + random.choice((100, 5000, 50000))] * random.choice((1, 3))
    return data


def _splice(data: bytearray, other: bytes, random: random.Random) -> bytearray:
    """Go on with the middle of another file."""
    return data[: random.randrange(len(data))] + other[random.randrange(len(other)) :]


def _overwrite(data: bytearray, other: bytes, random: random.Random) -> bytearray:
    at, size = random.randrange(len(data)), random.choice((100, 5000))
    start = random.randrange(len(other))
    data[at : at + size] = other[start : start + size]
    return data


DAMAGES: tuple[Callable[[bytearray, bytes, random.Random], bytearray], ...] = (
    *(_flip, _flip_head, _numbers, _cut_off, _cut_out, _put_in, _repeat, _splice, _overwrite),
)


def damaged(data: bytes, other: bytes, seed: int) -> bytes:
    """A copy with one or two damages, the same for the same seed."""
    generator = random.Random(seed)
    result = bytearray(data)
    for _ in range(generator.choice((1, 1, 2))):
        result = generator.choice(DAMAGES)(result or bytearray(1), other, generator)
    return bytes(result)
