"""PANNs' Cnn14 (Kong et al. 2020, arXiv:1912.10211), trained to tag the 527 classes of AudioSet.

The weights are the authors' checkpoint as published (Cnn14_mAP=0.431.pth), or safetensors under the keys of its 'model'
entry; those of the fixed front end are not needed. With AudioSet's class_labels_indices.csv beside it the classes have
names, and it recognises the kinds of configs/audioset.

One embedding a sound, of 2048 dimensions (after fc1 and its ReLU), and logits before the sigmoid.
"""

import csv
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu

from diffaudio.errors import UserError
from diffaudio.evaluation.backbones.audioset import are_audiosets, read_kinds
from diffaudio.evaluation.backbones.base import Kinds, at_least, load_weights, of_equal_length, sha256
from diffaudio.media.audio import RESAMPLER

__all__ = ["PannsCnn14"]

SAMPLE_RATE = 32000
FFT, HOP, BANDS = 1024, 320, 64
LOW_HZ, HIGH_HZ = 50.0, 14000.0
CLASSES = 527
MIN_SAMPLES = SAMPLE_RATE  # shorter sounds are padded with silence: the network halves the steps five times


class PannsCnn14:
    """A `Backbone` with one embedding a sound, and logits."""

    name = "panns_cnn14"
    sample_rate = SAMPLE_RATE
    resampler = RESAMPLER
    is_multilabel = True
    embedding_dim = 2048

    def __init__(self, weights: Path, config: dict[str, Any], device: torch.device | str = "cpu") -> None:
        self.network = _Cnn14()
        load_weights(self.network, weights, ignored=("spectrogram_extractor.", "logmel_extractor."))
        self.network.to(device)
        self.checkpoint = sha256(weights)
        self.labels = _read_labels(weights.parent / "class_labels_indices.csv")
        self.kinds: Kinds | None = read_kinds(self.labels) if self.labels and are_audiosets(self.labels) else None
        self._device = device

    @torch.no_grad()
    def embed(self, waveforms: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """See `Backbone`."""
        padded = [at_least(waveform.float(), MIN_SAMPLES) for waveform in waveforms]
        embeddings, logits = torch.empty(len(padded), self.embedding_dim), torch.empty(len(padded), CLASSES)
        for places, batch in of_equal_length(padded, batch_size=8):
            found = self.network(log_mel(batch).to(self._device))
            embeddings[places], logits[places] = found[0].cpu(), found[1].cpu()
        return list(embeddings[:, None]), logits


class _Block(nn.Module):
    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))


class _Cnn14(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = (1, 64, 128, 256, 512, 1024, 2048)
        self.bn0 = nn.BatchNorm2d(BANDS)
        for index in range(1, 7):
            setattr(self, f"conv_block{index}", _Block(widths[index - 1], widths[index]))
        self.fc1 = nn.Linear(2048, 2048)
        self.fc_audioset = nn.Linear(2048, CLASSES)

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, steps, bands] -> embeddings [batch, 2048], logits [batch, 527]"""
        x = self.bn0(mel[:, None].transpose(1, 3)).transpose(1, 3)
        for index in range(1, 7):
            x = getattr(self, f"conv_block{index}")(x)
            x = avg_pool2d(x, 2) if index < 6 else x
        x = x.mean(dim=3)
        embeddings = relu(self.fc1(x.amax(dim=2) + x.mean(dim=2)))
        return embeddings, self.fc_audioset(embeddings)


def log_mel(waveforms: Tensor) -> Tensor:
    """[batch, samples] at 32 kHz -> power of the mel bands in dB [batch, steps, bands], in steps of 10 ms."""
    window = torch.hann_window(FFT)
    spectrum = torch.stft(waveforms, FFT, HOP, window=window, pad_mode="reflect", return_complex=True)
    return 10 * (spectrum.abs().square().transpose(1, 2) @ _mel_bands()).clamp(min=1e-10).log10()


@cache
def _mel_bands() -> Tensor:
    """[bins, bands]"""
    bins = FFT // 2 + 1
    return torchaudio.functional.melscale_fbanks(bins, LOW_HZ, HIGH_HZ, BANDS, SAMPLE_RATE, "slaney", "slaney")


def _read_labels(path: Path) -> list[str] | None:
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        names = [row.get("display_name") or "" for row in csv.DictReader(file)]
    if len(names) != CLASSES or not all(names):
        raise UserError(f"{path}: holds {len(names)} classes, wanted are {CLASSES} with a display_name each")
    return names
