"""Generators that depend on what is drawn for, and not on what was drawn before."""

import hashlib

import torch

__all__ = ["seeded_generator"]


def seeded_generator(seed: int, *position: int | str) -> torch.Generator:
    """A CPU generator that is a function of its arguments alone: (seed, process, step), or (seed, clip, copy)."""
    digest = hashlib.blake2b(repr((seed, *position)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
