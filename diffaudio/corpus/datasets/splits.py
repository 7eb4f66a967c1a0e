"""Which sources are held out from training: all clips of a source are on the same side of the split."""

import hashlib

from diffaudio.errors import UserError

__all__ = ["is_held_out"]


def is_held_out(source: str, share: float) -> bool:
    """Whether a source is among the `share` of all sources that is held out.

    The hash of its name decides, so that other sources, their order, copies and the number of clips change nothing,
    and a larger share holds out whatever a smaller one does.

    Args:
        source: as in the column `source` of a corpus.
        share: 0 holds out nothing, 1 everything.

    Raises:
        ValueError: `share` does not lie in 0..1.
    """
    if not 0 <= share <= 1:
        raise UserError(f"{share:g} of the sources cannot be held out; give a number from 0 to 1")
    digest = hashlib.blake2b(source.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64
