"""Front ends: compute features [batch, channels, steps] of a waveform or its log-mel spectrogram.

waveform     sample-level CNN: filters of 3 samples, then pooling by 3 (Lee et al. 2017, arXiv:1703.01789)
mel_musical  musically motivated filters: vertical ones for timbre, at any pitch, and horizontal ones
for loudness over time (Pons et al. 2018, arXiv:1711.02520, sec. 2.2)
mel_musicnn  the same as its authors published it, with fewer shapes and all maxima over the bands (Pons & Serra 2019,
             "musicnn: pre-trained convolutional neural networks for music audio tagging", arXiv:1909.06654)
mel_small    small rectangular filters, as for images (Choi et al. 2016, arXiv:1606.00298)
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FRONT_ENDS"]


class _Waveform(nn.Module):
    """Sample-level CNN: [batch, samples] -> [batch, channels, steps], one step for 2187 samples."""

    def __init__(self, width: int, num_mels: int) -> None:
        super().__init__()
        widths = [width, width, 2 * width, 2 * width, 4 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = [nn.Conv1d(1, width, 3, stride=3, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        for in_width, out_width in pairwise(widths):
            layers += [nn.Conv1d(in_width, out_width, 3, padding=1, bias=False), nn.BatchNorm1d(out_width), nn.ReLU()]
            layers += [nn.MaxPool1d(3)]
        self.layers = nn.Sequential(*layers)
        self.channels = widths[-1]

    def forward(self, waveform: Tensor) -> Tensor:
        return self.layers(waveform[:, None])


class _MelMusical(nn.Module):
    """Vertical and horizontal filters: [batch, mels, steps] -> [batch, channels, steps / 4].

    A vertical filter spans 90 or 40 % of the bands and 1, 3 or 7 steps; its maximum over the bands is kept, so that
    it detects a timbre at any pitch. A horizontal one sees the mean over the bands, over up to 165 steps.
    """

    def __init__(self, width: int, num_mels: int) -> None:
        super().__init__()
        shapes = [(round(share * num_mels), steps) for share in (0.9, 0.4) for steps in (7, 3, 1)]
        self.vertical = nn.ModuleList(
            nn.Conv2d(1, width, shape, padding=(0, shape[1] // 2), bias=False) for shape in shapes
        )
        self.horizontal = nn.ModuleList(
            nn.Conv1d(1, width // 2, steps, padding="same", bias=False) for steps in (165, 129, 65, 33)
        )
        self.channels = 8 * width
        self.norm_in = nn.BatchNorm2d(1)
        self.norm = nn.BatchNorm1d(self.channels)

    def forward(self, mel: Tensor) -> Tensor:
        mel = self.norm_in(mel[:, None])
        features = [filters(mel).amax(dim=2) for filters in self.vertical]
        features += [filters(mel.mean(dim=2)) for filters in self.horizontal]
        return F.max_pool1d(F.relu(self.norm(torch.cat(features, dim=1))), 4, ceil_mode=True)


class _MelMusicnn(nn.Module):
    """musicnn's vertical and horizontal filters: [batch, mels, steps] -> [batch, 11 width, steps].

    A vertical filter spans 40 or 70 % of the bands and 7 steps, a horizontal one a band and 128, 64 or 32 steps. The
    maximum over the bands is taken after the rectifier and the normalisation. musicnn has 96 bands and a width of 51.
    """

    def __init__(self, width: int, num_mels: int) -> None:
        super().__init__()
        shapes = [(int(0.4 * num_mels), 7, 4 * width), (int(0.7 * num_mels), 7, 4 * width)]
        shapes += [(1, steps, width) for steps in (128, 64, 32)]
        self.filters = nn.ModuleList(nn.Conv2d(1, channels, (bands, steps)) for bands, steps, channels in shapes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels, eps=1e-3) for _, _, channels in shapes)
        self.norm_in = nn.BatchNorm2d(1, eps=1e-3)
        self.channels = 11 * width

    def forward(self, mel: Tensor) -> Tensor:
        x = self.norm_in(mel[:, None])
        features = []
        for filters, norm in zip(self.filters, self.norms, strict=True):
            beyond = filters.get_parameter("weight").shape[-1] - 1
            padded = F.pad(
                x, (beyond // 2, beyond - beyond // 2)
            )  # as many steps as before; an even filter looks ahead
            features.append(norm(F.relu(filters(padded))).amax(dim=2))
        return torch.cat(features, dim=1)


class _MelSmall(nn.Module):
    """3 x 3 filters: [batch, mels, steps] -> [batch, channels, steps / 8].

    The remaining bands are reduced twice: by their maximum, at any pitch, and by a layer that knows their position.
    """

    def __init__(self, width: int, num_mels: int) -> None:
        super().__init__()
        self.channels = 8 * width
        layers: list[nn.Module] = [nn.BatchNorm2d(1), *_conv2d(1, width)]
        for in_width in (width, 2 * width, 4 * width):
            layers += [*_conv2d(in_width, 2 * in_width, stride=2), *_conv2d(2 * in_width, 2 * in_width)]
        self.layers = nn.Sequential(*layers)
        self.join = nn.Conv1d(self.channels * -(-num_mels // 8), self.channels, 1, bias=False)
        self.norm = nn.BatchNorm1d(self.channels)

    def forward(self, mel: Tensor) -> Tensor:
        features = self.layers(mel[:, None].contiguous(memory_format=torch.channels_last))
        return features.amax(dim=2) + F.relu(self.norm(self.join(features.flatten(1, 2))))


def _conv2d(in_width: int, out_width: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(in_width, out_width, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(out_width), nn.ReLU()]


FRONT_ENDS: dict[str, Any] = {
    "waveform": _Waveform, "mel_musical": _MelMusical, "mel_musicnn": _MelMusicnn, "mel_small": _MelSmall
}  # fmt: skip
