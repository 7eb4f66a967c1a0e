"""Clips with the same sound: a fingerprint that survives re-encoding, and the search for matching ones.

    E(n, m)  energy of band m (of M + 1) around step n
    d(n, m)  log E(n, m) - log E(n, m+1) - (log E(n-1, m) - log E(n-1, m+1)), where n - 1 is 160 ms before
    c(n, m)  1 or -1, the sign of d, where |d| is large enough for the sign to be reliable, else 0

The bits are those of Haitsma & Kalker 2002, "A highly robust audio fingerprinting system", eq. 1, with two changes:
logarithms, so that hiss far below the rest does not count, and the third value, so that a steady tone or silence is
all 0 and matches nothing. Two clips are compared by the cosine of their c over the full length of both; where all bits
are reliable, this is equivalent to the paper's bit error rate. As in the paper, only clips with some steps' bits in
common are compared. This module needs only numpy.
"""

import math
from collections.abc import Sequence

import numpy as np

from diffaudio.errors import UserError

__all__ = ["MAX_DISTANCE", "distance", "find_duplicates", "fingerprint"]

MAX_DISTANCE = 0.15
VERSION = b"\x01"  # fingerprints are stored in corpora, and must not be compared with those of another method
NUM_BANDS = 16  # M, bits per step
LOWEST_HZ, HIGHEST_HZ = 200.0, 3400.0  # the bandwidth of a telephone
WORKING_RATE = 7350  # minimum; sound is decimated to less than twice this
STEP_S = 0.04
WINDOW_S = 0.1
SMOOTH_STEPS = 8  # length of the window that E is summed over
LAG_STEPS = 4
FLOOR_DB = -40.0  # energies further than this below the clip's largest do not count
RELIABLE = 0.15  # |d| from which its sign counts, in nepers of energy
MIN_SIGNIFICANCE = 9.0  # cosine times the square root of the number of values, far beyond chance

SELF_SHIFT_STEPS = 12  # shifted by this much, a clip does not resemble itself merely because windows overlap
MAX_SELF_SHARE = 0.4  # of the distance to itself: 99 % of re-encodings are below 0.36, synthetic bells above 0.45

KEY_STEPS = (0, 3, 6)  # the reliable bits of these steps make up a key,
KEY_BANDS = (0x00FF, 0xFF00, 0x0F0F, 0xF0F0)  # half of the bands each, so that a wrong bit spoils half of the keys
KEY_SHARE = 1 / 3  # of a clip's steps have keys: those with the most reliable bits
BUCKET_SIZE = 8  # maximum number of clips per key; a key that many clips have says little
MAX_COMPARED = 8  # pairs of a clip and a shift that a clip is compared with, those with the most keys in common
CHUNK = 4096  # clips whose keys are computed together
ALIGNED_WORDS = 1 << 20  # steps that are compared together, over all shifts


def fingerprint(x: np.ndarray, sample_rate: int) -> bytes:
    """Compute the fingerprint of a sound: one byte for the version, then 4 bytes per step of 40 ms.

    Args:
        x: [samples], mono.

    Returns:
        For each step the signs of d as 16 bits, then 16 bits that mark the reliable ones; the version alone if the
        sound is shorter than 0.6 s.
    """
    energies = _energies(x, sample_rate)
    count = len(energies) - SMOOTH_STEPS + 1
    if count <= LAG_STEPS:
        return VERSION
    window = np.hanning(SMOOTH_STEPS + 2)[1:-1].astype(np.float32)
    smooth = np.sum([weight * energies[first : first + count] for first, weight in enumerate(window)], axis=0)
    level = np.log(smooth + max(float(smooth.max()) * 10 ** (FLOOR_DB / 10), 1e-12))
    level = level[:, :-1] - level[:, 1:]
    d = level[LAG_STEPS:] - level[:-LAG_STEPS]
    weights = 1 << np.arange(NUM_BANDS)
    words = (d > 0) @ weights + (((np.abs(d) >= RELIABLE) @ weights) << NUM_BANDS)
    return VERSION + words.astype("<u4").tobytes()


def distance(a: bytes, b: bytes) -> float:
    """The distance of two fingerprints at the best shift: 0 for equal, 0.5 for unrelated or too short to tell."""
    a_words, b_words = _words(a), _words(b)
    shifts = range(1 - len(b_words), len(a_words))
    return float(_distances(a_words, [(b_words, shift) for shift in shifts]).min(initial=0.5))


def find_duplicates(
    fingerprints: Sequence[bytes], sources: Sequence[str], *, max_distance: float = MAX_DISTANCE
) -> list[int | None]:
    """Find for each clip the earlier clip whose sound it repeats.

    In the given order, a clip is a duplicate of the first clip of another source that is not a duplicate itself and
    within `max_distance`. The result for a clip depends only on the non-duplicates before it: if some duplicates are
    removed first, the same clips remain.

    Returns:
        For each clip, the index of the clip it repeats, or None.

    Raises:
        ValueError: the numbers of fingerprints and sources differ, or a fingerprint is damaged or of another version.
    """
    if len(fingerprints) != len(sources):
        raise UserError(f"{len(fingerprints)} fingerprints and {len(sources)} sources; there is one of each a clip")
    index = _Index(fingerprints)
    numbers: dict[str, int] = {}
    source_of = np.array([numbers.setdefault(source, len(numbers)) for source in sources], np.int32)
    found: list[int | None] = []
    for clip, data in enumerate(fingerprints):
        others, shifts = index.look_up(clip)
        foreign = source_of[others] != source_of[clip]
        likely = _most_frequent(others[foreign], shifts[foreign])
        own = _words(data)
        distances = _distances(own, [(_words(fingerprints[other]), shift) for other, shift in likely])
        limit = max_distance
        if np.any(distances <= max_distance):
            limit = min(limit, MAX_SELF_SHARE * _self_distance(own))
        equal = [other for (other, _), far in zip(likely, distances, strict=True) if far <= limit]
        found.append(min(equal, default=None))
        if not equal:
            index.add(clip)
    return found


class _Index:
    """Clips by their keys. Each key has a bucket of clips that contain it; a full bucket keeps those added first.

    Attributes:
        first: first row of each clip, [clips + 1]; a row is a step that has keys.
        clips, steps: clip and step of each row, [rows].
        buckets: buckets of each row's keys, [rows, KEY_BANDS]; -1 for a key that occurs only once.
        begin: where each bucket begins in `added`, [buckets + 1].
        filled: number of entries in each bucket, [buckets].
        added: the rows added, bucket by bucket.
    """

    def __init__(self, fingerprints: Sequence[bytes]) -> None:
        counts = [_num_keys(len(_words(data))) for data in fingerprints]
        self.first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.clips = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self.steps = np.empty(len(self.clips), np.int32)
        keys = np.empty((len(KEY_BANDS), len(self.clips)), np.uint32)
        for start in range(0, len(counts), CHUNK):
            rows = slice(self.first[start], self.first[min(start + CHUNK, len(counts))])
            self.steps[rows], keys[:, rows] = _keys(fingerprints[start : start + CHUNK])
        sizes = [np.zeros(0, np.uint8)]
        for of_bands in keys:
            sizes.append(_number(of_bands, sum(map(len, sizes))))
        self.buckets = keys.view(np.int32).T
        self.begin = np.concatenate([[0], np.cumsum(np.concatenate(sizes), dtype=np.int64)])
        self.filled = np.zeros(len(self.begin) - 1, np.uint8)
        self.added = np.zeros(self.begin[-1], np.int32)

    def look_up(self, clip: int) -> tuple[np.ndarray, np.ndarray]:
        """Clips added that have a key in common with this one, and by how many steps it comes later in this clip."""
        rows, buckets = self._entries(clip)
        count = self.filled[buckets].astype(np.int64)
        places = np.repeat(self.begin[buckets] - (np.cumsum(count) - count), count) + np.arange(count.sum())
        others = self.added[places]
        return self.clips[others], np.repeat(self.steps[rows], count) - self.steps[others]

    def add(self, clip: int) -> None:
        rows, buckets = self._entries(clip)
        buckets, where = np.unique(buckets, return_index=True)
        has_room = self.filled[buckets] < self.begin[buckets + 1] - self.begin[buckets]
        buckets, rows = buckets[has_room], rows[where[has_room]]
        self.added[self.begin[buckets] + self.filled[buckets]] = rows
        self.filled[buckets] += 1

    def _entries(self, clip: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and buckets of those keys of a clip that other clips have too."""
        rows = np.arange(self.first[clip], self.first[clip + 1])
        buckets = self.buckets[rows]
        shared = buckets >= 0
        return np.repeat(rows, shared.sum(axis=1)), buckets[shared]


def _self_distance(own: np.ndarray) -> float:
    """The distance of a clip to itself shifted by half a second or more: small for periodic or steady sound."""
    return float(_distances(own, [(own, shift) for shift in range(SELF_SHIFT_STEPS, len(own))]).min(initial=0.5))


def _num_keys(num_steps: int) -> int:
    """The number of a clip's steps that have keys."""
    return math.ceil(max(0, num_steps - KEY_STEPS[-1]) * KEY_SHARE)


def _keys(fingerprints: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The steps that have keys, clip by clip in order [steps], and the keys [KEY_BANDS, steps] as uint32."""
    all_words = [_words(data) for data in fingerprints]
    lengths = np.array([len(words) for words in all_words])
    words = np.concatenate(all_words)
    clip = np.repeat(np.arange(len(lengths)), lengths)
    step = np.arange(len(words)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    at = np.flatnonzero(step < lengths[clip] - KEY_STEPS[-1])
    reliable = np.bitwise_count(words >> NUM_BANDS)
    reliability = np.sum([reliable[at + offset] for offset in KEY_STEPS], axis=0, dtype=np.int64)
    ranked = at[np.lexsort((-reliability, clip[at]))]
    whole = np.maximum(lengths - KEY_STEPS[-1], 0)
    rank = np.arange(len(at)) - np.repeat(np.cumsum(whole) - whole, whole)
    at = np.sort(ranked[rank < np.repeat([_num_keys(length) for length in lengths], whole)])
    ups = words & (words >> NUM_BANDS)
    keys = np.empty((len(KEY_BANDS), len(at)), np.uint32)
    for row, bands in zip(keys, KEY_BANDS, strict=True):
        bits = np.zeros(len(at), np.uint64)
        for offset in KEY_STEPS:
            bits = (bits << np.uint64(NUM_BANDS)) | (ups[at + offset] & bands)
        row[:] = (bits * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)  # Knuth's multiplicative hash
    return step[at], keys


def _number(keys: np.ndarray, first: int) -> np.ndarray:
    """Replace keys that occur more than once by consecutive numbers from `first` on, and other keys by -1, in place.

    Returns:
        The capacity of the bucket of each numbered key.
    """
    order = np.argsort(keys)
    in_order = keys[order]
    is_new = np.concatenate([np.ones(min(1, len(keys)), bool), in_order[1:] != in_order[:-1]])
    sizes = np.diff(np.flatnonzero(is_new), append=len(keys))
    shared = sizes > 1
    numbers = np.where(shared, first - 1 + np.cumsum(shared), -1).astype(np.int32)
    keys[order] = np.repeat(numbers, sizes).view(np.uint32)
    return np.minimum(sizes[shared], BUCKET_SIZE).astype(np.uint8)


def _most_frequent(clips: np.ndarray, shifts: np.ndarray) -> list[tuple[int, int]]:
    """The most frequent pairs of a clip and a shift, at most MAX_COMPARED."""
    span = 1 << 24  # shifts are within +- half of it
    pairs, counts = np.unique(clips.astype(np.int64) * span + (shifts + span // 2), return_counts=True)
    best = pairs[np.argsort(-counts, kind="stable")[:MAX_COMPARED]]
    return [(pair // span, pair % span - span // 2) for pair in best.tolist()]


def _energies(x: np.ndarray, sample_rate: int) -> np.ndarray:
    """Energy [steps, bands] in windows of 100 ms."""
    factor = max(1, int(sample_rate / WORKING_RATE))
    count = len(x) // factor
    x = np.sum([x[first : count * factor : factor] for first in range(factor)], axis=0)  # a sufficient lowpass
    rate = sample_rate / factor
    size = 32 * round(WINDOW_S * rate / 32)  # Fourier transforms of odd sizes are slow
    count = max(0, int((len(x) - size) / (STEP_S * rate)) + 1)
    starts = np.round(np.arange(count) * STEP_S * rate).astype(int)
    if count == 0:
        return np.zeros((0, NUM_BANDS + 1), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(x, size)[starts] * np.hanning(size).astype(np.float32)
    spectrum = np.fft.rfft(frames)
    edges = np.round(np.geomspace(LOWEST_HZ, HIGHEST_HZ, NUM_BANDS + 2) * size / rate).astype(int)
    power = spectrum.real[:, : edges[-1]] ** 2 + spectrum.imag[:, : edges[-1]] ** 2
    return np.add.reduceat(power, edges[:-1], axis=1)


def _words(data: bytes) -> np.ndarray:
    """[steps]: signs in the lower half of the bits, which of them are reliable in the upper half."""
    if data[:1] != VERSION or len(data) % 4 != 1:
        raise UserError("a fingerprint is damaged or of another version; prepare the corpus again")
    return np.frombuffer(data, "<u4", offset=1)


def _distances(own: np.ndarray, others: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
    """Distances of `own`, step n, to each of the others, step n - shift: [others]."""
    at_once = max(1, ALIGNED_WORDS // max(1, len(own)))  # clips of an hour have as many shifts as steps
    blocks = [_block_distances(own, others[first : first + at_once]) for first in range(0, len(others), at_once)]
    return np.concatenate(blocks) if blocks else np.zeros(0)


def _block_distances(own: np.ndarray, others: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
    aligned = np.zeros((len(others), len(own)), np.uint32)
    for row, (other, shift) in zip(aligned, others, strict=True):
        part = other[max(0, -shift) : max(0, len(own) - shift)]
        row[max(0, shift) : max(0, shift) + len(part)] = part
    both = (own & aligned) >> NUM_BANDS
    agreement = _count(both) - 2 * _count((own ^ aligned) & both)
    size = np.sqrt(_count(own >> NUM_BANDS) * np.array([_count(other >> NUM_BANDS) for other, _ in others]))
    significant = (size > 0) & (agreement >= MIN_SIGNIFICANCE * np.sqrt(size))
    return np.where(significant, (1 - agreement / np.maximum(size, 1)) / 2, 0.5)


def _count(words: np.ndarray) -> np.ndarray:
    """[..., steps] -> [...], the number of bits that are set."""
    return np.bitwise_count(words).sum(axis=-1, dtype=np.int64)
