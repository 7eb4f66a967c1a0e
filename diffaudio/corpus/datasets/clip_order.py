"""The order in which training meets the clips: a function of the seed, with nothing to save in a run's state.

    position   of an item in the whole run, over all steps and processes: 0, 1, 2, …
    epoch      one pass over a corpus; each epoch is a new permutation of its clips

An epoch's permutation is NumPy's, seeded with (seed, corpus, epoch), and is kept while its clips are drawn: 8 bytes a
clip. A run that is resumed computes the permutation of its epoch again and goes on from there.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import accumulate, pairwise
from math import inf

import numpy as np

from diffaudio.errors import UserError

__all__ = ["ClipOrder"]

BLOCK = 1024  # positions over which each corpus' share is exact to one clip


@dataclass(frozen=True)
class ClipOrder:
    """Which clip stands at which position of a run.

    Attributes:
        sizes: number of clips of each corpus; clips are numbered through, one corpus after the other.
        weights: how often clips of each corpus are drawn, in proportion; empty treats all corpora as one.
        seed: a different seed gives a different order.

    Raises:
        ValueError: there is not one weight a corpus, or a weight is not positive or below 1/1024 of their sum.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...] = ()
    seed: int = 0
    _epochs: dict[int, dict[int, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)

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
        """The clips at `count` positions from `first` on: [count] int64."""
        corpora, ranks = self._corpora(first, count)
        clips, offset = np.empty(count, np.int64), 0
        for corpus, size in enumerate(self.sizes):
            epochs = np.where(corpora == corpus, ranks // size, -1)
            for epoch in sorted(set(epochs.tolist()) - {-1}):
                here = epochs == epoch
                clips[here] = offset + self._epoch(corpus, epoch)[ranks[here] % size]
            offset += size
        return clips

    def _epoch(self, corpus: int, epoch: int) -> np.ndarray:
        """The permutation of one pass over a corpus: [clips] int64. The last two are kept, as a batch may span both."""
        cached = self._epochs.setdefault(corpus, {})
        if epoch not in cached:
            random = np.random.default_rng([self.seed % 2**64, corpus, epoch])
            cached[epoch] = random.permutation(self.sizes[corpus])
            for old in list(cached)[:-2]:
                del cached[old]
        return cached[epoch]

    def _corpora(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """For each position its corpus, and how many clips of that corpus came before: [count] both."""
        if len(self.sizes) == 1:
            return np.zeros(count, np.int64), np.arange(first, first + count)
        blocks = range(first // BLOCK, (first + count - 1) // BLOCK + 1)
        corpora, ranks = (np.concatenate(of) for of in zip(*map(self._block, blocks), strict=True))
        begin = first - blocks[0] * BLOCK
        return corpora[begin : begin + count], ranks[begin : begin + count]

    def _block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """`_corpora` of one block of positions, over which the clips of each corpus are spread evenly."""
        before, after = self._drawn_before(number * BLOCK), self._drawn_before((number + 1) * BLOCK)
        counts = [end - begin for begin, end in zip(before, after, strict=True)]
        corpora = np.repeat(np.arange(len(counts)), counts)
        ranks = np.concatenate([np.arange(*ends) for ends in zip(before, after, strict=True)])
        times = np.concatenate([(np.arange(count) + 0.5) / count for count in counts if count])
        order = np.argsort(times, kind="stable")
        return corpora[order], ranks[order]

    def _drawn_before(self, position: int) -> list[int]:
        """How many clips of each corpus come before this position, the start of a block."""
        ends = [0, *(int(position * share) for share in self._cumulative_shares)]
        return [end - begin for begin, end in pairwise(ends)]

    @cached_property
    def _cumulative_shares(self) -> list[Fraction]:
        sums = list(accumulate(map(Fraction, self.weights)))
        return [part / sums[-1] for part in sums]
