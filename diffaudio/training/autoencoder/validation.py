"""Validation of an autoencoder in training: round trips of held-out clips, measured and kept to listen to."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffaudio.atomic_io import atomic_folder
from diffaudio.config import Count, NonNegativeCount, Positive
from diffaudio.corpus.datasets.clip_order import ClipOrder
from diffaudio.corpus.datasets.waveforms import WaveformDataset
from diffaudio.media.audio import mix_channels, resample, write_audio
from diffaudio.media.spectrogram_plot import comparison_figure
from diffaudio.metrics.reconstruction import (
    LOG_MEL_RATE,
    STFT_RATE,
    log_mel_distance_db,
    multi_resolution_stft_distance,
)
from diffaudio.models.autoencoders import Autoencoder
from diffaudio.training.metrics_log import MetricsLog

__all__ = ["ValidationSettings", "measure_round_trips"]


@dataclass
class ValidationSettings:
    """Round trips of held-out clips, where `held_out` is above 0; also before the first step.

    Attributes:
        every: steps between.
        clips: how many, at most; always the same.
        duration_s: longer clips are cut.
        sounds: how many reconstructions are kept, with spectrograms, beside their originals.
    """

    every: Count = 500
    clips: Count = 64
    duration_s: Positive = 5.0
    sounds: NonNegativeCount = 4


def measure_round_trips(
    autoencoder: Autoencoder,
    dataset: WaveformDataset,
    settings: ValidationSettings,
    *,
    run: Path,
    log: MetricsLog,
    step: int,
) -> dict[str, float]:
    """Measure reconstructions; some of them go to samples/ of the run folder and to TensorBoard.

    Returns:
        The mean distances, by name.
    """
    distances, kept = [], []
    for original, reconstruction in _round_trips(autoencoder, dataset, settings):
        distances.append(_distances(original, reconstruction, dataset.sample_rate))
        if len(kept) < settings.sounds:
            kept.append((original, reconstruction))
    if kept:
        with atomic_folder(run / "samples" / f"step_{step:08d}") as folder:
            for index, pair in enumerate(kept):
                _write_pair(pair, dataset.sample_rate, index, folder=folder, log=log, step=step)
    log_mel_db, stft = torch.tensor(distances, dtype=torch.float64).mean(dim=0).tolist()
    return {"held_out_log_mel_distance_db": log_mel_db, "held_out_multi_resolution_stft_distance": stft}


def _round_trips(
    autoencoder: Autoencoder, dataset: WaveformDataset, settings: ValidationSettings
) -> Iterator[tuple[Tensor, Tensor]]:
    """Originals and reconstructions [audio_channels, samples]."""
    device = next(autoencoder.parameters()).device
    for clip in ClipOrder((len(dataset),)).clips(0, min(settings.clips, len(dataset))).tolist():
        original = dataset.segment(clip, 0, round(settings.duration_s * dataset.sample_rate))
        latents = autoencoder.encode(original[None].to(device))
        reconstruction = autoencoder.decode(latents, num_samples=original.shape[1])
        yield original, reconstruction[0].float().cpu()


def _distances(original: Tensor, reconstruction: Tensor, sample_rate: int) -> tuple[float, float]:
    pair = torch.stack([mix_channels(waveform, 1)[0] for waveform in (original, reconstruction)])
    return (
        log_mel_distance_db(*resample(pair, sample_rate, LOG_MEL_RATE)),
        multi_resolution_stft_distance(*resample(pair, sample_rate, STFT_RATE)),
    )


def _write_pair(
    pair: tuple[Tensor, Tensor], sample_rate: int, index: int, *, folder: Path, log: MetricsLog, step: int
) -> None:  # fmt: skip
    original, reconstruction = pair
    figure = comparison_figure([("original", original), (f"after {step} steps", reconstruction)], sample_rate)
    write_audio(folder / f"{index:02d}_original.wav", original, sample_rate)
    write_audio(folder / f"{index:02d}.wav", reconstruction, sample_rate)
    figure.savefig(folder / f"{index:02d}.png")
    log.audio(step, f"held_out/{index:02d}", reconstruction, sample_rate, figure)
