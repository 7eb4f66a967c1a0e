"""Noise on the embeddings that a U-Net is trained on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_encoded import write_encoded_corpus

from diffaudio.corpus.datasets.latents import LatentDataset
from diffaudio.errors import UserError
from diffaudio.seeding import BatchDraws
from diffaudio.training.conditions import check_embedding_noise, noisy_embeddings

MEAN, STD = torch.linspace(-1, 1, 32) / 8, torch.linspace(0.05, 0.2, 32)
DATASET: Any = SimpleNamespace(embedding_statistics=(MEAN, STD))


def draws(count: int) -> BatchDraws:
    return BatchDraws(seed=0, step=0, batch_size=count)


def embeddings(count: int) -> torch.Tensor:
    return F.normalize(MEAN + STD * torch.randn(count, 32, generator=torch.Generator().manual_seed(1)), dim=1)


def test_noise_of_one_norm_turns_every_embedding_by_about_that_angle():
    clean = embeddings(2000)
    noisy = noisy_embeddings(DATASET, clean, draws(len(clean)), norm=0.2)
    torch.testing.assert_close(noisy.norm(dim=1), torch.ones(2000))
    angle = torch.acos((clean * noisy).sum(dim=1).clamp(max=1))
    assert angle.tan().mean().item() == pytest.approx(0.2, rel=0.03)
    torch.testing.assert_close(noisy_embeddings(DATASET, clean, draws(len(clean)), norm=0), clean)


def test_noise_levels_are_uniform_and_stand_in_the_last_column():
    noisy = noisy_embeddings(DATASET, embeddings(4000), draws(4000), norm=0, max_level=0.6)
    assert noisy.shape == (4000, 33)
    level = noisy[:, -1]
    assert 0 <= level.min() < 0.01 and 0.59 < level.max() <= 0.6
    assert level.mean().item() == pytest.approx(0.3, abs=0.01)
    torch.testing.assert_close(noisy[:, :-1].norm(dim=1), torch.ones(4000))


def test_the_higher_its_level_the_less_an_embedding_resembles_itself():
    clean = embeddings(4000)
    noisy = noisy_embeddings(DATASET, clean, draws(len(clean)), norm=0, max_level=1.0)
    similarity, level = (clean * noisy[:, :-1]).sum(dim=1), noisy[:, -1]
    means = [similarity[(level >= low) & (level < low + 0.25)].mean().item() for low in (0, 0.25, 0.5, 0.75)]
    assert means[0] > 0.98
    assert means == sorted(means, reverse=True)
    assert means[-1] < means[0] - 0.3


def test_both_kinds_of_noise_at_once_are_refused():
    check_embedding_noise(0.2, 0)
    check_embedding_noise(0, 0.5)
    with pytest.raises(UserError, match=r"train.embedding_noise 0.2 and train.embedding_noise_level 0.5 are two ways"):
        check_embedding_noise(0.2, 0.5)


def test_the_statistics_of_a_corpus_are_those_of_its_pictures(tmp_path: Path):
    embeddings = F.normalize(torch.randn(5, 16, generator=torch.Generator().manual_seed(2)), dim=1).half().float()
    mean, std = LatentDataset(write_encoded_corpus(tmp_path / "corpus", embeddings=embeddings)).embedding_statistics
    torch.testing.assert_close(mean, embeddings.mean(dim=0))
    torch.testing.assert_close(std, embeddings.std(dim=0, correction=0))
