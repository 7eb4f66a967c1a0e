"""How an autoencoder in training does on clips that are held out: distances, and sounds to listen to."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffaudio.atomic_io import atomic_folder
from diffaudio.config import Count, NonNegativeCount, Positive
from diffaudio.corpus.datasets.sampler import ClipOrder
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
from diffaudio.training.run_folder import RunLog

__all__ = ["ValidationSettings", "validate"]


@dataclass
class ValidationSettings:
    """Clips that are held out, there and back, where `held_out` is above 0; before the first step, too.

    Attributes:
        every: steps between.
        clips: how many, at most; always the same.
        duration_s: what is longer is cut.
        sounds: how many of the reconstructions are kept, to hear and to see beside their originals.
    """

    every: Count = 500
    clips: Count = 64
    duration_s: Positive = 5.0
    sounds: NonNegativeCount = 4


def validate(
    autoencoder: Autoencoder,
    dataset: WaveformDataset,
    settings: ValidationSettings,
    *,
    run: Path,
    log: RunLog,
    step: int,
) -> None:
    """Measure reconstructions; means go into the log, some of the sounds there and to samples/ of the run folder."""
    distances, kept = [], []
    for original, made in _round_trips(autoencoder, dataset, settings):
        distances.append(_distances(original, made, dataset.sample_rate))
        if len(kept) < settings.sounds:
            kept.append((original, made))
    log_mel_db, stft = torch.tensor(distances, dtype=torch.float64).mean(dim=0).tolist()
    values = {"held_out_log_mel_distance_db": log_mel_db, "held_out_multi_resolution_stft_distance": stft}
    log.scalars(step, values)
    if kept:
        with atomic_folder(run / "samples" / f"step_{step:08d}") as folder:
            for index, pair in enumerate(kept):
                _keep(pair, dataset.sample_rate, index, folder=folder, log=log, step=step)


def _round_trips(
    autoencoder: Autoencoder, dataset: WaveformDataset, settings: ValidationSettings
) -> Iterator[tuple[Tensor, Tensor]]:
    """Originals and reconstructions [audio_channels, samples]."""
    device = next(autoencoder.parameters()).device
    for clip in ClipOrder((len(dataset),)).clips(0, min(settings.clips, len(dataset))).tolist():
        original = dataset.stretch(clip, 0, round(settings.duration_s * dataset.sample_rate))
        latents = autoencoder.encode(original[None].to(device))
        made = autoencoder.decode(latents, num_samples=original.shape[1])
        yield original, made[0].float().cpu()


def _distances(original: Tensor, made: Tensor, sample_rate: int) -> tuple[float, float]:
    pair = torch.stack([mix_channels(waveform, 1)[0] for waveform in (original, made)])
    return (
        log_mel_distance_db(*resample(pair, sample_rate, LOG_MEL_RATE)),
        multi_resolution_stft_distance(*resample(pair, sample_rate, STFT_RATE)),
    )


def _keep(
    pair: tuple[Tensor, Tensor], sample_rate: int, index: int, *, folder: Path, log: RunLog, step: int
) -> None:  # fmt: skip
    original, made = pair
    figure = comparison_figure([("original", original), (f"after {step} steps", made)], sample_rate)
    write_audio(folder / f"{index:02d}_original.wav", original, sample_rate)
    write_audio(folder / f"{index:02d}.wav", made, sample_rate)
    figure.savefig(folder / f"{index:02d}.png")
    log.sound(step, f"held_out/{index:02d}", made, sample_rate, figure)
