"""The tagger: classifies recordings and embeds them, for evaluation.

    front end   waveform, or its log-mel spectrogram -> features  [batch, channels, steps]
    back end    features of any number of steps -> one vector     [batch, pooled]
    head        that vector -> embedding -> logits

Both ends follow Pons et al. 2018, "End-to-end learning for music audio tagging at scale" (arXiv:1711.02520).
The level of a recording says nothing about its kind, so each is scaled to peak 0.7 first.
"""

from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torchaudio.functional import mask_along_axis_iid
from torchaudio.transforms import MelSpectrogram

from diffaudio.errors import UserError
from diffaudio.models.tagger.back_ends import BACK_ENDS
from diffaudio.models.tagger.front_ends import FRONT_ENDS
from diffaudio.safe_loading import load_network

__all__ = ["BACK_ENDS", "FRONT_ENDS", "Tagger", "bundled_tagger", "load_tagger"]

PEAK = 0.7
FLOOR = 1e-6  # of the mel spectrogram's power; weaker sounds are inaudible beside a peak of 0.7
MIN_S = 0.5  # shorter sounds are padded with silence, so that every front end has a step


class Tagger(ModelMixin, ConfigMixin):
    """Classifier of recordings of any length.

    Args:
        labels: of the classes.
        front_end: a key of `FRONT_ENDS`.
        back_end: a key of `BACK_ENDS`.
        sample_rate: of the waveforms, in Hz.
        width: channels of the first convolution; later ones have multiples of it.
        embedding_dim: size of the embedding.
        num_mels, n_fft, hop_length: of the log-mel spectrogram; without effect for the waveform.
        dropout: before the embedding and before the logits, while training.
        name: shown in reports beside each number; it should say what the tagger was trained on.

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
            raise UserError(f"front end '{front_end}' is unknown; choose from {', '.join(FRONT_ENDS)}")
        if back_end not in BACK_ENDS:
            raise UserError(f"back end '{back_end}' is unknown; choose from {', '.join(BACK_ENDS)}")
        if not labels:
            raise UserError("a tagger needs at least one label")
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
        """Classify sounds of one length.

        Args:
            waveform: [batch, samples] at `sample_rate`.
            masked_share: for training, the largest share of the bands, and of the steps, that is masked in each sound
                (SpecAugment: Park et al. 2019, arXiv:1904.08779); of the samples, where the front end sees those.

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
        """The input of the front end: the waveform scaled to peak 0.7, or its log-mel spectrogram.

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
        """Classify sounds of any length, each independently of the others.

        Args:
            waveforms: each [samples] at `sample_rate`.
            batch_size: how many sounds of the same length are processed together.

        Returns:
            Embeddings [sounds, embedding_dim] and logits [sounds, len(labels)], on the CPU.
        """
        device = self.to_logits.weight.device
        embeddings = torch.empty(len(waveforms), self.embedding_dim)
        logits = torch.empty(len(waveforms), len(self.labels))
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, waveform in enumerate(waveforms):
            by_length[len(waveform)].append(index)
        for indices in by_length.values():
            for batch in (indices[start : start + batch_size] for start in range(0, len(indices), batch_size)):
                output = self(torch.stack([waveforms[index] for index in batch]).to(device))
                embeddings[batch], logits[batch] = output[0].cpu(), output[1].cpu()
        return embeddings, logits


def _mask(features: Tensor, share: float) -> Tensor:
    """Mask a segment of the steps, and one of the bands where there are any, in each item."""
    x = features.reshape(len(features), 1, -1, features.shape[-1])
    for axis in (2, 3):
        if x.shape[axis] > 1:
            longest = int(share * x.shape[axis])
            x = mask_along_axis_iid(x, longest, 0.0, axis)
    return x.reshape(features.shape)


class _Residual(nn.Module):
    """Convolution over 7 steps beside the identity (Pons et al. 2018, fig. 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(channels, channels, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.norm(self.convolution(x)))


def bundled_tagger() -> Path:
    """The folder of the tagger that comes with diffaudio.

    Raises:
        ValueError: this installation has none.
    """
    package = Path(__file__).resolve().parent.parent.parent
    for folder in (package / "checkpoints" / "tagger", package.parent / "checkpoints" / "tagger"):
        if (folder / "config.json").is_file():
            return folder
    raise UserError("this installation of diffaudio comes without a tagger; name the folder of one")


def load_tagger(folder: str | Path) -> Tagger:
    """Read a tagger, ready to tag.

    Raises:
        ValueError: the folder holds none, or a damaged one.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: there is no tagger, config.json is missing")
    return load_network(Tagger, folder)
