"""The tagger: which of its labels a recording is, and an embedding to compare sounds by. It serves evaluation.

    front end   waveform, or its log-mel spectrogram -> features  [batch, channels, steps]
    back end    features of any number of steps -> one vector     [batch, pooled]
    head        that vector -> embedding -> logits

Both follow Pons et al. 2018, "End-to-end learning for music audio tagging at scale" (arXiv:1711.02520):

    waveform     sample-level CNN: filters of 3 samples, then thirds of the rate (Lee et al. 2017, arXiv:1703.01789)
    mel_musical  filters shaped like what they look for: vertical ones for timbre, at any pitch, and horizontal ones
                 for the course of loudness (sec. 2.2)
    mel_small    small rectangular filters, as for pictures (Choi et al. 2016, arXiv:1606.00298)

    mean_max     mean and maximum over time (sec. 2.3)
    auto_pool    between mean and maximum, learned for each channel (McFee et al. 2018, arXiv:1804.10070, eq. 6)
    attention    a weighted mean whose weights are computed from the features (Pons' thesis, 2019, ch. 3)
    recurrent    the last states of a gated recurrent unit, run both ways

A recording's level says nothing of its kind, so each is scaled to peak 0.7 first.
"""

from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torchaudio.functional import mask_along_axis_iid
from torchaudio.transforms import MelSpectrogram

__all__ = ["BACK_ENDS", "FRONT_ENDS", "Tagger", "bundled_tagger", "load_tagger"]

PEAK = 0.7
FLOOR = 1e-6  # of the mel spectrogram's power; what is weaker cannot be heard beside a peak of 0.7
MIN_S = 0.5  # shorter sounds are followed by silence up to here, so that every front end gives a step


class Tagger(ModelMixin, ConfigMixin):
    """Classifier of recordings of any length.

    Args:
        labels: what it tells apart.
        front_end: a key of `FRONT_ENDS`.
        back_end: a key of `BACK_ENDS`.
        sample_rate: of the waveforms it takes, in Hz.
        width: channels of the first convolution; later ones have multiples of it.
        embedding_dim: size of the embedding.
        num_mels, n_fft, hop_length: of the log-mel spectrogram; without effect for the waveform.
        dropout: before the embedding and before the logits, while training.
        name: stands in reports beside each number; say what it was trained on.

    Raises:
        ValueError: an unknown front end or back end, or no labels.
    """

    @register_to_config
    def __init__(
        self,
        labels: list[str],
        front_end: str = "mel_small",
        back_end: str = "mean_max",
        sample_rate: int = 16000,
        width: int = 16,
        embedding_dim: int = 128,
        num_mels: int = 64,
        n_fft: int = 1024,
        hop_length: int = 320,
        dropout: float = 0.3,
        name: str = "tagger",
    ) -> None:
        super().__init__()
        if front_end not in FRONT_ENDS:
            raise ValueError(f"front end '{front_end}' is unknown; choose from {', '.join(FRONT_ENDS)}")
        if back_end not in BACK_ENDS:
            raise ValueError(f"back end '{back_end}' is unknown; choose from {', '.join(BACK_ENDS)}")
        if not labels:
            raise ValueError("a tagger needs at least one label")
        self.spectrogram = None
        if front_end != "waveform":
            self.spectrogram = MelSpectrogram(sample_rate, n_fft, hop_length=hop_length, n_mels=num_mels)
        self.front = FRONT_ENDS[front_end](width, num_mels)
        self.middle = nn.Sequential(_Residual(self.front.channels), _Residual(self.front.channels))
        self.back = BACK_ENDS[back_end](self.front.channels)
        self.to_embedding = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(self.back.channels, embedding_dim), nn.BatchNorm1d(embedding_dim)
        )
        self.to_logits = nn.Linear(embedding_dim, len(labels))

    @property
    def name(self) -> str:
        return self.config["name"]

    @property
    def labels(self) -> list[str]:
        return list(self.config["labels"])

    @property
    def sample_rate(self) -> int:
        return self.config["sample_rate"]

    @property
    def embedding_dim(self) -> int:
        return self.config["embedding_dim"]

    def forward(self, waveform: Tensor, masked_share: float = 0.0) -> tuple[Tensor, Tensor]:
        """Tag sounds of one length.

        Args:
            waveform: [batch, samples] at `sample_rate`.
            masked_share: for training, up to what share of the bands, and of the steps, is blanked in each sound
                (SpecAugment: Park et al. 2019, arXiv:1904.08779); where the front end sees samples, of those.

        Returns:
            Embeddings [batch, embedding_dim] and logits [batch, len(labels)].
        """
        features = self.features(waveform)
        if masked_share > 0:
            features = _mask(features, masked_share)
        embeddings = self.to_embedding(self.back(self.middle(self.front(features))))
        hidden = F.dropout(F.relu(embeddings), self.config["dropout"], self.training)
        return embeddings, self.to_logits(hidden)

    def features(self, waveform: Tensor) -> Tensor:
        """What the front end sees: the waveform scaled to peak 0.7, [batch, samples], or its log-mel spectrogram.

        Returns:
            [batch, samples], or [batch, mels, steps] between -2 and about 3.
        """
        waveform = F.pad(waveform, (0, max(0, round(MIN_S * self.sample_rate) - waveform.shape[-1])))
        waveform = waveform * (PEAK / waveform.abs().amax(dim=-1, keepdim=True).clamp(min=1e-4))
        if self.spectrogram is None:
            return waveform
        return self.spectrogram(waveform).clamp(min=FLOOR).log10() / 2 + 1

    @torch.no_grad()
    def tag(self, waveforms: list[Tensor], *, batch_size: int = 16) -> tuple[Tensor, Tensor]:
        """Tag sounds of any length; no sound's numbers depend on the others.

        Args:
            waveforms: each [samples] at `sample_rate`.
            batch_size: how many sounds of the same length go through together.

        Returns:
            Embeddings [sounds, embedding_dim] and logits [sounds, len(labels)], on the CPU.
        """
        device = self.to_logits.weight.device
        embeddings = torch.empty(len(waveforms), self.embedding_dim)
        logits = torch.empty(len(waveforms), len(self.labels))
        of_length: dict[int, list[int]] = defaultdict(list)
        for index, waveform in enumerate(waveforms):
            of_length[len(waveform)].append(index)
        for indices in of_length.values():
            for batch in (indices[start : start + batch_size] for start in range(0, len(indices), batch_size)):
                found = self(torch.stack([waveforms[index] for index in batch]).to(device))
                embeddings[batch], logits[batch] = found[0].cpu(), found[1].cpu()
        return embeddings, logits


def _mask(features: Tensor, share: float) -> Tensor:
    """Blank a stretch along the steps, and one along the bands where there are any, in each item."""
    x = features.reshape(len(features), 1, -1, features.shape[-1])
    for axis in (2, 3):
        if x.shape[axis] > 1:
            longest = int(share * x.shape[axis])
            x = mask_along_axis_iid(x, longest, 0.0, axis)
    return x.reshape(features.shape)


class _Waveform(nn.Module):
    """Sample-level CNN: [batch, samples] -> [batch, channels, steps], a step each 2187 samples."""

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
    it finds its timbre at any pitch. A horizontal one sees the mean over the bands, as long as 165 steps.
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
        found = [filters(mel).amax(dim=2) for filters in self.vertical]
        found += [filters(mel.mean(dim=2)) for filters in self.horizontal]
        return F.max_pool1d(F.relu(self.norm(torch.cat(found, dim=1))), 4, ceil_mode=True)


class _MelSmall(nn.Module):
    """3 x 3 filters: [batch, mels, steps] -> [batch, channels, steps / 8].

    What is left of the bands is read twice: by its maximum, at any pitch, and by a layer that knows where it lies.
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
        found = self.layers(mel[:, None].contiguous(memory_format=torch.channels_last))
        return found.amax(dim=2) + F.relu(self.norm(self.join(found.flatten(1, 2))))


def _conv2d(in_width: int, out_width: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(in_width, out_width, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(out_width), nn.ReLU()]


class _Residual(nn.Module):
    """Convolution over 7 steps beside the identity (Pons et al. 2018, fig. 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(channels, channels, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.norm(self.convolution(x)))


class _MeanMax(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = 2 * channels

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1)


class _AutoPool(nn.Module):
    """sum_t x_t softmax_t(a x): the mean for a = 0, towards the maximum as a grows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.sharpness = nn.Parameter(torch.ones(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x * (self.sharpness * x).softmax(dim=2)).sum(dim=2)


class _Attention(nn.Module):
    """sum_t x_t softmax_t(w(x)), each channel with weights of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.scores = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scores(x).softmax(dim=2)).sum(dim=2)


class _Recurrent(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.unit = nn.GRU(channels, channels // 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        last = self.unit(x.transpose(1, 2))[1]
        return last.transpose(0, 1).flatten(1)


FRONT_ENDS: dict[str, Any] = {"waveform": _Waveform, "mel_musical": _MelMusical, "mel_small": _MelSmall}
BACK_ENDS: dict[str, Any] = {
    "mean_max": _MeanMax, "auto_pool": _AutoPool, "attention": _Attention, "recurrent": _Recurrent
}  # fmt: skip


def bundled_tagger() -> Path:
    """The folder of the tagger that comes with diffaudio.

    Raises:
        ValueError: this installation has none.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "checkpoints" / "tagger", package.parent / "checkpoints" / "tagger"):
        if (folder / "config.json").is_file():
            return folder
    raise ValueError("this installation of diffaudio comes without a tagger; name the folder of one")


def load_tagger(folder: str | Path) -> Tagger:
    """Read a tagger, ready to tag.

    Raises:
        ValueError: the folder holds none, or a damaged one.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: there is no tagger, config.json is missing")
    try:
        loaded: Any = Tagger.from_pretrained(folder, output_loading_info=True, use_safetensors=True)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: cannot be loaded: {' '.join(str(error).split())}") from error
    tagger, info = loaded
    wrong = [*info["missing_keys"], *info["unexpected_keys"]]
    if wrong:
        raise ValueError(f"{folder}: {len(wrong)} weights do not fit config.json, such as {wrong[0]}")
    return tagger.eval()
