"""Captions in place of pictures: the labelled baseline."""

from pathlib import Path
from typing import Any

import pytest
import torch
from scripts import REPO, load_script
from tiny_encoded import write_encoded_corpus
from tiny_model import write_tiny_model

from diffaudio.cli import evaluate_bridge
from diffaudio.config import parse
from diffaudio.corpus.datasets.latents import draw_batch
from diffaudio.errors import UserError
from diffaudio.models.clip import Clip
from diffaudio.seeding import BatchDraws
from diffaudio.training.captions import CaptionedDataset, CaptionSettings, check_captions, read_captions
from diffaudio.training.conditions import check_embedding_noise


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and a corpus of three clips of which the second has an augmented copy."""
    folder = tmp_path_factory.mktemp("captions")
    write_tiny_model(folder / "model")
    write_encoded_corpus(folder / "corpus")
    return folder


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return Clip.from_pretrained(folder / "model" / "clip")


def drawn(dataset: CaptionedDataset, clips: list[int]) -> torch.Tensor:
    return draw_batch(dataset, clips, num_frames=4, draws=BatchDraws(0, 0, len(clips)))[1]


def test_each_clip_is_conditioned_on_a_caption_of_its_own(folder: Path, clip: Clip):
    dataset = CaptionedDataset(clip, CaptionSettings(str(folder / "labels.csv")), folder / "corpus")
    texts = clip.encode_text(["a dog", "rain", "a roof", "the sound"])
    nearest = [(texts - row).norm(dim=1).argmin().item() for row in drawn(dataset, [0, 2, 1, 1, 1, 1, 1, 1])]
    assert nearest[:2] == [0, 3]
    assert set(nearest[2:]) == {1, 2}  # also through the augmented copy
    torch.testing.assert_close(drawn(dataset, [0])[0], texts[0], rtol=0, atol=1e-3)
    assert dataset[0]["latents"].shape == (8, 9)


def test_templates_are_further_captions(folder: Path, clip: Clip):
    settings = CaptionSettings(str(folder / "labels.csv"), templates=["the sound of {}", "{} on the roof"])
    dataset = CaptionedDataset(clip, settings, folder / "corpus")
    texts = clip.encode_text(["the sound of a dog", "a dog on the roof"])
    found = {(texts - row).norm(dim=1).argmin().item() for row in drawn(dataset, [0] * 8)}
    assert found == {0, 1}


def test_the_captions_of_the_corpus_itself_serve_too(folder: Path, clip: Clip):
    dataset = CaptionedDataset(clip, CaptionSettings("corpus"), folder / "corpus")
    torch.testing.assert_close(drawn(dataset, [2]), clip.encode_text(["caption 2"]), rtol=0, atol=1e-3)


def test_tables_that_do_not_fit_are_refused(folder: Path, clip: Clip, tmp_path: Path):
    def refused(content: str, message: str, **settings: Any) -> None:
        (tmp_path / "table.csv").write_text(content)
        with pytest.raises(UserError, match=message):
            CaptionedDataset(clip, CaptionSettings(str(tmp_path / "table.csv"), **settings), folder / "corpus")

    refused("file,label\n0.mp4,a dog\n", r"has no caption for 2 of 3 clips, such as videos/1.mp4")
    refused("file,text\n0.mp4,a dog\n", r"has no column 'label'; it has file, text")
    refused("", r"has no column 'name'; it has none", file_column="name")
    refused("file,label\n0.mp4, \n", r"table.csv, line 2: the caption is empty")
    with pytest.raises(UserError, match=r"gone.csv cannot be read: No such file"):
        read_captions(tmp_path / "gone.csv", "file", "label")


def test_settings_that_would_have_no_effect_or_spoil_the_texts_are_refused():
    check_captions(CaptionSettings(), "retrieval")
    check_captions(CaptionSettings("labels.csv"), "none")
    with pytest.raises(UserError, match=r"captions.templates has no effect without captions.source"):
        check_captions(CaptionSettings(templates=["{}"]), "none")
    with pytest.raises(UserError, match=r"bridge.kind retrieval maps texts to pictures, .* set bridge.kind to none"):
        check_captions(CaptionSettings("labels.csv"), "retrieval")
    with pytest.raises(UserError, match=r"captions: prompt template 'a sound' does not contain"):
        check_captions(CaptionSettings("labels.csv", templates=["a sound"]), "none")
    with pytest.raises(UserError, match=r"have no effect with the corpus' own captions"):
        check_captions(CaptionSettings("corpus", text_column="text"), "none")


def test_the_configs_of_the_baselines_are_valid(tmp_path: Path):
    configs = REPO / "configs" / "baselines"
    given = ["--config", str(configs / "clip_tta.yaml"), "--data", "a", "--out", "b", "--captions.source", "labels.csv"]
    tta = parse(load_script("train/diffusion.py").Config, given)
    check_captions(tta.captions, tta.bridge.kind)
    assert (tta.captions.source, tta.bridge.kind, tta.bridge.texts) == ("labels.csv", "none", [])
    given = ["--config", str(configs / "prior_sd.yaml"), "--clip", "c", "--corpus", '["a"]', "--out", "b"]
    prior = parse(load_script("train/prior.py").Config, [*given, "--captions.source", "labels.csv"])
    check_captions(prior.captions, "none")
    assert prior.corpus == [Path("a")] and prior.images is None
    for name in ("prior", "prior_text_free"):
        parse(load_script("train/prior.py").Config, ["--config", str(REPO / f"configs/clip/{name}.yaml"), *given[2:]])
    given = ["--config", str(configs / "image_query.yaml"), "--data", "a", "--labels", "b"]
    assert parse(evaluate_bridge.Options, given).bridge == ["none"]
    noisy = parse(
        load_script("train/diffusion.py").Config,
        ["--config", str(REPO / "configs/mini/embedding_noise.yaml"), "--data", "a", "--out", "b"],
    )
    check_embedding_noise(noisy.train.embedding_noise, noisy.train.embedding_noise_level)
    assert noisy.bridge.noise_level is not None and noisy.bridge.noise_level <= noisy.train.embedding_noise_level
