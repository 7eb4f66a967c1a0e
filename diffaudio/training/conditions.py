"""The embeddings that the U-Net is conditioned on in training, and the noise on them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from diffaudio.corpus.datasets.latents import LatentDataset
from diffaudio.errors import UserError
from diffaudio.models.bridge.noise import noise_embeddings
from diffaudio.seeding import BatchDraws

__all__ = ["check_embedding_noise", "noisy_embeddings"]


def check_embedding_noise(norm: float, max_level: float) -> None:
    """Reject settings that ask for both kinds of noise.

    Raises:
        ValueError: neither is 0.
    """
    if norm and max_level:
        raise UserError(
            f"train.embedding_noise {norm:g} and train.embedding_noise_level {max_level:g} are two ways of adding "
            "noise to embeddings; set one of them to 0"
        )


def noisy_embeddings(
    dataset: LatentDataset, embeddings: Tensor, draws: BatchDraws, *, norm: float, max_level: float = 0.0
) -> Tensor:
    """Embeddings of training pictures with Gaussian noise, normalised to unit norm again.

    With `max_level`, it is unCLIP's noise augmentation (Ramesh et al. 2022, arXiv:2204.06125, section 2.1): noise of a
    random level in the standardised space, and the U-Net is told the level.

    Args:
        dataset: gives the mean and standard deviation for `max_level`.
        embeddings: [batch, dim], unit norm.
        draws: for these items.
        norm: expected norm of the noise, the same for all items.
        max_level: levels are drawn uniformly from 0 to this; 0 for none.

    Returns:
        [batch, dim]; with `max_level` [batch, dim + 1], whose last column is the level.
    """
    if not (norm or max_level):
        return F.normalize(embeddings, dim=1)
    noise = draws.normal(embeddings.shape[1])
    if not max_level:
        return F.normalize(embeddings + norm * embeddings.shape[1] ** -0.5 * noise, dim=1)
    level = max_level * draws.uniform()[0].float()[:, None]
    mean, std = dataset.embedding_statistics
    noisy = noise_embeddings((embeddings - mean) / std, level, noise)
    return torch.cat([F.normalize(mean + std * noisy, dim=1), level], dim=1)
