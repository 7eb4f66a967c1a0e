"""From waveforms to sound files: layers mixed, sample rate, loudness and fades, in bounded memory for long sounds."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from diffaudio.atomic_io import scratch_file
from diffaudio.diffusion.settings import GenerationSettings
from diffaudio.media.audio_writer import write_stream
from diffaudio.media.file_settings import FileSettings
from diffaudio.media.mastering import LoudnessMeter, faded, resampled
from diffaudio.metrics.audio_checks import loudness_lufs
from diffaudio.pipeline_inputs import PEAK, at_loudness

__all__ = ["mix_layers", "write_long", "write_settled", "write_sound"]

CHUNK = 1 << 18  # samples of all channels that are read back at once


def mix_layers(
    sound: Tensor, layers: Sequence[tuple[Tensor, float]], sample_rate: int, loudness: float | None
) -> Tensor:
    """A sound mixed with layers, whose gains are against its loudness.

    Args:
        sound: [channels, samples].
        layers: [channels, samples] and gain in dB of each. One without loudness, such as silence, is mixed as it is.
        loudness: of the mixture in LUFS; None leaves it, but for a peak above 0.99.
    """
    reference = loudness_lufs(sound, sample_rate)
    mixture = sound.clone()
    for layer, gain_db in layers:
        change_db = reference - loudness_lufs(layer, sample_rate)
        mixture += layer * 10 ** ((gain_db + (change_db if math.isfinite(change_db) else 0.0)) / 20)
    return at_loudness(mixture, loudness, sample_rate)


def write_settled(path: Path, sound: Tensor | Iterable[Tensor], sample_rate: int, settings: GenerationSettings) -> None:
    """Write a sound by its settings: a waveform [channels, samples], or a stream of such pieces.

    Raises:
        UserError, OSError: see `audio_writer.write_stream`.
    """
    file = settings.file or FileSettings()
    if isinstance(sound, Tensor):
        write_sound(path, sound, sample_rate, file)
    else:
        write_long(path, sound, sample_rate, file, loudness=settings.loudness)


def write_sound(path: Path, waveform: Tensor, sample_rate: int, settings: FileSettings) -> None:
    """Write a waveform [channels, samples]; resampling may raise its peak, which is brought back below full scale.

    Raises:
        UserError, OSError: see `audio_writer.write_stream`.
    """
    rate = settings.sample_rate or sample_rate
    sound = np.concatenate(list(resampled([waveform.detach().cpu().float().numpy()], sample_rate, rate)), axis=1)
    peak = float(np.abs(sound).max(initial=0))
    if rate != sample_rate and peak > PEAK:
        sound *= max(PEAK, float(waveform.abs().max())) / peak if peak > 1 else 1
    write_stream(path, _faded([sound], sound.shape[1], rate, settings), rate, bit_depth=settings.bit_depth)


def write_long(
    path: Path, pieces: Iterable[Tensor], sample_rate: int, settings: FileSettings, *, loudness: float | None
) -> None:
    """Write a stream of pieces [channels, samples] while it is made, and then, its level known, the file.

    What is made goes to a hidden file of 32-bit samples beside `path`, which is removed at the end. Memory does not
    depend on the duration.

    Args:
        loudness: in LUFS; None leaves the level, but for a peak above 0.99.

    Raises:
        UserError, OSError: see `audio_writer.write_stream`.
    """
    rate = settings.sample_rate or sample_rate
    arrays = (piece.detach().cpu().float().numpy() for piece in pieces)
    meter: LoudnessMeter | None = None
    num_samples, channels = 0, 1
    with scratch_file(path) as scratch:
        with scratch.open("wb") as file:
            for piece in resampled(arrays, sample_rate, rate):
                channels = len(piece)
                meter = meter or LoudnessMeter(rate, channels)
                meter.add(piece)
                num_samples += piece.shape[1]
                file.write(np.ascontiguousarray(piece.T, dtype=np.float32).tobytes())
                file.flush()
        gain = 1.0 if meter is None else _gain(meter, loudness)
        louder = (gain * chunk for chunk in _read_back(scratch, channels))
        write_stream(path, _faded(louder, num_samples, rate, settings), rate, bit_depth=settings.bit_depth)


def _gain(meter: LoudnessMeter, loudness: float | None) -> float:
    if meter.peak == 0:
        return 1.0
    measured = meter.lufs()
    wanted = 1.0 if loudness is None or math.isnan(measured) else 10 ** ((loudness - measured) / 20)
    return min(wanted, PEAK / meter.peak)


def _read_back(file: Path, channels: int) -> Iterator[np.ndarray]:
    with file.open("rb") as opened:
        while len(values := np.frombuffer(opened.read(4 * channels * (CHUNK // channels)), np.float32)):
            yield values.reshape(-1, channels).T


def _faded(chunks: Iterable[np.ndarray], num_samples: int, rate: int, settings: FileSettings) -> Iterator[np.ndarray]:
    return faded(chunks, num_samples, rate, fade_in_s=settings.fade_in, fade_out_s=settings.fade_out)
