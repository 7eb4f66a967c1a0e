"""YAMNet (Plakal & Ellis 2020), which tags the 521 classes of AudioSet: the bundled backbone to measure with.

A MobileNet (Howard et al. 2017, arXiv:1704.04861) on log-mel patches of 0.96 s every 0.48 s, at 16 kHz. A folder holds
config.json `{"backbone": "yamnet"}`, model.safetensors and yamnet_class_map.csv as published. One embedding per sound
of 1024 dimensions, the mean over its patches; and one logit per class, of the mean score over its patches, which is how
YAMNet's authors tag a sound.

Sounds are scaled to a peak of 0.7, so that the level, which has metrics of its own, does not decide what is recognised.

Nothing is trained against YAMNet or on what it says: it stays an independent judge.
"""

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu6

from diffaudio.errors import UserError
from diffaudio.evaluation.backbones.audioset import find_bundled, read_kinds
from diffaudio.evaluation.backbones.base import Kinds, at_least, load_weights, logit_of_mean_score, sha256
from diffaudio.evaluation.backbones.htk_mel import htk_mel_bands
from diffaudio.media.audio import RESAMPLER, scale_to_peak

__all__ = ["YAMNet", "bundled_yamnet", "log_mel_patches"]

SAMPLE_RATE = 16000
WINDOW, HOP, FFT = 400, 160, 512
FRAMES, PATCH_HOP, BANDS = 96, 48, 64
LOW_HZ, HIGH_HZ = 125.0, 7500.0
LOG_OFFSET = 0.001
PEAK = 0.7
CLASSES = 521
PATCHES_AT_A_TIME = 64
# width and stride of each depthwise-separable block, after a first convolution of 32 filters with stride 2
BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1),
    (1024, 2), (1024, 1),
)  # fmt: skip


class YAMNet:
    """A `Backbone` with one embedding per sound, logits, and a table of kinds."""

    name = "yamnet"
    sample_rate = SAMPLE_RATE
    resampler = RESAMPLER
    is_multilabel = True
    embedding_dim = 1024

    def __init__(self, weights: Path, config: dict[str, Any], device: torch.device | str = "cpu") -> None:
        self.network = _MobileNet()
        load_weights(self.network, weights)
        self.network.float().to(device)
        self.checkpoint = sha256(weights)
        self.labels: list[str] | None = _read_labels(weights.parent / "yamnet_class_map.csv")
        self.kinds: Kinds | None = read_kinds(self.labels)
        self._device = device

    @torch.no_grad()
    def embed(self, waveforms: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """See `Backbone`."""
        patches = [log_mel_patches(scale_to_peak(waveform.float()[None], PEAK)[0]) for waveform in waveforms]
        results = [self.network(some.to(self._device)) for some in torch.cat(patches).split(PATCHES_AT_A_TIME)]
        counts = [len(each) for each in patches]
        embeddings = torch.cat([embedding for embedding, _ in results]).cpu().split(counts)
        logits = torch.cat([logit for _, logit in results]).cpu().split(counts)
        return [each.mean(dim=0, keepdim=True) for each in embeddings], torch.stack([*map(logit_of_mean_score, logits)])


class _MobileNet(nn.Module):
    """Batch normalisation is folded into the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, stride=2)
        self.blocks = nn.ModuleList()
        for (before, _), (width, stride) in zip([(32, 1), *BLOCKS], BLOCKS, strict=False):
            depthwise = nn.Conv2d(before, before, 3, stride=stride, padding=int(stride == 1), groups=before)
            self.blocks.append(nn.ModuleDict({"depthwise": depthwise, "pointwise": nn.Conv2d(before, width, 1)}))
        self.classifier = nn.Linear(BLOCKS[-1][0], CLASSES)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """[patches, 96, 64] -> embeddings [patches, 1024], logits [patches, 521]"""
        x = relu6(self.stem(pad(patches[:, None], (0, 1, 0, 1))))
        for block, (_, stride) in zip(self.blocks, BLOCKS, strict=True):
            # TensorFlow pads strided convolutions at the end only, where the size is even
            x = relu6(block.get_submodule("depthwise")(pad(x, (0, 1, 0, 1)) if stride == 2 else x))
            x = relu6(block.get_submodule("pointwise")(x))
        embeddings = x.mean(dim=(2, 3))
        return embeddings, self.classifier(embeddings)


def log_mel_patches(waveform: Tensor) -> Tensor:
    """[samples] at 16 kHz -> [patches, 96, 64]: log of the mel bands of the magnitude, in frames of 25 ms every 10 ms.

    A rest that fills no patch is left out; silence follows a sound shorter than one.
    """
    waveform = at_least(waveform, WINDOW + (FRAMES - 1) * HOP)
    frames = waveform.unfold(0, WINDOW, HOP) * torch.hann_window(WINDOW)
    bands = htk_mel_bands(SAMPLE_RATE, FFT, BANDS, LOW_HZ, HIGH_HZ)
    mel = torch.fft.rfft(frames, FFT).abs() @ bands
    return (mel + LOG_OFFSET).log().unfold(0, FRAMES, PATCH_HOP).transpose(1, 2)


def bundled_yamnet() -> Path:
    """The folder of the YAMNet that comes with diffaudio.

    Raises:
        ValueError: this installation has none.
    """
    return find_bundled("checkpoints/yamnet/config.json").parent


def _read_labels(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f"{path}: is missing; it names the classes")
    with path.open(newline="", encoding="utf-8") as file:
        names = [row.get("display_name") or "" for row in csv.DictReader(file)]
    if len(names) != CLASSES or not all(names):
        raise UserError(f"{path}: has {len(names)} classes; {CLASSES} are needed, with a display_name each")
    return names
