"""OpenL3 (Cramer et al. 2019, "Look, listen, and learn more"), the backbone of FD_openl3 (Evans et al. 2024).

The weights are those of mel256, as published: openl3_audio_mel256_env.h5 or …_music.h5 (which need h5py: `pip install
diffaudio[openl3]`), or of the PyTorch port torchopenl3, or safetensors under its keys, `batch_normalization_1.weight`
to `audio_embedding_layer.bias`. Those of the fixed front end, `speclayer.…`, are not needed. A file's name says what it
was trained on, env or music; embeddings have 512 dimensions, or as many as its name says, 512 or 6144. A folder says
both in config.json, such as `{"backbone": "openl3", "content_type": "env", "embedding_size": 6144}`.

One embedding for every second, in steps of 0.5 s as in stable-audio-metrics; as in OpenL3, half a second of silence
precedes the sound, and its last window is padded with silence.
"""

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad, relu

from diffaudio.errors import UserError
from diffaudio.evaluation.backbones.base import Kinds, load_weights, sha256
from diffaudio.media.audio import RESAMPLER

__all__ = ["OpenL3"]

SAMPLE_RATE = 48000
STEP = SAMPLE_RATE // 2
FFT, HOP, BANDS = 2048, 242, 256
RANGE_DB = 80.0
POOLING = {512: (32, 24), 6144: (8, 8)}
CONTENT_TYPES = ("env", "music")


class OpenL3:
    """A `Backbone` with an embedding for every half second."""

    sample_rate = SAMPLE_RATE
    resampler = RESAMPLER
    is_multilabel = False
    labels: list[str] | None = None
    kinds: Kinds | None = None

    def __init__(self, weights: Path, config: dict[str, Any], device: torch.device | str = "cpu") -> None:
        content, size = config.get("content_type"), config.get("embedding_size")
        if content not in CONTENT_TYPES or size not in POOLING:
            raise UserError(
                f"{weights}: content_type {content!r} and embedding_size {size!r} are not both known; "
                "say env or music, and 512 or 6144, in config.json or the file's name"
            )
        self.name = f"openl3_{content}_mel256_{size}"
        self.embedding_dim = int(size)
        self.network = _Network(POOLING[size])
        load_weights(self.network, weights, ignored=("speclayer.",))
        self.network.to(device)
        self.checkpoint = sha256(weights)
        self._device = device

    @torch.no_grad()
    def embed(self, waveforms: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """See `Backbone`."""
        return [self._embed(windows(waveform)) for waveform in waveforms], None

    def _embed(self, seconds: Tensor) -> Tensor:
        return torch.cat([self.network(mel_db(few).to(self._device)).cpu() for few in seconds.split(8)])


class _Network(nn.Module):
    def __init__(self, pooling: tuple[int, int]) -> None:
        super().__init__()
        self.pooling = pooling
        widths = (1, 64, 64, 128, 128, 256, 256, 512)
        for index, width in enumerate(widths, start=1):
            setattr(self, f"batch_normalization_{index}", nn.BatchNorm2d(width, eps=1e-3))
        for index in range(1, 8):
            setattr(self, f"conv2d_{index}", nn.Conv2d(widths[index - 1], widths[index], 3, padding=1))
        self.audio_embedding_layer = nn.Conv2d(512, 512, 3, padding=1)

    def forward(self, mel: Tensor) -> Tensor:
        """[seconds, bands, steps] -> [seconds, embedding_dim]"""
        layer = self.get_submodule
        x = layer("batch_normalization_1")(mel[:, None])
        for index in range(1, 8):
            x = relu(layer(f"batch_normalization_{index + 1}")(layer(f"conv2d_{index}")(x)))
            x = max_pool2d(x, 2) if index in (2, 4, 6) else x
        found = max_pool2d(self.audio_embedding_layer(x), self.pooling)
        return found.permute(0, 2, 3, 1).flatten(1)  # the order of Keras


def windows(waveform: Tensor) -> Tensor:
    """[samples] at 48 kHz -> [windows, one second of samples]"""
    waveform = pad(waveform.float(), (SAMPLE_RATE // 2, 0))
    beyond = max(0, len(waveform) - SAMPLE_RATE)
    whole = SAMPLE_RATE + -(-beyond // STEP) * STEP
    return pad(waveform, (0, whole - len(waveform))).unfold(0, SAMPLE_RATE, STEP)


def mel_db(seconds: Tensor) -> Tensor:
    """[batch, one second] -> mel amplitude in dB below each second's loudest, down to -80: [batch, bands, 199]."""
    outside = FFT - SAMPLE_RATE % HOP  # 'same' padding, as in kapre 0.1.4
    frames = pad(seconds, (outside // 2, outside - outside // 2)).unfold(1, FFT, HOP) * torch.hann_window(FFT)
    amplitude = (torch.fft.rfft(frames).abs().square() @ _mel_bands()).sqrt()
    level = 10 * amplitude.clamp(min=1e-10).log10()
    return (level - level.amax(dim=(1, 2), keepdim=True)).clamp(min=-RANGE_DB).transpose(1, 2)


@cache
def _mel_bands() -> Tensor:
    """[bins, bands], each of sum 1; the lowest bands lie between two bins and stay empty, which torchaudio warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        bands = torchaudio.functional.melscale_fbanks(FFT // 2 + 1, 0.0, SAMPLE_RATE / 2, BANDS, SAMPLE_RATE)
    return bands / bands.sum(dim=0).clamp(min=1e-30)
