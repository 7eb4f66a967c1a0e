"""Joints between sounds: a generated part inside a recording, and the end of a loop with its beginning.

    a, b   what fades out and what fades in       [channels, samples]
    w      from 0 to 1
    r      their correlation, 0 to 1

Two sounds of equal power, faded as (1 - w) a + w b, have a power of (1 - w)^2 + w^2 + 2 r w (1 - w): half of it in the
middle where they are unrelated, all of it where they are the same. Divided by its square root, the level stays.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffaudio.errors import UserError

__all__ = ["MAX_SEAM_S", "close_loop", "crossfade", "splice"]

MAX_SEAM_S = 0.02


def crossfade(a: Tensor, b: Tensor) -> Tensor:
    """Fade from a to b at constant power, whatever their correlation: [channels, samples] both, and the result."""
    w = (torch.arange(a.shape[-1], dtype=torch.float64, device=a.device) + 0.5) / max(a.shape[-1], 1)
    energy = (a.double().square().sum() * b.double().square().sum()).sqrt()
    r = ((a.double() * b.double()).sum() / energy).clamp(0, 1) if energy > 0 else torch.ones_like(energy)
    power = (1 - w) ** 2 + w**2 + 2 * r * w * (1 - w)
    return (((1 - w) * a + w * b) / power.sqrt()).to(a)


def splice(recording: Tensor, generated: Tensor, spans: Sequence[tuple[int, int]], *, seam: int) -> Tensor:
    """A recording, with spans of it replaced by what was generated.

    The crossfades lie before and after a span, in the recording: inside, nothing of it is left. Further away, every
    sample is that of the recording. At the ends of the sound there is no crossfade.

    Args:
        recording, generated: [channels, samples].
        spans: first sample and the one after the last of each, in order, without overlap.
        seam: samples of a crossfade, at most; fewer where two spans are closer than two crossfades.

    Returns:
        [channels, samples]
    """
    if recording.shape != generated.shape:
        raise UserError(f"a recording {list(recording.shape)} and a sound {list(generated.shape)} cannot be spliced")
    result, num_samples = recording.clone(), recording.shape[-1]
    edges = [0, *(edge for span in spans for edge in span), num_samples]
    for index, (start, end) in enumerate(spans):
        before = min(seam, (start - edges[2 * index]) // (2 if index else 1))
        after = min(seam, (edges[2 * index + 3] - end) // (2 if index + 1 < len(spans) else 1))
        result[:, start:end] = generated[:, start:end]
        for first, last, rises in ((start - before, start, True), (end, end + after, False)):
            pair = recording[:, first:last], generated[:, first:last]
            result[:, first:last] = crossfade(*(pair if rises else reversed(pair)))
    return result


def close_loop(extended: Tensor, num_samples: int, *, seam: int) -> Tensor:
    """A sound whose end continues with its beginning.

    Args:
        extended: [channels, num_samples + seam or more]; what follows `num_samples` sounds like the beginning again,
            though its phases may differ.
        seam: samples at the beginning over which the continuation of the end fades into it.

    Returns:
        [channels, num_samples]
    """
    seam = min(seam, num_samples, extended.shape[-1] - num_samples)
    beginning = crossfade(extended[:, num_samples : num_samples + seam], extended[:, :seam])
    return torch.cat([beginning, extended[:, seam:num_samples]], dim=-1)
