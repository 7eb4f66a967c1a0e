"""Runs of train/diffusion.py compared on held-out clips, and the settings that the study of augmentation needs."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fakes import FakeAutoencoder, FakeClip, write_clips
from scripts import REPO, load_script

from diffaudio.config import parse
from diffaudio.corpus.augment import HELPFUL, AugmentSettings
from diffaudio.corpus.encode.run import encode
from diffaudio.diffusion.training_scheduler import training_scheduler
from diffaudio.models.unet import UNet1D
from diffaudio.pipeline import DiffAudioPipeline

script = load_script("train/compare.py")


@pytest.fixture(autouse=True)
def beside_the_training_script(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "train"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    sounds = [torch.randn(1, 800, generator=torch.Generator().manual_seed(i)) for i in range(30)]
    clips = write_clips(folder / "clips", [0.1 * sound for sound in sounds], [[(250, 0, 0)]] * 30, clips_per_part=30)
    encode(clips, folder / "latents", autoencoder=FakeAutoencoder(), clip=FakeClip(), progress=False)
    return folder / "latents"


def begun(folder: Path, data: Path, *more: str) -> str:
    (folder / "model").mkdir(parents=True)
    lines = [f"data: [{data}]", f"out: {folder}", "autoencoder: a", "clip: b", *(more or ["held_out: 0.5"])]
    (folder / "config.yaml").write_text("\n".join([*lines, "train: {duration_s: 0.1, batch_size: 4}"]))
    return str(folder)


def test_runs_are_compared_on_the_same_clips_and_noise(tmp_path, data, monkeypatch, capsys):
    def load(model):
        torch.manual_seed(0)
        unet = UNet1D(100, 3, channels=(8, 16), attention_levels=(), attention_head_dim=8, condition_dim=16).eval()
        if model.parent.name == "worse":
            torch.nn.init.constant_(unet.conv_out.bias, 1.0)
        return SimpleNamespace(unet=unet, scheduler=training_scheduler("flow"))

    monkeypatch.setattr(DiffAudioPipeline, "from_pretrained", load)
    script.main([begun(tmp_path / name, data) for name in ("first", "same", "worse")])
    first, same, worse = capsys.readouterr().out.splitlines()
    assert first.endswith(" held-out clips") and "first: " in first
    assert same.endswith(", +0.0000 (+0.0000 to +0.0000)")
    difference, low, high = (float(part.strip("(),")) for part in worse.split()[-4:] if part != "to")
    assert low < difference < high and difference == pytest.approx(1, abs=0.2) and high - low < 0.5


def test_runs_that_cannot_be_compared_are_refused(tmp_path, data):
    with pytest.raises(ValueError, match="nowhere: is no run of train/diffusion.py, or one that has not saved"):
        script.main([str(tmp_path / "nowhere")])
    none = begun(tmp_path / "none", data, "held_out: 0")
    with pytest.raises(ValueError, match="none: held out no clips; train with --held_out"):
        script.main([none])
    one, other = begun(tmp_path / "one", data), begun(tmp_path / "other", data, "held_out: 0.3")
    with pytest.raises(ValueError, match="other: held_out is 0.3, of .*one it is 0.5; they must be the same"):
        script.main([one, other])


@pytest.mark.parametrize("path", sorted((REPO / "configs/augment").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_settings_of_the_study_are_valid(path):
    if path.stem == "diffusion":
        from diffusion import Config

        paths = ["--data", "corpus", "--out", "run"]
        assert parse(Config, ["--config", str(path), *paths]).held_out == 0.78
        return
    settings = parse(AugmentSettings, ["--config", str(path)])
    assert settings.changes_sound or settings.changes_pictures


def test_the_default_augmentations_of_copies_are_recorded_in_the_settings():
    assert parse(AugmentSettings, ["--config", str(REPO / "configs/augment/helpful.yaml")]) == HELPFUL
