"""Fit the spectral autoencoder to a corpus of clips: the best linear code of its log-mel spectrograms.

    accelerate launch train/autoencoder.py --config configs/mini/autoencoder.yaml --data corpora/demo --out runs/code

One pass over the clips, shared by index over the processes; nothing is learned by gradient. The model folder and
`metrics.jsonl` (how much of the variance, and how many dB of the log-mel, the code leaves out) end up in `--out`.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from diffaudio.audio import decode_flac, mix_channels, resample, scale_to_peak
from diffaudio.config import to_yaml
from diffaudio.corpus import prepare, store
from diffaudio.files import replaced_whole, written_whole
from diffaudio.launch import join_processes, run_script
from diffaudio.models.autoencoders.spectral import SpectralAutoencoder


@dataclass
class Config:
    """Settings of `train/autoencoder.py`; for those of the spectrogram see `SpectralAutoencoder`.

    Attributes:
        data: corpus of clips, made by `diffaudio prepare`.
        out: run folder; the autoencoder is written to `model/` in it.
        peak: each clip is scaled to this largest sample first, as `diffaudio encode` does.
    """

    data: Path
    out: Path
    peak: float = 0.7
    sample_rate: int = 24000
    n_fft: int = 1024
    hop_length: int = 240
    num_mels: int = 128
    patch_steps: int = 4
    latent_channels: int = 128
    log_floor: float = 1e-4
    phase_iterations: int = 8
    phase_momentum: float = 0.99
    audio_channels: int = 1


def main(config: Config) -> None:
    join_processes()
    accelerator = Accelerator(mixed_precision="no")
    store.read_manifest(config.data, prepare.FORMAT, prepare.VERSION)
    autoencoder = SpectralAutoencoder(
        sample_rate=config.sample_rate,
        n_fft=config.n_fft,
        hop_length=config.hop_length,
        num_mels=config.num_mels,
        patch_steps=config.patch_steps,
        latent_channels=config.latent_channels,
        log_floor=config.log_floor,
        phase_iterations=config.phase_iterations,
        phase_momentum=config.phase_momentum,
        audio_channels=config.audio_channels,
    )
    width = config.audio_channels * config.num_mels * config.patch_steps
    count, total, products = torch.zeros(1).double(), torch.zeros(width).double(), torch.zeros(width, width).double()
    parts = store.part_files(config.data, "clips")
    for part in tqdm(parts[accelerator.process_index :: accelerator.num_processes], unit="part"):
        for row in (row for rows in store.read_groups(part, ["audio"]) for row in rows):
            waveform, rate = decode_flac(row["audio"])
            waveform = resample(mix_channels(waveform, config.audio_channels), rate, config.sample_rate)
            patches = autoencoder.patches(scale_to_peak(waveform, config.peak)[None])[0].double()
            count += patches.shape[1]
            total += patches.sum(dim=1)
            products += patches @ patches.T
    reduced: Any = accelerator.reduce([values.to(accelerator.device) for values in (count, total, products)])
    count, total, products = (values.cpu() for values in reduced)
    variances = autoencoder.fit(count.item(), total, products)
    if accelerator.is_main_process:
        left_out = variances[config.latent_channels :]
        report = {
            "patches": int(count.item()),
            "variance_kept": 1 - (left_out.sum() / variances.sum()).item(),
            "left_out_db": (left_out.sum() / width).sqrt().item() * 20 / torch.log(torch.tensor(10.0)).item(),
        }
        config.out.mkdir(parents=True, exist_ok=True)
        with written_whole(config.out / "config.yaml") as temporary:
            temporary.write_text(to_yaml(config), encoding="utf-8")
        with written_whole(config.out / "metrics.jsonl") as temporary:
            temporary.write_text(json.dumps(report) + "\n", encoding="utf-8")
        with replaced_whole(config.out / "model") as folder:
            autoencoder.save_pretrained(folder)
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main, Config)
