"""Classifier-free guidance: the formula, and what it costs."""

import pytest
import torch

from diffaudio.diffusion.guidance import Guide

LATENTS = torch.zeros(2, 3, 4)
EMBEDDING = torch.tensor([[1.0], [2.0]])
NEGATIVE = torch.tensor([[10.0], [20.0]])
NULL = -1.0


class Echo:
    """A U-Net that predicts its embedding, and counts over how many items it was run."""

    def __init__(self):
        self.calls = []

    def __call__(self, latents, timestep, embedding=None, keep=None):
        self.calls.append(len(latents))
        if embedding is None:
            embedding = torch.full((len(latents), 1), NULL)
        elif keep is not None:
            embedding = torch.where(keep[:, None], embedding, NULL)
        return latents + embedding[:, :, None]


@pytest.mark.parametrize(
    ("scale", "negative", "expected", "calls"),
    [
        (0, None, [-1.0, -1.0], [2]),
        (1, None, [1.0, 2.0], [2]),
        (3, None, [-1 + 3 * 2.0, -1 + 3 * 3.0], [4]),
        (0.5, None, [0.0, 0.5], [4]),
        (3, NEGATIVE, [10 - 3 * 9.0, 20 - 3 * 18.0], [4]),
    ],
)
def test_guidance_extrapolates_in_as_few_passes_as_it_can(scale, negative, expected, calls):
    unet = Echo()
    guide = Guide(unet, EMBEDDING, scale=scale, predicts="v_prediction", negative_embedding=negative)
    prediction = guide(LATENTS, 500.0, 0.6, 0.8)
    torch.testing.assert_close(prediction, torch.tensor(expected)[:, None, None].expand(2, 3, 4))
    assert unet.calls == calls
