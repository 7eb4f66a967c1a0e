"""The reconstruction of a sound file by an autoencoder: any length, in bounded memory."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffaudio.errors import UserError
from diffaudio.media.audio import PEAK
from diffaudio.media.chunked import read_chunks, write_chunks
from diffaudio.metrics.reconstruction import LOG_MEL_RATE, MIN_DURATION_S, log_mel_distance_of_streams_db
from diffaudio.models.autoencoders import Autoencoder
from diffaudio.models.autoencoders.windows import WINDOW_S, decode_windows, encode_windows

__all__ = ["Reconstruction", "reconstruct_file"]


@dataclass(frozen=True)
class Reconstruction:
    """The result of `reconstruct_file`.

    Attributes:
        duration_s: of the sound.
        log_mel_distance_db: between the file read and the file written.
        encode_s, decode_s: how long it took.
        clipped: samples beyond full scale, which the file cannot hold.
    """

    duration_s: float
    log_mel_distance_db: float
    encode_s: float
    decode_s: float
    clipped: int


def reconstruct_file(
    source: Path,
    target: Path,
    autoencoder: Autoencoder,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    window_s: float = WINDOW_S,
    clock: Callable[[], float] = time.perf_counter,
) -> Reconstruction:
    """Encode and decode a sound file; the result has the autoencoder's rate and channels, and the file's level.

    The autoencoder gets the sound at a peak of 0.7, as in training; the result is scaled back. The file is
    read several times rather than held.

    Args:
        source: a sound file, or a video.
        target: in a format of `audio_formats.FORMATS`, written whole or not at all.
        start_s, duration_s: which part of it; None is everything after `start_s`.
        window_s: longer sounds are encoded in windows of this length.

    Raises:
        ValueError: the file cannot be read, holds less than 33 ms of sound there, or `target` cannot be written.
    """
    device = next(autoencoder.parameters()).device

    def read(sample_rate: int, channels: int) -> Iterator[Tensor]:
        return read_chunks(source, sample_rate=sample_rate, channels=channels, start_s=start_s, duration_s=duration_s)

    def original() -> Iterator[Tensor]:
        return read(autoencoder.sample_rate, autoencoder.audio_channels)

    largest, samples = _peak(original(), source)
    seconds = samples / autoencoder.sample_rate
    if seconds < MIN_DURATION_S:
        raise UserError(f"{source}: {seconds:.3f} s of sound from {start_s:g} s on; {MIN_DURATION_S:.3f} s are needed")
    level = largest / PEAK if largest else 1.0
    spent: dict[str, float] = defaultdict(float)
    scaled = _timed((piece[None].to(device) / level for piece in original()), "read", spent, clock)
    latents = _timed(encode_windows(autoencoder, scaled, window_s=window_s), "encode", spent, clock)
    decoded = decode_windows(autoencoder, latents, window_s=window_s, num_samples=samples)
    pieces = (piece[0].float().cpu() * level for piece in _timed(decoded, "decode", spent, clock))
    write_chunks(target, _counting_clipped(pieces, spent), autoencoder.sample_rate)

    def written() -> Iterator[Tensor]:
        return read_chunks(target, sample_rate=LOG_MEL_RATE, channels=1)

    # both at the scale that brings the original to a peak of 0.7, as `log_mel_distance_db` does it
    peak, _ = _peak(read(LOG_MEL_RATE, 1), source)
    scale = PEAK / peak if peak else 1.0
    distance = log_mel_distance_of_streams_db(_scaled(read(LOG_MEL_RATE, 1), scale), _scaled(written(), scale))
    # each stream's time holds that of the one it is fed by
    encode_s, decode_s = spent["encode"] - spent["read"], spent["decode"] - spent["encode"]
    return Reconstruction(seconds, distance, encode_s, decode_s, int(spent["clipped"]))


def _peak(pieces: Iterable[Tensor], path: Path) -> tuple[float, int]:
    """Largest sample, and how many there are."""
    largest, samples = 0.0, 0
    for piece in pieces:
        if not piece.isfinite().all():
            raise UserError(f"{path}: the sound is damaged, not all samples are numbers")
        largest = max(largest, float(piece.abs().max()) if piece.numel() else 0.0)
        samples += piece.shape[-1]
    return largest, samples


def _scaled(pieces: Iterable[Tensor], scale: float) -> Iterator[Tensor]:
    """[1, samples] pieces -> [samples]"""
    return (piece[0] * scale for piece in pieces)


def _timed(
    pieces: Iterable[Tensor], name: str, spent: dict[str, float], clock: Callable[[], float]
) -> Iterator[Tensor]:
    """The same stream; the seconds that it takes are added to `spent`."""
    stream = iter(pieces)
    while True:
        start = clock()
        piece = next(stream, None)
        if piece is not None and piece.device.type != "cpu":
            torch.accelerator.synchronize(piece.device)
        spent[name] += clock() - start
        if piece is None:
            return
        yield piece


def _counting_clipped(pieces: Iterable[Tensor], spent: dict[str, float]) -> Iterator[Tensor]:
    for piece in pieces:
        spent["clipped"] += int((piece.abs() > 1).sum())
        yield piece
