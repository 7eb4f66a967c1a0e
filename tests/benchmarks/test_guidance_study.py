"""Guidance, its forms, eta and stochastic samplers, judged by YAMNet, for noise-like and tonal kinds apart.

    MODEL=checkpoints/mini OUT=study KINDS="rain,violin" pytest tests/benchmarks/test_guidance_study.py -m benchmark -s

It prints a Markdown table: the share that is recognised, and the mean over kinds of how much the logit of the asked-for
kind changes from the first setting, whose sounds have the same seeds, with its interval (bootstrap over kinds). Sounds
that are there are not made again, so a run that was stopped goes on: give the same OUT.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from diffaudio.checkpoint import bundled_model
from diffaudio.diffusion.guidance import Guidance
from diffaudio.diffusion.settings import Projection
from diffaudio.evaluation.backbones import load_backbone
from diffaudio.evaluation.embed import Embedder
from diffaudio.evaluation.recognition import is_recognised
from diffaudio.evaluation.sound_files import find_sounds, read_sounds
from diffaudio.media.audio import write_audio
from diffaudio.metrics.classification import label_key
from diffaudio.metrics.confidence import bootstrap_mean
from diffaudio.pipeline import DiffAudioPipeline

_KINDS = {
    "noise-like": "rain,sea waves,crackling fire,chainsaw,helicopter,flowing water,airplane,train passing,car engine",
    "tonal": "acoustic guitar,banjo,bassoon,cello,clarinet,electric guitar,flute,french horn,harp,mandolin,oboe,piano,"
    "saxophone,sitar,trombone,trumpet,violin,church bell,police siren,car horn",
    "other": "dog barking,rooster crowing,baby crying,person sneezing,clock ticking,drums,gunshot,footsteps,"
    "cat meowing,cow mooing,pig grunting,frog croaking,bee buzzing,crickets chirping,bird singing,keyboard typing",
}
GROUPS = {group: kinds.split(",") for group, kinds in _KINDS.items()}
GROUPS["all"] = [kind for kinds in GROUPS.values() for kind in kinds]
DURATION_S = float(os.environ.get("DURATION", "4"))
TAKES = int(os.environ.get("TAKES", "1"))

SETTINGS: dict[str, dict[str, Any]] = {
    "guidance 3": {},  # the default, which the others are compared with
    **{f"guidance {scale:g}": {"guidance_scale": scale} for scale in (1.0, 1.5, 2.0, 2.5, 3.5, 4.0, 4.5, 5.0)},
    "rescale 0.7": {"guidance_rescale": 0.7},
    "APG": {"guidance": Guidance(projection=Projection())},
    "interval 0.2 to 0.8": {"guidance": Guidance(interval=(0.2, 0.8))},
    "CFG-Zero*": {"guidance": Guidance(zero_star=True, zero_init=0.04)},
    "ddim, eta 0": {"sampler": "ddim", "eta": 0.0},
    "ddim, eta 0.5": {"sampler": "ddim", "eta": 0.5},
    "ddim, eta 1": {"sampler": "ddim", "eta": 1.0},
    "dpm++2m": {"sampler": "dpm++2m"},
    "dpm2_a, eta 0.5": {"sampler": "dpm2_a", "eta": 0.5},
    "euler_a": {"sampler": "euler_a"},
}


@pytest.mark.benchmark
def test_guidance_for_noise_like_and_tonal_kinds(tmp_path):
    out = Path(os.environ.get("OUT", tmp_path))
    pipe = DiffAudioPipeline.from_pretrained(os.environ.get("MODEL", bundled_model()))
    kinds = [kind for kind in os.environ.get("KINDS", "").split(",") if kind] or GROUPS["all"]
    embedder = Embedder([load_backbone("yamnet")])
    scores, right = {}, {}
    for name, settings in SETTINGS.items():
        folder = out / name.replace(" ", "_").replace(",", "").replace("*", "")
        make(pipe, kinds, settings, folder)
        scores[name], right[name] = judge(embedder, folder, kinds)
        print(name, f"{right[name].mean():.3f}", flush=True)
    print("\n| setting | " + " | ".join(GROUPS) + " |\n|---|" + "---|" * len(GROUPS))
    first = next(iter(SETTINGS))
    for name in SETTINGS:
        cells = []
        for group in GROUPS.values():
            places = [index for index, kind in enumerate(kinds) if kind in group]
            change = (scores[name] - scores[first])[places]
            interval = bootstrap_mean(change, generator=torch.Generator().manual_seed(0), resamples=2000)
            ends = f" ({interval.low:+.2f} to {interval.high:+.2f})" if interval and name != first else ""
            cells.append(f"{right[name][places].mean():.2f}, {change.mean():+.2f}{ends}" if places else "–")
        print(f"| {name} | " + " | ".join(cells) + " |")


def make(pipe: DiffAudioPipeline, kinds: list[str], settings: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    items = [(kind, take, folder / f"{kind.replace(' ', '-')}-{take}.wav") for kind in kinds for take in range(TAKES)]
    items = [(place, *item) for place, item in enumerate(items) if not item[-1].exists()]
    for start in range(0, len(items), 25):
        batch = items[start : start + 25]
        generators = [torch.Generator().manual_seed(place) for place, *_ in batch]
        sounds = pipe([kind for _, kind, *_ in batch], generator=generators, audio_length_in_s=DURATION_S, **settings)
        for (_, kind, _, path), waveform in zip(batch, sounds.audios, strict=True):
            path.with_suffix(".json").write_text(json.dumps({"prompt": kind, "label": kind}))
            write_audio(path, waveform, pipe.autoencoder.sample_rate)


def judge(embedder: Embedder, folder: Path, kinds: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """The kind's best logit and the share recognised, for each kind."""
    embedded = embedder.embed(read_sounds(find_sounds(folder)))
    recognised, table = is_recognised(embedded, "yamnet"), embedded.kinds["yamnet"].classes
    scores, right = [], []
    for kind in kinds:
        places = [index for index, wanted in enumerate(embedded.wanted()) if wanted == kind]
        best = embedded.logits["yamnet"][places][:, table[label_key(kind)]].amax(dim=1)
        scores.append(best.mean())
        right.append(torch.tensor([float(bool(recognised[index])) for index in places]).mean())
    return torch.stack(scores).double(), torch.stack(right).double()
