"""Random numbers that are functions of seed, step and item, and not of what was drawn before."""

import hashlib
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["BatchDraws", "seeded_generator"]


def seeded_generator(seed: int, *position: int | str) -> torch.Generator:
    """A CPU generator that is a function of its arguments alone: (seed, process, step), or (seed, clip, copy)."""
    digest = hashlib.blake2b(repr((seed, *position)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class BatchDraws:
    """Random numbers for the items of a training step: functions of (seed, step, item) and of the order of the calls.

    Every process, and every micro-batch of gradient accumulation, draws for its own items what one process would have
    drawn for them in one batch.

    Args:
        seed: of the run.
        step: of the run; each has new numbers.
        batch_size: of all processes and micro-batches together.
        items: those to draw for, as places in that batch; None is all.
    """

    def __init__(self, seed: int, step: int, batch_size: int, items: range | None = None) -> None:
        self.items = range(batch_size) if items is None else items
        self._position, self._batch_size = (seed, step), batch_size
        self._of_batch = seeded_generator(seed, step)

    def uniform(self, count: int = 1) -> Tensor:
        """`count` numbers in 0..1 for each item: [count, items] float64."""
        draws = torch.rand(count, self._batch_size, dtype=torch.float64, generator=self._of_batch)
        return draws[:, self.items.start : self.items.stop]

    def stratified(self) -> Tensor:
        """One number in 0..1 for each item, of which each `1 / batch_size` holds one in the batch: [items] float64.

        Strata are assigned to items at random: where several corpora are mixed, each has fixed places in the batch.
        """
        strata = torch.randperm(self._batch_size, generator=self._of_batch)[self.items.start : self.items.stop]
        return (strata + self.uniform()[0]) / self._batch_size

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers for each item: [items, *shape] float32."""
        return torch.stack([torch.randn(shape, generator=generator) for generator in self._of_items])

    def generator(self, purpose: str) -> torch.Generator:
        """A generator for what cannot be drawn item by item: a function of (seed, step, first item, purpose)."""
        return seeded_generator(*self._position, purpose, self.items.start)

    @cached_property
    def _of_items(self) -> list[torch.Generator]:
        return [seeded_generator(*self._position, "item", item) for item in self.items]
