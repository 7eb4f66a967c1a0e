"""Clips with the same sound: a fingerprint that survives another encoding, and the search for equal ones.

    E(n, m)  energy of band m (of M + 1) around step n
    d(n, m)  log E(n, m) - log E(n, m+1) - (log E(n-1, m) - log E(n-1, m+1))
    c(n, m)  1 or -1, the sign of d, where |d| is large enough to be sure of it, else 0

The bits are those of Haitsma & Kalker 2002, "A highly robust audio fingerprinting system", eq. 1, with logarithms, so
that hiss far below the rest does not count, and with the third value: a steady tone or a silence is all 0 and says
nothing. Two clips are compared by the cosine of their c; nothing here needs more than numpy.
"""

from collections.abc import Sequence

import numpy as np

__all__ = ["MAX_DISTANCE", "distance", "find_duplicates", "fingerprint"]

MAX_DISTANCE = 0.2
VERSION = b"\x01"  # fingerprints are kept in corpora: those of another method must not be compared
NUM_BANDS = 16  # M, bits of a step
LOWEST_HZ, HIGHEST_HZ = 200.0, 3600.0  # what a telephone carries
STEP_S = 0.04
WINDOW_S = 0.064
SMOOTH_STEPS = 8  # length of the window around a step that E is summed over
LAG_STEPS = 3  # "n - 1" above, in steps
FLOOR_DB = -50.0  # E is counted from here on, below the loudest of the clip
SURE = 0.15  # |d|, in nepers of energy
MIN_SIGNIFICANCE = 10.0  # cosine times the root of the number of values: how unlikely it is to be chance
KEY_STEPS = (0, 5, 10)  # of these steps together is a key made, by which likely pairs are looked up
MIN_KEY_BITS = 16  # that are sure, or a key says too little
MAX_BUCKET = 16  # clips that a key leads to; one that many clips have says little


def fingerprint(x: np.ndarray, sample_rate: int) -> bytes:
    """What is characteristic of a sound: a byte for the version, then 4 bytes a step of 40 ms.

    Args:
        x: [samples], mono.

    Returns:
        For each step the signs of its M values as 16 bits, then which of these are sure; the version alone where the
        sound is silent or too short.
    """
    levels = np.log(_energies(x, sample_rate))
    levels = levels[:, :-1] - levels[:, 1:]
    d = levels[LAG_STEPS:] - levels[:-LAG_STEPS]
    sure = np.abs(d) >= SURE
    planes = np.stack([_packed(sure & (d > 0)), _packed(sure)], axis=1)
    return VERSION + planes.astype("<u2").tobytes()


def distance(a: bytes, b: bytes) -> float:
    """How much two fingerprints differ at the best shift: 0 equal, 0.5 unrelated (or too little to tell)."""
    a_planes, b_planes = _planes(a), _planes(b)
    shifts = range(-len(b_planes) + 1, len(a_planes))
    return min((_distance(a_planes, b_planes, shift) for shift in shifts), default=0.5)


def find_duplicates(
    fingerprints: Sequence[bytes], sources: Sequence[str], *, max_distance: float = MAX_DISTANCE
) -> list[int | None]:
    """For each clip the earlier clip whose sound it repeats.

    Clips of one source are never compared. In the order given, a clip is a duplicate of the first clip of another
    source that is none itself and not farther than `max_distance`: without the duplicates, or some of them, the same
    clips remain.

    Returns:
        One index, or None, a clip.

    Raises:
        ValueError: numbers of fingerprints and sources differ, or a fingerprint is damaged or of another version.
    """
    if len(fingerprints) != len(sources):
        raise ValueError(f"{len(fingerprints)} fingerprints and {len(sources)} sources; there is one of each a clip")
    found: list[int | None] = []
    buckets: dict[int, list[tuple[int, int]]] = {}
    planes = [_planes(data) for data in fingerprints]
    for index, own in enumerate(planes):
        steps, keys = _keys(own)
        votes: dict[tuple[int, int], int] = {}
        for step, key in zip(steps.tolist(), keys.tolist(), strict=True):
            for other, at in buckets.get(key, ()):
                votes[other, step - at] = votes.get((other, step - at), 0) + 1
        equal = (
            other
            for other, shift in sorted(votes)
            if sources[other] != sources[index] and _distance(own, planes[other], shift) <= max_distance
        )
        found.append(next(equal, None))
        if found[-1] is None:
            for step, key in zip(steps.tolist(), keys.tolist(), strict=True):
                bucket = buckets.setdefault(key, [])
                if len(bucket) < MAX_BUCKET:
                    bucket.append((index, step))
    return found


def _energies(x: np.ndarray, sample_rate: int) -> np.ndarray:
    """E [steps, bands], from the floor on."""
    window, hop = round(WINDOW_S * sample_rate), STEP_S * sample_rate
    count = max(0, int((len(x) - window) / hop) + 1)
    starts = np.round(np.arange(count) * hop).astype(int)
    if count < SMOOTH_STEPS:
        return np.ones((0, NUM_BANDS + 1), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(x.astype(np.float32, copy=False), window)[starts]
    spectrum = np.fft.rfft(frames * np.hanning(window).astype(np.float32))
    edges = np.geomspace(LOWEST_HZ, HIGHEST_HZ, NUM_BANDS + 2) * window / sample_rate
    bins = np.round(edges).astype(int)
    power = np.square(np.abs(spectrum[:, : bins[-1]]))
    bands = np.add.reduceat(power, bins[:-1], axis=1)
    smooth = np.hanning(SMOOTH_STEPS + 2)[1:-1]
    bands = np.stack([np.convolve(band, smooth, mode="valid") for band in bands.T], axis=1)
    return bands + max(float(bands.max()) * 10 ** (FLOOR_DB / 10), 1e-12)


def _packed(bits: np.ndarray) -> np.ndarray:
    """[steps, 16] bool -> [steps] integers"""
    return bits @ (1 << np.arange(NUM_BANDS))


def _planes(data: bytes) -> np.ndarray:
    """[steps, 2]: signs, and which are sure."""
    if data[:1] != VERSION or len(data) % 4 != 1:
        raise ValueError("a fingerprint is damaged or of another version; prepare the corpus again")
    return np.frombuffer(data, "<u2", offset=1).reshape(-1, 2)


def _distance(a: np.ndarray, b: np.ndarray, shift: int) -> float:
    """Step n of `a` against step n - shift of `b`."""
    over_a, over_b = a[max(0, shift) :][: len(b) - max(0, -shift)], b[max(0, -shift) :][: len(a) - max(0, shift)]
    both = over_a[:, 1] & over_b[:, 1]
    wrong = int(np.bitwise_count((over_a[:, 0] ^ over_b[:, 0]) & both).sum())
    size = float(np.bitwise_count(a[:, 1]).sum()) * float(np.bitwise_count(b[:, 1]).sum())
    if size == 0:
        return 0.5
    cosine = (int(np.bitwise_count(both).sum()) - 2 * wrong) / size**0.5
    return (1 - cosine) / 2 if cosine * size**0.25 >= MIN_SIGNIFICANCE else 0.5


def _keys(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps at which there is a key, and the keys."""
    count = max(0, len(planes) - KEY_STEPS[-1])
    bits = np.zeros(count, int)
    keys = np.zeros(count, np.uint64)
    for offset in KEY_STEPS:
        part = planes[offset : offset + count]
        bits += np.bitwise_count(part[:, 1])
        keys = (keys << np.uint64(16)) | part[:, 0].astype(np.uint64)
    steps = np.flatnonzero(bits >= MIN_KEY_BITS)
    return steps, keys[steps]
