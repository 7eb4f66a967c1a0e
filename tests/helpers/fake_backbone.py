"""A backbone without a network: a sound's embedding is its power in eight bands, its class the strongest band."""

import torch
from torch import Tensor

from diffaudio.evaluation.backbones.base import Kinds
from diffaudio.evaluation.embed import Sound

SAMPLE_RATE = 8000


class BandBackbone:
    """Tells tones apart by octave; classes "band 0" to "band 7" of 500 Hz each."""

    resampler = "torchaudio"
    is_multilabel = False
    kinds: Kinds | None = None

    def __init__(self, name: str = "bands", checkpoint: str = "0" * 64) -> None:
        self.name, self.checkpoint = name, checkpoint
        self.sample_rate = SAMPLE_RATE
        self.embedding_dim = 8
        self.labels: list[str] | None = [f"band {index}" for index in range(8)]

    def embed(self, waveforms: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        embeddings = torch.stack([self._bands(waveform) for waveform in waveforms])
        return list(embeddings[:, None]), 5 * embeddings

    def _bands(self, waveform: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(waveform, n=SAMPLE_RATE).abs().square()[: SAMPLE_RATE // 2]
        return (spectrum.unflatten(0, (8, -1)).sum(dim=1) / SAMPLE_RATE).clamp(min=1e-6).log10()


class BandClap(BandBackbone):
    """The same, with texts: "band 3" lies where a pure tone of that band does."""

    def embed_text(self, texts: list[str]) -> Tensor:
        rows = torch.full((len(texts), 8), -6.0)
        for index, text in enumerate(texts):
            rows[index, int(text.split()[-1])] = 2.0
        return rows


def tones(count, seed, *, labelled="label", takes=1):
    """Tones in noise, take after take of band 0, 1, …, 7, 0, …"""
    generator = torch.Generator().manual_seed(seed)
    times = torch.arange(SAMPLE_RATE) / SAMPLE_RATE
    sounds = []
    for index in range(count):
        text = f"band {index // takes % 8}"
        frequency = 500 * (index // takes % 8) + 100 + 300 * torch.rand(1, generator=generator)
        noise = 0.05 * torch.rand(1, generator=generator) * torch.randn(SAMPLE_RATE, generator=generator)
        waveform = 0.3 * torch.sin(2 * torch.pi * frequency * times) + noise
        sounds.append(Sound(waveform[None], SAMPLE_RATE, f"{seed}-{index}", **{labelled: text}))
    return sounds
