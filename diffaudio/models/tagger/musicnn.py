"""musicnn (Pons & Serra 2019, arXiv:1909.06654), the published networks of the paper that the tagger follows.

    front end   log-mel spectrogram -> vertical and horizontal features      `FRONT_ENDS["mel_musicnn"]`
    mid-end     three convolutions over 7 steps, the second and third residual; all are concatenated with the front end
    back end    mean and maximum over time                                    `BACK_ENDS["mean_max"]`
    head        normalisation, 200 units (the embedding), 50 tags

The weights are read from the file of the authors' variables (.npz) by their TensorFlow names, without conversion by
hand. Nothing in the file can run code: pickled objects are refused.
"""

import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.transforms import MelSpectrogram

from diffaudio.errors import UserError
from diffaudio.models.tagger.back_ends import BACK_ENDS
from diffaudio.models.tagger.front_ends import FRONT_ENDS

__all__ = ["PATCH_STEPS", "SAMPLE_RATE", "TAGS", "Musicnn", "load_musicnn", "log_mel"]

SAMPLE_RATE = 16000
FFT, HOP, BANDS = 512, 256, 96
PATCH_STEPS = 187  # 3 s
FRONT_WIDTH, MID_WIDTH, UNITS = 51, 64, 200
EPSILON = 1e-3  # of TensorFlow's batch normalisation
MAX_BYTES = 2**27  # of all variables when unpacked; the published ones have 3 MB

_TAGS = {
    "mtt": (
        "guitar, classical, slow, techno, strings, drums, electronic, rock, fast, piano, ambient, beat, violin, vocal, "
        "synth, female, indian, opera, male, singing, vocals, no vocals, harpsichord, loud, quiet, flute, woman, male "
        "vocal, no vocal, pop, soft, sitar, solo, man, classic, choir, voice, new age, dance, male voice, female "
        "vocal, beats, harp, cello, no voice, weird, country, metal, female voice, choral"
    ),
    "msd": (
        "rock, pop, alternative, indie, electronic, female vocalists, dance, 00s, alternative rock, jazz, beautiful, "
        "metal, chillout, male vocalists, classic rock, soul, indie rock, Mellow, electronica, 80s, folk, 90s, chill, "
        "instrumental, punk, oldies, blues, hard rock, ambient, acoustic, experimental, female vocalist, guitar, "
        "Hip-Hop, 70s, party, country, easy listening, sexy, catchy, funk, electro, heavy metal, Progressive rock, "
        "60s, rnb, indie pop, sad, House, happy"
    ),
}
TAGS = {name: tags.split(", ") for name, tags in _TAGS.items()}  # of MagnaTagATune and of the Million Song Dataset


class Musicnn(nn.Module):
    """Log-mel spectrograms to embeddings and tags.

    Args:
        num_tags: 50 in the published networks.
    """

    def __init__(self, num_tags: int = 50) -> None:
        super().__init__()
        self.front = FRONT_ENDS["mel_musicnn"](FRONT_WIDTH, BANDS)
        widths = (self.front.channels, MID_WIDTH, MID_WIDTH)
        self.mid = nn.ModuleList(nn.Conv1d(width, MID_WIDTH, 7, padding=3) for width in widths)
        self.mid_norms = nn.ModuleList(nn.BatchNorm1d(MID_WIDTH, eps=EPSILON) for _ in widths)
        self.back = BACK_ENDS["mean_max"](self.front.channels + 3 * MID_WIDTH)
        self.norm = nn.BatchNorm1d(self.back.channels, eps=EPSILON)
        self.to_units = nn.Linear(self.back.channels, UNITS)
        self.units_norm = nn.BatchNorm1d(UNITS, eps=EPSILON)
        self.to_tags = nn.Linear(UNITS, num_tags)

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, 96 bands, steps] -> embeddings [batch, 200], logits [batch, tags]"""
        front = self.front(mel)
        x, features = front, [front]
        for index, (convolution, norm) in enumerate(zip(self.mid, self.mid_norms, strict=True)):
            new = norm(F.relu(convolution(x)))
            x = new if index == 0 else x + new
            features.append(x)
        pooled = self.norm(self.back(torch.cat(features, dim=1)))
        embeddings = self.units_norm(F.relu(self.to_units(pooled)))
        return embeddings, self.to_tags(embeddings)


def log_mel(waveform: Tensor) -> Tensor:
    """[samples] at 16 kHz -> log10(10000 x + 1) of the mel bands' power, as librosa has them: [96, steps of 16 ms]."""
    spectrogram = MelSpectrogram(SAMPLE_RATE, FFT, hop_length=HOP, n_mels=BANDS, norm="slaney", mel_scale="slaney")
    return (10000 * spectrogram(waveform) + 1).log10()


def load_musicnn(file: Path) -> Musicnn:
    """Read a published network from an .npz of its variables.

    Raises:
        ValueError: the file is damaged or too large, holds pickled objects, or other variables than musicnn's.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_BYTES:
            raise UserError(f"{file}: unpacks to {size / 1e6:.0f} MB; musicnn's variables have 3 MB")
        with np.load(file, allow_pickle=False) as content:
            variables = {name: torch.from_numpy(np.asarray(content[name])) for name in content.files}
    except UserError:
        raise
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: cannot be read as an .npz of arrays: {error}") from error
    tags = variables.get("dense_1/bias", torch.empty(0))
    if tags.ndim != 1 or len(tags) == 0 or len(tags) > 10000:
        raise UserError(f"{file}: holds no musicnn: its variable dense_1/bias is missing or no list of tags")
    network = Musicnn(len(tags))
    weights = {name: _find(file, variables, *place) for name, place in _places(network).items()}
    for name, wanted in network.state_dict().items():
        if name not in weights:
            continue  # batch normalisation counts its steps while training
        if weights[name].shape != wanted.shape:
            found, right = tuple(weights[name].shape), tuple(wanted.shape)
            raise UserError(f"{file}: {name} would get the shape {found}; musicnn's is {right}")
        if not weights[name].isfinite().all():
            raise UserError(f"{file}: {name} holds values that are not finite")
    network.load_state_dict(weights, strict=False)
    return network.eval().requires_grad_(False)


def _places(network: Musicnn) -> dict[str, tuple[str, str]]:
    """For each of the network's tensors, TensorFlow's variable and how that one is laid out."""
    places: dict[str, tuple[str, str]] = {}

    def add(name: str, variable: str, layout: str) -> None:
        places[f"{name}.weight"] = (f"{variable}/kernel", layout)
        places[f"{name}.bias"] = (f"{variable}/bias", "same")

    def add_norm(name: str, number: int, layout: str = "same") -> None:
        variable = "batch_normalization" + (f"_{number}" if number else "")
        for ours, theirs in NORM_VARIABLES.items():
            places[f"{name}.{ours}"] = (f"{variable}/{theirs}", layout)

    add_norm("front.norm_in", 0)
    for index in range(len(network.front.filters)):
        add(f"front.filters.{index}", "conv2d" + (f"_{index}" if index else ""), "image")
        add_norm(f"front.norms.{index}", index + 1)
    for index in range(len(network.mid)):
        add(f"mid.{index}", f"conv2d_{5 + index}", "steps")
        add_norm(f"mid_norms.{index}", 6 + index)
    add_norm("norm", 9, "pooled")
    add("to_units", "dense", "pooled units")
    add_norm("units_norm", 10)
    add("to_tags", "dense_1", "dense")
    return places


NORM_VARIABLES = {
    "weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"
}  # fmt: skip
RANKS = {"image": 4, "steps": 4, "dense": 2, "pooled": 1, "pooled units": 2}


def _find(file: Path, variables: dict[str, Tensor], name: str, layout: str) -> Tensor:
    """A variable in torch's layout."""
    if name not in variables:
        raise UserError(f"{file}: holds no musicnn: its variable {name} is missing")
    x = variables[name].float()
    if x.ndim != RANKS.get(layout, x.ndim):
        raise UserError(f"{file}: {name} has the shape {tuple(x.shape)}; {RANKS[layout]} dimensions are needed")
    if layout == "image":  # [time, mel, in, out] -> [out, in, mel, time]
        return x.permute(3, 2, 1, 0)
    if layout == "steps":  # [time, features, 1, out] -> [out, features, time]
        return x[:, :, 0].permute(2, 1, 0)
    if layout == "dense":
        return x.T
    if layout in ("pooled", "pooled units"):  # theirs alternate (maximum, mean); ours are all means, then all maxima
        x = torch.cat([x[1::2], x[::2]])
        return x.T if layout == "pooled units" else x
    return x
