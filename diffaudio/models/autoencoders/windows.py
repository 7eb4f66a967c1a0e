"""Long sound: encoded and decoded in windows, so that memory does not depend on its length.

    latents = torch.cat(list(encode_windows(autoencoder, waveform)), dim=-1)
    pieces = decode_windows(autoencoder, encode_windows(autoencoder, pieces))     # a stream from end to end

Every window is processed with as much context as the receptive field of the autoencoder (`Autoencoder.reach`), and the
context is cut off again. The difference from encoding and decoding the whole at once, relative to the RMS of the whole
(`tests/media/test_chunked.py` checks it, on random weights):

    spectral, Oobleck, EnCodec 48 kHz    below 1e-3 anywhere: rounding; nothing beyond the context has an effect
    EnCodec 24 kHz                       below 1e-3 anywhere: its LSTM forgets slowly; context of a second
    MMAudio                              below 0.01 in RMS: attention over everything; a second, and a cross-fade
    AudioLDM's mel VAE                   below 0.5 in RMS: attention, and normalisation by statistics of the whole

How far published weights of the last three look is not known; listen to `diffaudio reconstruct --window` with them.
With the last two, a window of ten seconds sounds like a sound of ten seconds, as in their training, rather than like
the whole.

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
MIN_WINDOW_S = 0.5
FADE_S = 0.25  # between windows that differ


@torch.no_grad()
def encode_windows(
    autoencoder: Autoencoder, waveform: Tensor | Iterable[Tensor], *, window_s: float = WINDOW_S
) -> Iterator[Tensor]:
    """Encode a sound of any length.

    Args:
        waveform: [batch, audio_channels, samples], or a stream of such pieces.
        window_s: seconds encoded at once, without context; rounded to the autoencoder's grid.

    Yields:
        [batch, latent_channels, frames], one piece for each window.

    Raises:
        ValueError: `window_s` is below 0.5, or the waveform has another shape than the autoencoder takes.
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
    shares: list[Tensor] | None = None,
) -> Iterator[Tensor]:
    """Decode latents of any length.

    Args:
        latents: [batch, latent_channels, frames], or a stream of such pieces.
        window_s: seconds decoded at once, without context; rounded to the autoencoder's grid.
        num_samples: length to cut to.
        shares: a list to which the share out of range of each window is added, see `Autoencoder.decode_bounded`.

    Yields:
        [batch, audio_channels, samples], one piece for each window.

    Raises:
        ValueError: `window_s` is below 0.5, or the latents have another shape than the autoencoder's.
    """
    size, fade = _frames(autoencoder, window_s)
    reach = autoencoder.reach
    remaining = sys.maxsize if num_samples is None else num_samples

    def decode(window: Tensor, first: int) -> Tensor:
        waveform, share = autoencoder.decode_window_bounded(window, first_frame=first)
        if shares is not None:
            shares.append(share)
        return waveform

    for piece in map_windows(
        _stream(latents),
        decode,
        step=1,
        outputs_per_step=_samples(autoencoder),
        size=size,
        before=_on_grid(reach.decode, reach.grid),
        after=reach.decode,
        fade=fade,
    ):
        if remaining <= 0:
            return
        piece = piece[..., :remaining]
        remaining -= piece.shape[-1]
        yield piece


def _frames(autoencoder: Autoencoder, window_s: float) -> tuple[int, int]:
    """Frames of a window and of a cross-fade."""
    if not window_s >= MIN_WINDOW_S:
        raise UserError(f"window_s is {window_s}; choose {MIN_WINDOW_S:g} or more")
    reach = autoencoder.reach
    size = _on_grid(max(1, round(window_s * autoencoder.latent_rate)), reach.grid)
    return size, 0 if reach.exact else max(1, round(FADE_S * autoencoder.latent_rate))


def _on_grid(frames: int, grid: int) -> int:
    """The next multiple of the grid."""
    return math.ceil(frames / grid) * grid


def _samples(autoencoder: Autoencoder) -> int:
    """Samples of a latent frame."""
    return round(autoencoder.sample_rate / autoencoder.latent_rate)


def _stream(values: Tensor | Iterable[Tensor]) -> Iterable[Tensor]:
    return [values] if isinstance(values, Tensor) else values
