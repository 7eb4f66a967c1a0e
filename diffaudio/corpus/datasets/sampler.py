"""In which order training meets the clips: a function of the seed, with no list of them and nothing to remember.

    p   place of an item in the whole run, over all steps and processes: 0, 1, 2, …
    n   number of clips of a corpus

A corpus is gone through again and again, each time in another order. That order is a permutation computed item by
item: a generalised Feistel cipher of the numbers 0 … n-1 (Black & Rogaway 2002, "Ciphers with arbitrary finite
domains", section 4 and 5), with the finaliser of SplitMix64 (Steele et al. 2014) as its round function.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate, pairwise
from math import inf, isqrt

import numpy as np

from diffaudio.errors import UserError

__all__ = ["Order", "permuted"]

ROUNDS = 6
BLOCK = 1024  # places over which the shares of mixed corpora are exact to one


def permuted(places: np.ndarray, size: int, key: int) -> np.ndarray:
    """Where a permutation of 0 … size-1 sends these places.

    Args:
        places: [number] int64, each below `size`.
        key: below 2^63; each is another permutation.

    Returns:
        [number] int64.
    """
    moved = _enciphered(places, size, key)
    while (outside := moved >= size).any():  # cycle walking: the cipher's domain is a little larger
        moved[outside] = _enciphered(moved[outside], size, key)
    return moved


def _enciphered(places: np.ndarray, size: int, key: int) -> np.ndarray:
    """A permutation of the numbers below height * width, the smallest near square that holds `size`."""
    width = np.uint64(isqrt(size - 1) + 1)
    height = np.uint64(-(-size // int(width)))
    of_round = _hash(np.arange(key, key + ROUNDS, dtype=np.uint64))
    left, right = np.divmod(places.astype(np.uint64), width)
    for number in range(0, ROUNDS, 2):
        left = (left + _hash(right ^ of_round[number])) % height
        right = (right + _hash(left ^ of_round[number + 1])) % width
    return (left * width + right).astype(np.int64)


def _hash(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64, halved so that adding to it does not overflow."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) >> np.uint64(1)


@dataclass(frozen=True)
class Order:
    """Which clip stands at which place of a run.

    Attributes:
        sizes: clips of each corpus; they are numbered through, one corpus after the other.
        weights: how often each is met, in proportion; empty goes by their sizes, as if they were one.
        seed: another one is another order.

    Raises:
        ValueError: there is not one weight a corpus, or a weight is not positive or below 1/1024 of their sum.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.weights:
            object.__setattr__(self, "sizes", (sum(self.sizes),))
            object.__setattr__(self, "weights", (1.0,))
        if len(self.weights) != len(self.sizes):
            raise UserError(f"weights: {len(self.weights)} were given for {len(self.sizes)} corpora; give one for each")
        unusable = [weight for weight in self.weights if not 0 < weight < inf]
        for weight in unusable or [weight for weight in self.weights if weight * BLOCK < sum(self.weights)]:
            raise UserError(
                f"weights: {weight:g} is not positive, or less than a {BLOCK}th of their sum; leave that corpus out"
            )

    def clips(self, first: int, count: int) -> np.ndarray:
        """The clips at `count` places from `first` on: [count] int64."""
        corpora, ranks = self._corpora(first, count)
        clips, begin = np.empty(count, np.int64), 0
        for corpus, size in enumerate(self.sizes):
            passes = np.where(corpora == corpus, ranks // size, -1)
            for number in set(passes.tolist()) - {-1}:
                here = passes == number
                clips[here] = begin + permuted(ranks[here] % size, size, self._key(number * len(self.sizes) + corpus))
            begin += size
        return clips

    def _key(self, number: int) -> int:
        hashed = _hash(np.array([number], np.uint64)) ^ np.uint64(self.seed % 2**64)
        return int(_hash(hashed)[0])

    def _corpora(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each place the corpus it takes from, and how many it took from that one before: [count] both."""
        if len(self.sizes) == 1:
            return np.zeros(count, np.int64), np.arange(first, first + count)
        blocks = range(first // BLOCK, (first + count - 1) // BLOCK + 1)
        corpora, ranks = (np.concatenate(of) for of in zip(*map(self._block, blocks), strict=True))
        begin = first - blocks[0] * BLOCK
        return corpora[begin : begin + count], ranks[begin : begin + count]

    def _block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """`_corpora` of the places number * BLOCK … (number + 1) * BLOCK - 1: each corpus is spread over it evenly."""
        before, after = self._taken(number * BLOCK), self._taken((number + 1) * BLOCK)
        counts = [end - begin for begin, end in zip(before, after, strict=True)]
        corpora = np.repeat(np.arange(len(counts)), counts)
        ranks = np.concatenate([np.arange(*ends) for ends in zip(before, after, strict=True)])
        times = np.concatenate([(np.arange(count) + 0.5) / count for count in counts if count])
        order = np.argsort(times, kind="stable")
        return corpora[order], ranks[order]

    def _taken(self, place: int) -> list[int]:
        """How many items each corpus gives to the places before this one, the start of a block."""
        ends = [0, *(int(place * share) for share in self._cumulative_shares)]
        return [end - begin for begin, end in pairwise(ends)]

    @cached_property
    def _cumulative_shares(self) -> list[Fraction]:
        sums = list(accumulate(map(Fraction, self.weights)))
        return [part / sums[-1] for part in sums]
