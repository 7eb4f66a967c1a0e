"""What a reconstruction is compared with its original by, while an autoencoder is trained.

    x, y   original and reconstruction [batch, audio_channels, samples], float32

Losses of the discriminator stand in `discriminator.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torchaudio.functional as AF
from torch import Tensor, nn

from diffaudio.errors import UserError

__all__ = ["Balancer", "LogMels", "MelResolution", "mel_loss"]

FLOOR = 1e-6  # of the mel power
WINDOW = 1024  # of the metric whose power it is the floor of


@dataclass(frozen=True)
class MelResolution:
    """One of the log-mel spectrograms that are compared.

    Attributes:
        n_fft: length of the window, in samples of the autoencoder's rate.
        hop_length: samples between two spectra.
        num_mels: mel bands from 0 Hz up.
        f_max: where they end, in Hz; None is half the sample rate.
        weight: of this resolution among the others.
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

    The power is that of a window of 1024 samples, whatever the length of the window: at 24 kHz the resolution
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
            self.register_buffer(f"mel_{index}", mel * (WINDOW / resolution.n_fft) ** 2, persistent=False)
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
                levels.append(10 * power.clamp(min=FLOOR).log10())
        return levels


def mel_loss(x: Sequence[Tensor], y: Sequence[Tensor], resolutions: Sequence[MelResolution]) -> Tensor:
    """Weighted sum of the mean absolute differences, in dB.

    Args:
        x, y: what `LogMels` gives.
    """
    distances = [r.weight * (a - b).abs().mean() for a, b, r in zip(x, y, resolutions, strict=True)]
    return torch.stack(distances).sum()


class Balancer(nn.Module):
    """Gives each loss its share of the gradient that reaches the reconstruction, whatever the loss' own scale.

        g~_i = lambda_i / sum_j lambda_j  g_i / <||g_i||>

    Défossez et al. 2022 (arXiv:2210.13438), section 3.4, "Balancer": g_i is the gradient of loss i with respect to y,
    and <||g_i||> the exponential average of its norm, the mean over the items of a batch and over the processes. Of
    the batch the mean is taken, so that losses beside these weigh the same whatever its size.

    Args:
        weights: lambda by name of the loss.
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
            losses: some or all of those that have weights.
            y: what they were computed from.
            reduce: makes the mean over the processes of a tensor.
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
