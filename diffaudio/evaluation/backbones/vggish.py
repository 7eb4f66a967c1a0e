"""VGGish (Hershey et al. 2017, arXiv:1609.09430), the backbone of the first Fréchet audio distance (arXiv:1812.08466).

The weights are those of the PyTorch port torchvggish, as published (vggish-10086976.pth), or in safetensors under its
keys, `features.0.weight` … `embeddings.4.bias`. Embeddings are taken before the last ReLU and
without the PCA that AudioSet's release adds, as in Google's frechet_audio_distance. There is one for every 0.96 s; a
rest that fills no window is left out, and a shorter sound is padded with silence.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffaudio.evaluation.backbones.base import Kinds, at_least, load_weights, sha256
from diffaudio.evaluation.backbones.htk_mel import htk_mel_bands
from diffaudio.media.audio import RESAMPLER

__all__ = ["VGGish"]

SAMPLE_RATE = 16000
WINDOW, HOP, FFT = 400, 160, 512
FRAMES, BANDS = 96, 64
LOW_HZ, HIGH_HZ = 125.0, 7500.0
LOG_OFFSET = 0.01


class VGGish:
    """A `Backbone` with an embedding for every 0.96 s."""

    name = "vggish"
    sample_rate = SAMPLE_RATE
    resampler = RESAMPLER
    is_multilabel = False
    embedding_dim = 128
    labels: list[str] | None = None
    kinds: Kinds | None = None

    def __init__(self, weights: Path, config: dict[str, Any], device: torch.device | str = "cpu") -> None:
        self.network = _VGG()
        load_weights(self.network, weights)
        self.network.to(device)
        self.checkpoint = sha256(weights)
        self._device = device

    @torch.no_grad()
    def embed(self, waveforms: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """See `Backbone`."""
        return [self.network(log_mel_windows(waveform).to(self._device)).cpu() for waveform in waveforms], None


class _VGG(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 1
        for step in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M"):
            if isinstance(step, int):
                layers += [nn.Conv2d(width, step, 3, padding=1), nn.ReLU()]
                width = step
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 4 * 6, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 128)
        )

    def forward(self, windows: Tensor) -> Tensor:
        """[windows, 96, 64] -> [windows, 128]"""
        found = self.features(windows[:, None])
        return self.embeddings(found.permute(0, 2, 3, 1).flatten(1))  # the order of TensorFlow's weights


def log_mel_windows(waveform: Tensor) -> Tensor:
    """[samples] at 16 kHz -> [windows, 96, 64]: log of the mel bands of the magnitude, in steps of 10 ms."""
    waveform = at_least(waveform.float(), WINDOW + (FRAMES - 1) * HOP)
    frames = waveform.unfold(0, WINDOW, HOP) * torch.hann_window(WINDOW)
    mel = torch.fft.rfft(frames, FFT).abs() @ htk_mel_bands(SAMPLE_RATE, FFT, BANDS, LOW_HZ, HIGH_HZ)
    whole = mel[: len(mel) // FRAMES * FRAMES]
    return (whole + LOG_OFFSET).log().unflatten(0, (-1, FRAMES))
