"""`overfit N`: can the network learn a few clips by heart? The quickest test that data, model and loss fit together.

The run trains on N clips alone, always on the same crop and picture, without dropout, noise on the embeddings or
dropped conditions. At the end each clip's own embedding has to bring its sound back. The run folder then holds

    overfit/report.json         loss before and after, and the distances
    overfit/00_original.wav     a clip, decoded from its latents
    overfit/00_generated.wav    what is generated for its embedding
    overfit/00.png              both spectrograms
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffaudio.atomic_io import atomic_folder
from diffaudio.corpus.datasets.latents import LatentDataset
from diffaudio.media.audio import mix_channels, resample, write_audio
from diffaudio.media.spectrogram_plot import comparison_figure
from diffaudio.metrics.reconstruction import LOG_MEL_RATE, log_mel_distance_db
from diffaudio.pipeline import DiffAudioPipeline
from diffaudio.seeding import seeded_generator

__all__ = ["OverfitReport", "report_overfit"]

STEPS, SAMPLER = 50, "heun"


@dataclass(frozen=True)
class OverfitReport:
    """How well the clips came back.

    Attributes:
        loss_before, loss_after: on the clips, with the same noise both times.
        own_db: log-mel distance of each generated sound to its own clip, in dB.
        other_db: to the nearest of the other clips; empty for a single clip.
    """

    loss_before: float
    loss_after: float
    own_db: list[float]
    other_db: list[float]

    @property
    def num_recognised(self) -> int:
        """Sounds that are nearer to their own clip than to any other."""
        return sum(own < other for own, other in zip(self.own_db, self.other_db, strict=True))

    def describe(self) -> str:
        """One line."""
        share = 100 * self.loss_after / self.loss_before
        text = f"overfit: loss {self.loss_before:.4g} -> {self.loss_after:.4g} ({share:.1f} % of its start); "
        text += f"log-mel distance to the original {sum(self.own_db) / len(self.own_db):.1f} dB"
        if self.other_db:
            others = sum(self.other_db) / len(self.other_db)
            text += f", to the nearest other {others:.1f} dB; {self.num_recognised} of {len(self.own_db)} recognised"
        return text


@torch.no_grad()
def report_overfit(
    folder: Path, pipe: DiffAudioPipeline, dataset: LatentDataset, duration_s: float, losses: tuple[float, float]
) -> OverfitReport:
    """Generate each clip from its embedding, and compare it with the clip; writes `folder`.

    Args:
        pipe: with the trained U-Net.
        dataset: of the few clips.
        duration_s: of the crops that were trained on, which begin with the clip.
        losses: before and after training.
    """
    originals, embeddings = [], []
    num_frames = round(duration_s * dataset.latent_rate)
    for clip in range(len(dataset)):
        item = dataset[clip]
        tiled = item["latents"].repeat(1, -(-num_frames // item["latents"].shape[1]))[:, :num_frames]
        originals.append(tiled)
        embeddings.append(item["embeddings"][0])
    output: Any = pipe(
        prompt_embeds=torch.stack(embeddings),
        num_inference_steps=STEPS,
        guidance_scale=1.0,
        sampler=SAMPLER,
        audio_length_in_s=num_frames / dataset.latent_rate,
        generator=[seeded_generator(0, clip) for clip in range(len(dataset))],
        output_type="latent",
    )
    generated = _decode(pipe, output.audios)
    recordings = _decode(pipe, torch.stack(originals))
    distances = torch.tensor([[_distance_db(pipe, x, y) for x in recordings] for y in generated])
    others = distances + torch.diag(torch.full((len(distances),), torch.inf))
    report = OverfitReport(
        *losses,
        own_db=distances.diagonal().tolist(),
        other_db=others.amin(dim=1).tolist() if len(distances) > 1 else [],
    )
    _write(folder, pipe.autoencoder.sample_rate, recordings, generated, report)
    return report


def _decode(pipe: DiffAudioPipeline, latents: Tensor) -> list[Tensor]:
    """[audio_channels, samples] each, at the level that the latents have."""
    return [pipe.autoencoder.decode(each[None].to(pipe.device))[0].float().cpu() for each in latents]


def _distance_db(pipe: DiffAudioPipeline, original: Tensor, generated: Tensor) -> float:
    pair = torch.stack([mix_channels(waveform, 1)[0] for waveform in (original, generated)])
    return log_mel_distance_db(*resample(pair, pipe.autoencoder.sample_rate, LOG_MEL_RATE))


def _write(
    folder: Path, sample_rate: int, recordings: list[Tensor], generated: list[Tensor], report: OverfitReport
) -> None:  # fmt: skip
    content = {
        "loss_before": report.loss_before,
        "loss_after": report.loss_after,
        "log_mel_distance_db": report.own_db,
        "log_mel_distance_to_nearest_other_db": report.other_db,
    }
    with atomic_folder(folder) as temporary:
        for index, pair in enumerate(zip(recordings, generated, strict=True)):
            gain = 0.99 / max(0.99, *(float(waveform.abs().max()) for waveform in pair))
            for name, waveform in zip(("original", "generated"), pair, strict=True):
                write_audio(temporary / f"{index:02d}_{name}.wav", gain * waveform, sample_rate)
            figure = comparison_figure([("original", pair[0]), ("generated", pair[1])], sample_rate)
            figure.savefig(temporary / f"{index:02d}.png")
        (temporary / "report.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
