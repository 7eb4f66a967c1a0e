"""Bridges across a known gap: a CLIP whose texts are rotated and shifted away from its pictures by construction.

Pictures of a kind lie around a direction of that kind. The text of a kind is the same direction, rotated in random
planes by a given angle, moved by a given shift, and with noise of its own. A small U-Net is trained to make from a
picture's embedding the latents of its kind, which are told apart without error; it never sees a text. What is measured
is how often the kind of a query is recognised in what the U-Net makes, from held-out texts by each bridge, and from
held-out pictures.

    pytest tests/benchmarks/test_artificial_gap.py -m benchmark -s
"""

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffaudio.diffusion.loss import diffusion_loss
from diffaudio.diffusion.sampling import draw_noise, make_sampler, sample
from diffaudio.diffusion.training_scheduler import training_scheduler
from diffaudio.evaluation.bridges.gap import add_gap_closed
from diffaudio.evaluation.table import Table
from diffaudio.models.bridge.bridges import Bridge, fit_bridge
from diffaudio.models.bridge.prior import PriorBridge, prior_loss
from diffaudio.models.unet import UNet1D
from diffaudio.seeding import BatchDraws

KINDS, DIM, CHANNELS, FRAMES = 12, 32, 8, 8


@dataclass(frozen=True)
class ArtificialClip:
    """Embeddings of pictures and texts, [KINDS * each, DIM], the kinds one after the other."""

    angle: float
    shift: float
    spread: float = 0.5

    def kinds(self, each: int) -> Tensor:
        return torch.arange(KINDS).repeat_interleave(each)

    def _directions(self, each: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        of_kind = F.normalize(torch.randn(KINDS, DIM, generator=generator), dim=-1)
        noise = torch.randn(KINDS * each, DIM, generator=torch.Generator().manual_seed(seed)) / DIM**0.5
        return F.normalize(of_kind[self.kinds(each)] + self.spread * noise, dim=-1)

    def pictures(self, each: int, seed: int) -> Tensor:
        return self._directions(each, seed)

    def texts(self, each: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        planes = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator)).Q
        rotation = torch.eye(DIM)
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        for first in range(0, DIM, 2):
            plane = slice(first, first + 2)
            rotation[plane, plane] = torch.tensor([[cos, -sin], [sin, cos]])
        away = F.normalize(torch.randn(DIM, generator=generator), dim=0)
        return F.normalize(self._directions(each, seed) @ (planes @ rotation @ planes.T).T + self.shift * away, dim=-1)


def latents_of_kinds() -> Tensor:
    """[KINDS, CHANNELS, FRAMES]: a pattern for each kind, far from each other."""
    return 1.5 * torch.randn(KINDS, CHANNELS, FRAMES, generator=torch.Generator().manual_seed(2)).sign()


def train_unet(pictures: Tensor, kinds: Tensor, steps: int) -> UNet1D:
    torch.manual_seed(0)
    unet = UNet1D(
        CHANNELS, DIM, channels=(48, 64), blocks_per_level=1, middle_blocks=1, attention_levels=(),
        attention_head_dim=16, condition_dim=64, dropout=0.0,
    )  # fmt: skip
    optimizer, scheduler = torch.optim.AdamW(unet.parameters(), lr=3e-3), training_scheduler("flow")
    patterns, generator = latents_of_kinds(), torch.Generator().manual_seed(3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        pick = torch.randint(len(pictures), (64,), generator=generator)
        clean = patterns[kinds[pick]] + 0.1 * torch.randn(64, CHANNELS, FRAMES, generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        draws = BatchDraws(3, step, len(clean))
        loss = diffusion_loss(unet, clean, pictures[pick], noise=noise, scheduler=scheduler, draws=draws)
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
    return unet.eval()


@torch.no_grad()
def recognised(unet: UNet1D, embeddings: Tensor, kinds: Tensor) -> Tensor:
    """Whether the pattern nearest to what the U-Net makes is that of the kind: [queries], 0 or 1."""
    generators = [torch.Generator().manual_seed(index) for index in range(len(embeddings))]
    made = sample(
        unet, make_sampler("heun", training_scheduler("flow").config), draw_noise((CHANNELS, FRAMES), generators),
        embeddings, num_inference_steps=8, guidance_scale=1.0, generators=generators,
    )  # fmt: skip
    distances = (made[:, None] - latents_of_kinds()).square().sum(dim=(2, 3))
    return (distances.argmin(dim=1) == kinds).double()


def train_prior(texts: Tensor, pictures: Tensor, steps: int) -> PriorBridge:
    torch.manual_seed(0)
    bridge = PriorBridge(DIM, num_layers=2, num_attention_heads=4, attention_head_dim=16, steps=10)
    bridge.transformer.clip_mean.data.copy_(pictures.mean(0))
    bridge.transformer.clip_std.data.copy_(pictures.std(0))
    optimizer, generator = torch.optim.AdamW(bridge.transformer.parameters(), lr=2e-3), torch.Generator().manual_seed(4)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / steps)
        pick = torch.randint(len(texts), (128,), generator=generator)
        prior_loss(bridge.predict, bridge, texts[pick], pictures[pick], generator).backward()
        optimizer.step()
        optimizer.zero_grad()
    return bridge.eval()


@pytest.mark.benchmark
def test_a_prior_closes_at_least_half_of_a_known_gap():
    clip = ArtificialClip(angle=1.2, shift=0.8)
    pictures, kinds = clip.pictures(40, seed=10), clip.kinds(40)
    unet = train_unet(pictures, kinds, steps=300)
    # captions of other pictures, in the order of the kinds: what a prior learns from
    captions, captioned = clip.texts(40, seed=20), clip.pictures(40, seed=20)
    bridges: dict[str, Bridge] = {
        name: fit_bridge(name, pictures, captions) for name in ("none", "shift", "spread", "noise", "retrieval")
    }
    bridges["prior"] = train_prior(captions, captioned, steps=200)

    queries, of_queries = clip.texts(10, seed=30), clip.kinds(10)
    right = {name: recognised(unet, bridge(queries), of_queries) for name, bridge in bridges.items()}
    right["pictures"] = recognised(unet, clip.pictures(10, seed=31), of_queries)
    closed = {}
    print(f"\nrotation {clip.angle} rad, shift {clip.shift}; {len(of_queries)} queries, chance {1 / KINDS:.2f}")
    for name, values in right.items():
        table = Table(seed=0, resamples=100)
        none, bridge, best = (
            (lambda some, v=v: float(v[some].mean())) for v in (right["none"], values, right["pictures"])
        )
        add_gap_closed("recognised", none, bridge, best, len(values), table)
        share = table.metrics[0] if table.metrics else None
        closed[name] = share.value if share else None
        written = "" if share is None else f"gap closed {share.value:.2f} [{share.low:.2f}, {share.high:.2f}]"
        print(f"{name:10} recognised {values.mean():.3f}  {written}")
    assert right["pictures"].mean() > 0.9
    assert right["none"].mean() < 0.5
    assert closed["prior"] is not None and closed["prior"] >= 0.5
