"""The spectral autoencoder's code in closed form: the principal components of a corpus' log-mel patches."""

import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from diffaudio.corpus.datasets.splits import is_held_out
from diffaudio.corpus.datasets.waveforms import read_waveforms, waveform_parts
from diffaudio.errors import UserError
from diffaudio.models.autoencoders import SpectralAutoencoder

__all__ = ["fit_code"]


def fit_code(
    autoencoder: SpectralAutoencoder, corpus: Path, accelerator: Accelerator, *, peak: float, held_out: float
) -> dict[str, float]:
    """Fit components, mean and scale in one pass over the clips, shared by index over the processes.

    Args:
        corpus: of clips, made by `diffaudio prepare`, or a folder of sound files.
        peak: each clip is scaled to this peak.
        held_out: share of the sources that are not used.

    Returns:
        The number of `patches`, the share of their variance that is kept, and the RMS of the rest in dB.

    Raises:
        ValueError: the folder is no corpus, or there are no clips.
    """
    width = len(autoencoder.mean)
    count, total, products = torch.zeros(1).double(), torch.zeros(width).double(), torch.zeros(width, width).double()
    parts = waveform_parts(corpus)[accelerator.process_index :: accelerator.num_processes]
    clips = read_waveforms(
        corpus, parts, sample_rate=autoencoder.sample_rate, audio_channels=autoencoder.audio_channels, peak=peak
    )
    for row, waveform in tqdm(clips, desc="code", unit="clip", disable=not accelerator.is_main_process):
        if is_held_out(row["source"], held_out):
            continue
        patches = autoencoder.patches(waveform[None])[0].double()
        count += patches.shape[1]
        total += patches.sum(dim=1)
        products += patches @ patches.T
    reduced: Any = accelerator.reduce([values.to(accelerator.device) for values in (count, total, products)])
    count, total, products = (values.cpu() for values in reduced)
    if not count:
        raise UserError(f"{corpus}: holds no clips to fit the code to; see its dropped.csv, or lower held_out")
    variances = autoencoder.fit(count.item(), total, products)
    left_out = variances[autoencoder.latent_channels :]
    return {
        "patches": int(count.item()),
        "variance_kept": 1 - (left_out.sum() / variances.sum()).item(),
        "left_out_db": (left_out.sum() / width).sqrt().item() * 20 / math.log(10),
    }
