"""An adapter trained on ten clips of one new kind: what it does to its own words, and to others.

    NEW_KIND="bird singing" CLIPS=folder/of/ten/videos WORDS="birds singing" OMP_NUM_THREADS=1 \
        pytest tests/benchmarks/test_lora_new_kind.py -m benchmark -s -n0

The clips are prepared and encoded with the bundled model's parts, an adapter of the bundled model is trained on them,
and prompts are generated with and without it from the same seeds. YAMNet says how likely each sound is of the new kind
and of the kind of its prompt; the log-mel distance says how much the adapter changed it. STEPS sets the length of the
training; OUT keeps the files.
"""

import os
from pathlib import Path

import pytest
import soundfile
import torch
from scripts import REPO, load_script

from diffaudio.cli.main import main
from diffaudio.config import parse
from diffaudio.evaluation.backbones import load_backbone
from diffaudio.media.audio import resample
from diffaudio.metrics.reconstruction import LOG_MEL_RATE, log_mel_distance_db

pytestmark = pytest.mark.benchmark

OTHERS = {
    "a dog barking": "dog barking",
    "rain on a roof": "rain",
    "a rooster crowing": "rooster crowing",
    "sea waves": "sea waves",
    "someone plays the cello": "cello",
}
TAKES, DURATION_S = 4, "2.5"


def probability(backbone, files: list[Path], kind: str) -> torch.Tensor:
    """The highest probability that any class of a kind has, for each file."""
    waveforms = []
    for file in files:
        samples, rate = soundfile.read(file, dtype="float32")
        waveforms.append(resample(torch.from_numpy(samples)[None], rate, backbone.sample_rate)[0])
    scores = backbone.embed(waveforms)[1].sigmoid()
    return scores[:, backbone.kinds.classes[kind]].amax(dim=1)


def change_db(one: Path, other: Path) -> float:
    pair = [resample(torch.from_numpy(soundfile.read(file, dtype="float32")[0])[None], 24000, LOG_MEL_RATE)[0]
            for file in (one, other)]  # fmt: skip
    return log_mel_distance_db(*pair)


def test_an_adapter_changes_its_own_words_and_not_others(tmp_path):
    kind, words = os.environ["NEW_KIND"], os.environ["WORDS"]
    out = Path(os.environ.get("OUT", tmp_path))
    clips, encoded = out / "clips", out / "encoded"
    if not encoded.exists():
        assert main(["prepare", os.environ["CLIPS"], "-o", str(clips), "--workers", "1"]) == 0
        assert main(["encode", str(clips), "-o", str(encoded)]) == 0
    script = load_script("train/diffusion.py")
    arguments = ["--config", str(REPO / "configs/lora/bundled.yaml"), "--data", str(encoded), "--out", str(out / "run")]
    arguments += ["--train.steps", os.environ.get("STEPS", "150"), "--bridge.texts", f'["{words}"]']
    script.main(parse(script.Config, arguments))

    prompts = [words, *OTHERS]
    for name, more in (("without", []), ("with", ["--lora", str(out / "run/lora")])):
        assert main(["generate", *prompts, "-o", str(out / name), "--takes", str(TAKES), "--seed", "0", "--duration",
                     DURATION_S, "--overwrite", *more]) == 0  # fmt: skip
    backbone = load_backbone("yamnet", torch.device("cpu"))
    rows = {}
    for prompt in prompts:
        pairs = [sorted((out / name).glob(f"{prompt.replace(' ', '-')}*.wav")) for name in ("without", "with")]
        assert len(pairs[0]) == len(pairs[1]) == TAKES
        own = OTHERS.get(prompt, kind)
        new = [float(probability(backbone, files, kind).mean()) for files in pairs]
        kept = [float(probability(backbone, files, own).mean()) for files in pairs]
        changed = sum(change_db(*pair) for pair in zip(*pairs, strict=True)) / TAKES
        rows[prompt] = (*new, *kept, changed)
    print(f"\n{'prompt':26} {kind + ': before, after':>32} {'own kind: before, after':>26} {'change, dB':>11}")
    for prompt, (new_before, new_after, own_before, own_after, changed) in rows.items():
        print(f"{prompt:26} {new_before:18.3f} {new_after:13.3f} {own_before:14.3f} {own_after:11.3f} {changed:11.2f}")
    others = [rows[prompt] for prompt in OTHERS]
    assert rows[words][1] > rows[words][0] + 0.2
    assert rows[words][4] > 1.5 * sum(row[4] for row in others) / len(others)
    assert sum(row[3] for row in others) > 0.8 * sum(row[2] for row in others)
