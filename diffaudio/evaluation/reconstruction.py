"""Reconstruction of recordings by an autoencoder: what is lost, what is still recognised, and what it costs.

embedded = embedder.embed(originals())
rows = [recordings_row(embedded, …), round_trip_row(autoencoder, originals(), embedded, embedder, …)]
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffaudio.errors import UserError
from diffaudio.evaluation.backbones.base import metric_part
from diffaudio.evaluation.embed import AudioEmbeddings, Embedder, Sound
from diffaudio.evaluation.measure import accuracy
from diffaudio.evaluation.report import Metric, Row
from diffaudio.evaluation.table import Table
from diffaudio.media.audio import PEAK, mix_channels, resample, scale_to_peak
from diffaudio.metrics.classification import is_correct
from diffaudio.metrics.reconstruction import (
    LOG_MEL_RATE,
    STFT_RATE,
    log_mel_distance_db,
    multi_resolution_stft_distance,
    si_sdr_db,
)
from diffaudio.models.autoencoders.base import Autoencoder
from diffaudio.models.autoencoders.windows import WINDOW_S, decode_windows, encode_windows

__all__ = ["measure_speed", "recordings_row", "round_trip", "round_trip_row", "worst_kind"]

BY_KIND = "log_mel_distance_db_of_"
TIMED_S = 5.0


def round_trip(
    autoencoder: Autoencoder, waveform: Tensor, sample_rate: int, *, window_s: float = WINDOW_S
) -> tuple[Tensor, Tensor]:
    """Encode and decode a sound: scaled to a peak of 0.7 before, and back to its own level after.

    Args:
        waveform: [channels, samples].
        window_s: longer sounds are encoded in windows of this length.

    Returns:
        The original at the autoencoder's rate and channels, and its reconstruction: [audio_channels, samples] each.
    """
    original = resample(mix_channels(waveform, autoencoder.audio_channels), sample_rate, autoencoder.sample_rate)
    scaled, samples = scale_to_peak(original, PEAK), original.shape[-1]
    latents = encode_windows(autoencoder, scaled[None].to(_device(autoencoder)), window_s=window_s)
    pieces = list(decode_windows(autoencoder, latents, window_s=window_s, num_samples=samples))
    largest = float(original.abs().max())
    return original, torch.cat(pieces, dim=-1)[0].float().cpu() * (largest / PEAK if largest else 1.0)


@dataclass
class _Distances:
    """Distances of each sound; the SI-SDR only of those that are not silent, and where the phase is kept."""

    log_mel_db: list[float] = field(default_factory=list)
    stft: list[float] = field(default_factory=list)
    si_sdr_db: list[float] = field(default_factory=list)

    def add(self, sound: Sound, original: Tensor, reconstruction: Tensor, autoencoder: Autoencoder) -> None:
        mono, decoded = mix_channels(sound.waveform, 1)[0], mix_channels(reconstruction, 1)[0]

        def at(rate: int) -> tuple[Tensor, Tensor]:
            return resample(mono, sound.sample_rate, rate), resample(decoded, autoencoder.sample_rate, rate)

        try:
            self.log_mel_db.append(log_mel_distance_db(*at(LOG_MEL_RATE)))
        except ValueError as error:
            raise UserError(f"{sound.name}: {error}") from error
        self.stft.append(multi_resolution_stft_distance(*at(STFT_RATE)))
        if autoencoder.keeps_phase and original.any():
            self.si_sdr_db.append(si_sdr_db(original, reconstruction))


def recordings_row(embedded: AudioEmbeddings, *, name: str, seed: int, resamples: int) -> Row:
    """The accuracy that the recordings themselves reach."""
    table = Table(seed, resamples)
    accuracy(embedded, table)
    return Row(name, "real", len(embedded), sum(embedded.seconds), table.metrics, table.left_out, table.warnings)


def round_trip_row(
    autoencoder: Autoencoder,
    originals: Iterable[Sound],
    embedded: AudioEmbeddings,
    embedder: Embedder,
    *,
    name: str,
    bytes_on_disk: int,
    seed: int,
    resamples: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Row:
    """Encode and decode recordings, and measure the result.

    Args:
        originals: the recordings, read again.
        embedded: the same, embedded by `embedder`.
        name: of the row.
        bytes_on_disk: of the autoencoder's weights.
        seed, resamples: of the intervals.
        clock: in seconds.

    Returns:
        A row with `accuracy_NAME` or `recognised_at_5_NAME` (what a classifier still recognises), `agreement_NAME`
        (share that it gives the same class as the original), `log_mel_distance_db` over all and by kind,
        `multi_resolution_stft_distance`, `si_sdr_db`, and what it costs.
    """
    distances, table = _Distances(), Table(seed, resamples)

    def reconstructions() -> Iterator[Sound]:
        for sound in originals:
            original, waveform = round_trip(autoencoder, sound.waveform, sound.sample_rate)
            distances.add(sound, original, waveform, autoencoder)
            yield Sound(waveform, autoencoder.sample_rate, sound.name, sound.prompt, sound.label)

    decoded = embedder.embed(reconstructions())
    accuracy(decoded, table)
    for backbone, logits in decoded.logits.items():
        table.add_share(f"agreement_{backbone}", is_correct(logits, embedded.logits[backbone].argmax(dim=1)))
    log_mel_db = torch.tensor(distances.log_mel_db, dtype=torch.float64)
    table.add_mean("log_mel_distance_db", log_mel_db)
    for kind in sorted({label for label in decoded.labels if label is not None}):
        table.add_mean(f"{BY_KIND}{metric_part(kind)}", log_mel_db[[label == kind for label in decoded.labels]])
    table.add_mean("multi_resolution_stft_distance", torch.tensor(distances.stft, dtype=torch.float64))
    if distances.si_sdr_db:
        table.add_mean("si_sdr_db", torch.tensor(distances.si_sdr_db, dtype=torch.float64))
    else:
        silent = "all recordings are silent" if autoencoder.keeps_phase else "the autoencoder does not keep the phase"
        table.left_out["si_sdr_db"] = silent
    _add_costs(autoencoder, bytes_on_disk, table, clock)
    return Row(name, "reconstructed", len(decoded), sum(decoded.seconds), table.metrics, table.left_out)


def _add_costs(autoencoder: Autoencoder, bytes_on_disk: int, table: Table, clock: Callable[[], float]) -> None:
    encode_s, decode_s = measure_speed(autoencoder, clock=clock)
    costs = {
        "encode_s_per_s": encode_s,
        "decode_s_per_s": decode_s,
        "latent_rate_hz": autoencoder.latent_rate,
        "latent_channels": autoencoder.latent_channels,
        "latent_values_per_s": autoencoder.latent_rate * autoencoder.latent_channels,
        "sample_rate_hz": autoencoder.sample_rate,
        "audio_channels": autoencoder.audio_channels,
        "megabytes_on_disk": bytes_on_disk / 1e6,
    }
    for name, value in costs.items():
        table.add_value(name, value, 1)


def worst_kind(row: Row) -> tuple[str, Metric] | None:
    """The kind of sound with the largest log-mel distance; None where no recording has a label."""
    kinds = [metric for metric in row.metrics if metric.name.startswith(BY_KIND)]
    worst = max(kinds, key=lambda metric: metric.value, default=None)
    return None if worst is None else (worst.name.removeprefix(BY_KIND), worst)


def measure_speed(
    autoencoder: Autoencoder,
    *,
    duration_s: float = TIMED_S,
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float]:
    """Seconds that a second of sound takes to encode, and to decode: medians of several runs after a warm-up.

    Each run takes `duration_s` seconds of noise at once.
    """
    device = _device(autoencoder)
    samples = round(duration_s * autoencoder.sample_rate)
    noise = torch.rand(1, autoencoder.audio_channels, samples, generator=torch.Generator().manual_seed(0)) - 0.5
    noise, encode_s, decode_s = noise.to(device), [], []

    def now() -> float:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return clock()

    for _ in range(repeats + 1):
        start = now()
        latents = autoencoder.encode(noise)
        between = now()
        autoencoder.decode(latents, num_samples=samples)
        encode_s.append(between - start)
        decode_s.append(now() - between)
    return statistics.median(encode_s[1:]) / duration_s, statistics.median(decode_s[1:]) / duration_s


def _device(autoencoder: Autoencoder) -> torch.device:
    return next(autoencoder.parameters()).device
