"""Losses between a reconstruction and its original, for training autoencoders.

    x, y   original and reconstruction [batch, audio_channels, samples], float32

Adversarial losses are in `discriminator.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torchaudio.functional as AF
from torch import Tensor, nn

from diffaudio.errors import UserError

__all__ = ["Balancer", "LogMels", "MelResolution", "mel_loss"]

MIN_POWER = 1e-6  # of a mel band, for windows of REFERENCE_WINDOW samples
REFERENCE_WINDOW = 1024


@dataclass(frozen=True)
class MelResolution:
    """One of the log-mel spectrograms that the loss compares.

    Attributes:
        n_fft: length of the window, in samples of the autoencoder's rate.
        hop_length: samples between two spectra.
        num_mels: mel bands from 0 Hz to `f_max`.
        f_max: in Hz; None is half the sample rate.
        weight: of this resolution in the sum.
    """

    n_fft: int
    hop_length: int
    num_mels: int
    f_max: float | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("n_fft", "hop_length", "num_mels", "weight"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} of a mel resolution is {getattr(self, name)}; it must be above 0")


class LogMels(nn.Module):
    """Log-mel spectrograms at several resolutions: 10 log10(max(power, 1e-6)).

    Powers are scaled to those of a window of 1024 samples, whatever the length of the window: at 24 kHz the resolution
    (1536, 384, 80, 8000 Hz) is that of `metrics.reconstruction.log_mel_distance_db`, up to the resampler and the ends.

    Raises:
        ValueError: bands would end above half the sample rate.
    """

    def __init__(self, resolutions: Sequence[MelResolution], sample_rate: int) -> None:
        super().__init__()
        self.resolutions = tuple(resolutions)
        for index, resolution in enumerate(self.resolutions):
            f_max = sample_rate / 2 if resolution.f_max is None else resolution.f_max
            if not 0 < f_max <= sample_rate / 2:
                raise UserError(
                    f"f_max of a mel resolution is {f_max:g} Hz; at {sample_rate} Hz it lies above 0 and "
                    f"at {sample_rate / 2:g} or below"
                )
            bins = resolution.n_fft // 2 + 1
            mel = AF.melscale_fbanks(bins, 0.0, f_max, resolution.num_mels, sample_rate).T.contiguous()
            self.register_buffer(f"mel_{index}", mel * (REFERENCE_WINDOW / resolution.n_fft) ** 2, persistent=False)
            self.register_buffer(f"window_{index}", torch.hann_window(resolution.n_fft), persistent=False)

    def forward(self, waveform: Tensor) -> list[Tensor]:
        """[batch, audio_channels, samples] -> [batch * audio_channels, mels, steps] in dB, one for each resolution."""
        levels = []
        with torch.autocast(waveform.device.type, enabled=False):
            for index, resolution in enumerate(self.resolutions):
                spectrum = torch.stft(
                    waveform.float().flatten(0, 1), resolution.n_fft, resolution.hop_length,
                    window=self.get_buffer(f"window_{index}"), center=False, return_complex=True,
                )  # fmt: skip
                power = self.get_buffer(f"mel_{index}") @ (spectrum.real.square() + spectrum.imag.square())
                levels.append(10 * power.clamp(min=MIN_POWER).log10())
        return levels


def mel_loss(x: Sequence[Tensor], y: Sequence[Tensor], resolutions: Sequence[MelResolution]) -> Tensor:
    """Weighted sum of the mean absolute differences, in dB.

    Args:
        x, y: outputs of `LogMels`.
    """
    distances = [r.weight * (a - b).abs().mean() for a, b, r in zip(x, y, resolutions, strict=True)]
    return torch.stack(distances).sum()


class Balancer(nn.Module):
    """Gives each loss its share of the gradient at the reconstruction, whatever the loss' own scale.

        g~_i = lambda_i / sum_j lambda_j  g_i / <||g_i||>

    Défossez et al. 2022 (arXiv:2210.13438), section 3.4, "Balancer": g_i is the gradient of loss i with respect to y,
    and <||g_i||> the exponential average of its norm, averaged over the items of a batch and over the processes.
    The result is divided by the batch size, so that other losses keep their weight whatever it is.

    Args:
        weights: lambda of each loss by name.
        decay: beta of the averages.
    """

    norms: Tensor
    counts: Tensor

    def __init__(self, weights: Mapping[str, float], decay: float = 0.999) -> None:
        super().__init__()
        self.weights, self.decay = dict(weights), decay
        self.register_buffer("norms", torch.zeros(len(self.weights)))
        self.register_buffer("counts", torch.zeros(len(self.weights)))

    def gradient(
        self, losses: Mapping[str, Tensor], y: Tensor, reduce: Callable[[Tensor], Tensor] = lambda norms: norms
    ) -> Tensor:
        """The balanced gradient of the losses with respect to `y`, of its shape.

        Args:
            losses: some or all of those that have weights, computed from `y`.
            reduce: computes the mean of a tensor over the processes.
        """
        gradients = {name: torch.autograd.grad(loss, y, retain_graph=True)[0] for name, loss in losses.items()}
        now = reduce(torch.stack([g.flatten(1).norm(dim=1).mean() for g in gradients.values()]))
        names = list(self.weights)
        balanced = torch.zeros_like(y)
        total = sum(self.weights[name] for name in losses)
        for norm, (name, gradient) in zip(now, gradients.items(), strict=True):
            place = names.index(name)
            self.norms[place] = self.decay * self.norms[place] + (1 - self.decay) * norm
            self.counts[place] = self.decay * self.counts[place] + (1 - self.decay)
            average = self.norms[place] / self.counts[place]
            balanced += self.weights[name] / total * gradient / (average + 1e-12)
        return balanced / len(y)
