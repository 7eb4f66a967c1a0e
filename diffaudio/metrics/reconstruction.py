"""How far a reconstruction is from its original: distances between two waveforms.

No single distance suffices: that of spectrograms can fall while noise turns into tones. `evaluation.reconstruction`
adds what a classifier still recognises.

    x, y     original and reconstruction [samples], mono, of one sample rate
    X, Y     magnitudes of their short-time Fourier transforms [bins, steps]
"""

import math
from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor
from torchaudio.transforms import MelSpectrogram

from diffaudio.errors import UserError
from diffaudio.media.chunked import map_windows

__all__ = [
    "LOG_MEL_RATE",
    "MIN_DURATION_S",
    "STFT_RATE",
    "log_mel_distance_db",
    "log_mel_distance_of_streams_db",
    "multi_resolution_stft_distance",
    "si_sdr_db",
]

LOG_MEL_RATE = 16000
N_FFT, HOP, NUM_MELS = 1024, 256, 80
FLOOR = 1e-6  # of the mel power
PEAK = 0.7
MIN_DURATION_S = (N_FFT // 2 + 1) / LOG_MEL_RATE  # the STFT reflects this much at both ends

STFT_RATE = 24000
# FFT size, window, hop: Yamamoto et al., table 1
RESOLUTIONS = ((1024, 600, 120), (2048, 1200, 240), (512, 240, 50))
POWER_FLOOR = 1e-7
MAX_DB = 100.0  # larger SI-SDRs are cut off


def log_mel_distance_db(original: Tensor, reconstruction: Tensor) -> float:
    """Mean absolute difference of the log-mel spectrograms, in dB.

    n_fft 1024, hop 256, 80 mel bands (torchaudio's MelSpectrogram), 10 log10(max(power, 1e-6)). The original is scaled
    to a peak of 0.7 first, the reconstruction by the same factor, so that a wrong level counts. Its own peak would say
    more of the phase than of the level: one click with another phase would count as another level of the whole sound.

    Args:
        original, reconstruction: [samples] at 16 kHz; the longer is cut.

    Raises:
        ValueError: they are shorter than 33 ms.
    """
    pair = _pair(original, reconstruction)
    largest = float(pair[0].abs().max())
    return float(_difference_by_step(pair * (PEAK / largest) if largest else pair).double().mean())


def log_mel_distance_of_streams_db(original: Iterable[Tensor], reconstruction: Iterable[Tensor]) -> float:
    """`log_mel_distance_db` of sounds of any length.

    Args:
        original, reconstruction: [samples] pieces at 16 kHz, both scaled so that the original's peak is 0.7.

    Raises:
        ValueError: they are shorter than 33 ms.
    """
    pairs = (_pair(x, y) for x, y in zip(_even(original), _even(reconstruction), strict=False))
    context = N_FFT // 2 // HOP
    total, steps = 0.0, 0
    for piece in map_windows(
        pairs, lambda window, _: _difference_by_step(window),
        step=HOP, outputs_per_step=1, size=512, before=context, after=context,
    ):  # fmt: skip
        total, steps = total + float(piece.double().sum()), steps + piece.shape[-1]
    return total / steps


def multi_resolution_stft_distance(original: Tensor, reconstruction: Tensor) -> float:
    """Spectral convergence plus log-magnitude distance, averaged over three resolutions.

    Yamamoto, Song & Kim 2020 (arXiv:1910.11480), eq. 3 to 6: ||X - Y||_F / ||X||_F + mean |log X - log Y|, at their
    FFT sizes, windows and hops, which are made for 24 kHz. Magnitudes are at least sqrt(1e-7), as in the authors'
    successors' code. 0 for equal sounds.

    Args:
        original, reconstruction: [samples] at 24 kHz; the longer is cut.
    """
    pair = _pair(original, reconstruction)
    distances = []
    for n_fft, window_length, hop in RESOLUTIONS:
        window = torch.hann_window(window_length)
        spectrum = torch.stft(
            pair, n_fft, hop, window_length, window, pad_mode="constant", return_complex=True
        )  # constant: sounds may be shorter than half a window
        x, y = spectrum.abs().clamp(min=POWER_FLOOR**0.5)
        convergence = (x - y).norm(dtype=torch.float64) / x.norm(dtype=torch.float64)
        distances.append(float(convergence + (x / y).log().abs().mean(dtype=torch.float64)))
    return sum(distances) / len(distances)


def si_sdr_db(original: Tensor, reconstruction: Tensor) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, at most 100 and at least -100.

    10 log10(||a x||^2 / ||a x - y||^2), a = <y, x> / ||x||^2: Le Roux et al. 2019 (arXiv:1811.02508), eq. 3. It
    compares waveforms sample by sample, and so makes sense only where the phase is kept.

    Args:
        original, reconstruction: [..., samples] of the same size.

    Raises:
        ValueError: the original is silent.
    """
    x, y = original.double(), reconstruction.double()
    power = x.square().sum()
    if power == 0:
        raise UserError("the original is silent; an SI-SDR needs sound")
    target = (x * y).sum() / power * x
    ratio = target.square().sum() / (target - y).square().sum().clamp(min=1e-30)
    return min(max(10 * math.log10(max(float(ratio), 1e-30)), -MAX_DB), MAX_DB)


def _pair(x: Tensor, y: Tensor) -> Tensor:
    """[2, samples]"""
    length = min(x.shape[-1], y.shape[-1])
    return torch.stack([x[..., :length], y[..., :length]]).float()


def _even(pieces: Iterable[Tensor]) -> Iterable[Tensor]:
    """The same stream in pieces of a second."""
    size = LOG_MEL_RATE
    return map_windows(pieces, lambda window, _: window, step=1, outputs_per_step=1, size=size, before=0, after=0)


def _difference_by_step(pair: Tensor) -> Tensor:
    """[2, samples] -> [steps], the mean over mel bands."""
    if pair.shape[1] < round(MIN_DURATION_S * LOG_MEL_RATE):
        raise UserError(f"{pair.shape[1] / LOG_MEL_RATE:.3f} s of sound are too short; give {MIN_DURATION_S:.3f} s")
    x, y = 10 * _mel()(pair).clamp(min=FLOOR).log10()
    return (x - y).abs().mean(dim=0)


@lru_cache
def _mel() -> MelSpectrogram:
    return MelSpectrogram(LOG_MEL_RATE, N_FFT, hop_length=HOP, n_mels=NUM_MELS)
