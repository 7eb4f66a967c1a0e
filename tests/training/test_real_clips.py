"""Any CLIP encodes a corpus, is trained with and is queried in the same way."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import write_clips
from PIL import Image
from real_clips import NAMES, write_real_clips
from scripts import REPO, load_script
from tiny_model import write_tiny_clip, write_tiny_model

from diffaudio.cli.main import main
from diffaudio.config import parse
from diffaudio.errors import UserError
from diffaudio.models.clip import Clip
from diffaudio.pipeline import DiffAudioPipeline
from diffaudio.queries.query import Part, Query

COLOURS = [[(250, 0, 0), (0, 250, 0)], [(0, 0, 250)], [(120, 120, 120)]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny `model`, a corpus of `clips`, and a folder for each CLIP."""
    folder = tmp_path_factory.mktemp("data")
    write_tiny_model(folder / "model")
    generator = torch.Generator().manual_seed(0)
    waveforms = [0.1 * torch.randn(1, 8000, generator=generator).clamp(-3, 3) for _ in COLOURS]
    write_clips(folder / "clips", waveforms, COLOURS)
    write_real_clips(folder, write_tiny_clip(folder / "tiny"))
    return folder


def train(data: Path, encoded: Path, clip: Path, out: Path) -> None:
    script = load_script("train/diffusion.py")
    arguments: list[Any] = ["--config", REPO / "configs/tiny/diffusion.yaml", "--data", encoded, "--out", out]
    arguments += ["--autoencoder", data / "model/autoencoder", "--clip", clip, "--bridge.texts", '["a dog", "rain"]']
    arguments += ["--train.steps", "1", "--train.threads", "1", "--train.precision", "no", "--samples.prompts", "[]"]
    arguments += ["--held_out", "0", "--samples.evaluate", "false"]
    script.main(parse(script.Config, [str(argument) for argument in arguments]))


@pytest.mark.parametrize("name", NAMES)
def test_a_corpus_is_encoded_trained_on_and_queried_with_any_clip(data: Path, tmp_path: Path, name: str):
    clip_folder = data / {"ViT-B-32": "vit", "SigLIP": "siglip", "Hugging Face": "hugging"}[name]
    encoders = ["--autoencoder", str(data / "model/autoencoder"), "--clip", str(clip_folder)]
    assert main(["encode", str(data / "clips"), "-o", str(tmp_path / "encoded"), *encoders]) == 0
    train(data, tmp_path / "encoded", clip_folder, tmp_path / "run")
    pipe, clip = DiffAudioPipeline.from_pretrained(tmp_path / "run/model"), Clip.from_pretrained(clip_folder)
    assert pipe.clip.name == clip.name
    torch.testing.assert_close(pipe.clip.encode_text(["a dog"]), clip.encode_text(["a dog"]), atol=2e-3, rtol=0)
    photo = Image.new("RGB", (80, 40), "red")
    torch.testing.assert_close(pipe.clip.encode_image([photo]), clip.encode_image([photo]), atol=2e-3, rtol=0)
    quick = {"num_inference_steps": 1, "audio_length_in_s": 0.2}
    mixed = Query((Part("text", "rain"), Part("image", photo)))
    sounds = pipe(["rain", mixed], templates=["{}", "the sound of {}"], negative_image=photo, **quick).audios
    assert sounds.shape == (2, 1, 1600) and sounds.isfinite().all()
    with pytest.raises(
        UserError, match=rf"encoded: embeddings were made by CLIP '{clip.name}', the checkpoint wants 'tiny'"
    ):
        train(data, tmp_path / "encoded", data / "tiny", tmp_path / "other")


def test_a_corpus_is_not_continued_with_another_clip(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def encode(clip: str) -> int:
        encoders = ["--autoencoder", str(data / "model/autoencoder"), "--clip", str(data / clip)]
        return main(["encode", str(data / "clips"), "-o", str(tmp_path / "encoded"), *encoders])

    assert encode("tiny") == 0
    assert encode("tiny") == 0
    capsys.readouterr()
    assert encode("hugging") == 2
    assert "was encoded with clip {'name': 'tiny'" in capsys.readouterr().err
    retrained = tmp_path / "retrained"
    shutil.copytree(data / "tiny", retrained)
    clip = Clip.from_pretrained(retrained)
    torch.nn.init.constant_(next(clip.parameters()), 0.5)
    clip.save_pretrained(retrained)
    assert encode(str(retrained)) == 2
    assert "was encoded with clip {'weights'" in capsys.readouterr().err
