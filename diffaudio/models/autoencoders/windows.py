"""Long sound: encoded and decoded in windows, so that memory does not depend on its length.

    latents = torch.cat(list(encode_windows(autoencoder, waveform)), dim=-1)
    pieces = decode_windows(autoencoder, encode_windows(autoencoder, pieces))     # a stream from end to end

Every window gets as much of the sound around it as the autoencoder looks at (`Autoencoder.reach`), and what it makes
of that context is thrown away. How far that is from encoding and decoding the whole at once, by the RMS of the whole
(`tests/test_windows.py` holds them to it, on random weights):

    spectral, Oobleck, EnCodec 48 kHz    below 1e-3 anywhere: rounding; nothing beyond the context has an effect
    EnCodec 24 kHz                       below 1e-3 anywhere: its LSTM remembers everything, but ever less; a second
    MMAudio                              below 0.01 in RMS: attention over everything; a second, and a cross-fade
    AudioLDM's mel VAE                   below 0.5 in RMS: attention, and normalisation by statistics of the whole

How much further published weights of the last three look is not known; hear what `diffaudio reconstruct --window`
makes of them. Of the last two a window of ten seconds gives what a sound of ten seconds would, as they learnt,
rather than what the whole gives.

A sound that fits into one window with its context is encoded and decoded whole.
"""

import math
import sys
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from diffaudio.errors import UserError
from diffaudio.media.chunked import map_windows
from diffaudio.models.autoencoders.base import Autoencoder

__all__ = ["WINDOW_S", "decode_windows", "encode_windows"]

WINDOW_S = 10.0
SHORTEST_S = 0.5
FADE_S = 0.25  # between windows that differ


@torch.no_grad()
def encode_windows(
    autoencoder: Autoencoder, waveform: Tensor | Iterable[Tensor], *, window_s: float = WINDOW_S
) -> Iterator[Tensor]:
    """Encode a sound of any length.

    Args:
        waveform: [batch, audio_channels, samples], or a stream of such pieces.
        window_s: seconds encoded at once, beside their context; rounded to what the autoencoder cuts into.

    Yields:
        [batch, latent_channels, frames], one piece a window.

    Raises:
        ValueError: `window_s` is below 0.5, or a waveform is not what the autoencoder takes.
    """
    size, fade = _frames(autoencoder, window_s)
    reach = autoencoder.reach
    yield from map_windows(
        _stream(waveform),
        lambda window, _: autoencoder.encode(window),
        step=_samples(autoencoder),
        outputs_per_step=1,
        size=size,
        before=_on_grid(reach.encode, reach.grid),
        after=reach.encode,
        fade=fade,
    )


@torch.no_grad()
def decode_windows(
    autoencoder: Autoencoder,
    latents: Tensor | Iterable[Tensor],
    *,
    window_s: float = WINDOW_S,
    num_samples: int | None = None,
) -> Iterator[Tensor]:
    """Decode latents of any length.

    Args:
        latents: [batch, latent_channels, frames], or a stream of such pieces.
        window_s: seconds decoded at once, beside their context; rounded to what the autoencoder cuts into.
        num_samples: what is cut to.

    Yields:
        [batch, audio_channels, samples], one piece a window.

    Raises:
        ValueError: `window_s` is below 0.5, or latents are not the autoencoder's.
    """
    size, fade = _frames(autoencoder, window_s)
    reach = autoencoder.reach
    left = sys.maxsize if num_samples is None else num_samples
    for piece in map_windows(
        _stream(latents),
        lambda window, first: autoencoder.decode_window(window, first_frame=first),
        step=1,
        outputs_per_step=_samples(autoencoder),
        size=size,
        before=_on_grid(reach.decode, reach.grid),
        after=reach.decode,
        fade=fade,
    ):
        if left <= 0:
            return
        piece = piece[..., :left]
        left -= piece.shape[-1]
        yield piece


def _frames(autoencoder: Autoencoder, window_s: float) -> tuple[int, int]:
    """Of a window and of a cross-fade."""
    if not window_s >= SHORTEST_S:
        raise UserError(f"window_s is {window_s}; choose {SHORTEST_S:g} or more")
    reach = autoencoder.reach
    size = _on_grid(max(1, round(window_s * autoencoder.latent_rate)), reach.grid)
    return size, 0 if reach.exact else max(1, round(FADE_S * autoencoder.latent_rate))


def _on_grid(frames: int, grid: int) -> int:
    """The next multiple."""
    return math.ceil(frames / grid) * grid


def _samples(autoencoder: Autoencoder) -> int:
    """In a latent frame."""
    return round(autoencoder.sample_rate / autoencoder.latent_rate)


def _stream(values: Tensor | Iterable[Tensor]) -> Iterable[Tensor]:
    return [values] if isinstance(values, Tensor) else values
