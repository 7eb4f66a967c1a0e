"""The denoising U-Net: one-dimensional, conditioned on a CLIP embedding and the noise level.

    x       noisy latents                         [batch, in_channels, frames]
    t       timestep, 0 (clean) to 1000 (noise)   [batch] or a scalar
    e       CLIP embedding, unit norm             [batch, embedding_dim]
    l       its noise level, where trained so     [batch], 0 (clean) to 1 (noise); the last value of e's row

Each level halves the number of frames. The encoder and decoder half of a level are residual blocks, then
self-attention where `attention_levels` includes the level; the lowest level is `middle_blocks` pairs of the two.
One skip connection joins the two halves of a level. Internally, tensors are [batch, frames, channels], so
that every convolution and every change of frame rate is one matrix product: on CPUs this takes three quarters
of the time of `nn.Conv1d`.

The conditioning enters each residual block as a scale and a shift (FiLM, Perez et al. 2017,
arXiv:1709.07871). Attention encodes positions as rotary angles (Su et al. 2021, arXiv:2104.09864)
and reaches `attention_window` frames to either side, so sounds longer than the training crops
produce no relative distance unseen in training.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from diffaudio.errors import UserError

__all__ = ["UNet1D"]

_ROTARY_BASE = 1000.0
_TIMESTEP_FEATURES = 256
_LEVEL_STEPS = 1000  # noise levels of embeddings are encoded like timesteps


class UNet1D(ModelMixin, ConfigMixin):
    """Predicts from noisy latents the quantity set in the scheduler's config (noise, velocity or flow).

    Args:
        in_channels: channels of the latents.
        embedding_dim: size of the CLIP embedding.
        channels: width of each level, from the full frame rate down; each level has half the frames of the one above.
        blocks_per_level: residual blocks in either half of a level above the lowest.
        middle_blocks: pairs of residual block and attention at the lowest level.
        attention_levels: levels above the lowest whose halves end in self-attention.
        attention_head_dim: size of one attention head; divides those levels' widths.
        attention_window: reach of attention to either side, in latent frames.
        condition_dim: size of the conditioning vector passed to the blocks.
        dropout: applied before the second convolution of each residual block.
        embedding_noise_level: the highest noise level of embeddings in training (unCLIP's noise augmentation, Ramesh et
            al. 2022, arXiv:2204.06125, section 2.1); above 0, the U-Net is also conditioned on the level.

    Raises:
        ValueError: `attention_head_dim` is odd or does not divide the width of a level with attention,
            or `attention_levels` names a level that is not above the lowest.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        in_channels: int = 128,
        embedding_dim: int = 384,
        channels: tuple[int, ...] = (256, 384, 512),
        blocks_per_level: int = 2,
        middle_blocks: int = 3,
        attention_levels: tuple[int, ...] = (1,),
        attention_head_dim: int = 64,
        attention_window: int = 128,
        condition_dim: int = 256,
        dropout: float = 0.1,
        embedding_noise_level: float = 0.0,
    ) -> None:
        super().__init__()
        _check_attention(channels, attention_levels, attention_head_dim)
        self.null_embedding = nn.Parameter(torch.zeros(embedding_dim))
        self.timestep_features = Timesteps(_TIMESTEP_FEATURES, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.timestep_mlp = TimestepEmbedding(_TIMESTEP_FEATURES, condition_dim)
        self.embedding_mlp = TimestepEmbedding(embedding_dim, condition_dim)

        upper = range(len(channels) - 1)  # the levels above the lowest
        res_block = partial(_ResBlock, condition_dim=condition_dim, dropout=dropout)
        # Frames halve from level to level, and so does the window.
        attention = [partial(_Attention, attention_head_dim, attention_window >> i) for i in range(len(channels))]
        attention_at = {i: attention[i] for i in attention_levels}

        self.conv_in = _Conv(in_channels, channels[0])
        self.down_stages = nn.ModuleList(
            _Stage.above_lowest(channels[i], channels[i], blocks_per_level, res_block, attention_at.get(i))
            for i in upper
        )
        self.downsamplers = nn.ModuleList(nn.Linear(2 * channels[i], channels[i + 1]) for i in upper)
        self.middle = _Stage.lowest(channels[-1], middle_blocks, res_block, attention[-1])
        self.upsamplers = nn.ModuleList(nn.Linear(channels[i + 1], 2 * channels[i]) for i in upper)
        self.up_stages = nn.ModuleList(
            _Stage.above_lowest(2 * channels[i], channels[i], blocks_per_level, res_block, attention_at.get(i))
            for i in upper
        )
        self.norm_out = nn.LayerNorm(channels[0])
        self.conv_out = _zero(_Conv(channels[0], in_channels))
        if embedding_noise_level:
            self.noise_level_mlp = TimestepEmbedding(_TIMESTEP_FEATURES, condition_dim)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor | float,
        embedding: Tensor | None = None,
        condition_mask: Tensor | None = None,
    ) -> Tensor:
        """Predict from noisy latents.

        Args:
            latents: [batch, in_channels, frames], any number of frames from 1 up.
            timestep: [batch], or one scalar for all; 0 is clean, 1000 is noise.
            embedding: [batch, embedding_dim], unit norm; None is unconditional. A U-Net with `embedding_noise_level`
                also takes [batch, embedding_dim + 1], whose last column is the noise level; without it, that is 0.
            condition_mask: bool [batch]; rows that are False use the learned null embedding instead.

        Returns:
            [batch, in_channels, frames], in the latents' dtype; computed in the weights' dtype.
        """
        num_frames = latents.shape[-1]
        condition = self._condition(len(latents), timestep, embedding, condition_mask)  # [batch, condition_dim]
        padding = -num_frames % 2 ** len(self.downsamplers)

        x = F.pad(latents.transpose(1, 2), (0, 0, 0, padding))  # [batch, frames, in_channels]
        x = self.conv_in(x.to(self.conv_in.weight.dtype))  # [batch, frames, channels[0]]
        skips = []
        for stage, downsampler in zip(self.down_stages, self.downsamplers, strict=True):
            x = stage(x, condition)  # [batch, frames / 2^i, channels[i]]
            skips.append(x)
            x = downsampler(x.unflatten(1, (-1, 2)).flatten(2))  # [batch, frames / 2^(i+1), channels[i+1]]
        x = self.middle(x, condition)  # [batch, frames / 2^lowest, channels[-1]]
        for upsampler, stage in zip(reversed(self.upsamplers), reversed(self.up_stages), strict=True):
            x = upsampler(x).unflatten(2, (2, -1)).flatten(1, 2)  # [batch, frames / 2^i, channels[i]]
            x = stage(torch.cat([x, skips.pop()], dim=2), condition)  # [batch, frames / 2^i, channels[i]]
        x = self.conv_out(F.silu(self.norm_out(x)))  # [batch, frames, in_channels]
        return x[:, :num_frames].transpose(1, 2).contiguous().to(latents.dtype)

    def _condition(
        self, batch: int, timestep: Tensor | float, embedding: Tensor | None, condition_mask: Tensor | None
    ) -> Tensor:
        """Noise level and CLIP embedding as one vector for the blocks: [batch, condition_dim]."""
        null = self.null_embedding
        level = torch.zeros(batch, device=null.device)
        if embedding is not None and self.config["embedding_noise_level"] and embedding.shape[1] > len(null):
            embedding, level = embedding[:, :-1], embedding[:, -1].float()
        if embedding is None:
            embedding = null.expand(batch, -1)
        elif condition_mask is not None:
            condition_mask = condition_mask.to(null.device)
            embedding, level = torch.where(condition_mask[:, None], embedding, null), level * condition_mask
        timestep = torch.as_tensor(timestep, dtype=torch.float32, device=null.device).expand(batch)
        noise_embedding = self.timestep_mlp(self.timestep_features(timestep).to(null.dtype))
        # The entries of a unit vector are small; scaling gives them the unit variance that layers expect.
        clip_embedding = self.embedding_mlp(embedding.to(null.dtype) * math.sqrt(embedding.shape[-1]))
        if self.config["embedding_noise_level"]:
            level_features = self.timestep_features(_LEVEL_STEPS * level).to(null.dtype)
            clip_embedding = clip_embedding + self.noise_level_mlp(level_features)
        return F.silu(noise_embedding + clip_embedding)


class _Stage(nn.ModuleList):
    """A sequence of blocks with the same conditioning vector: [batch, frames, in_width] -> [batch, frames, width]."""

    gradient_checkpointing = False  # set by diffusers' `enable_gradient_checkpointing`, as is the function
    _gradient_checkpointing_func: Callable[..., Tensor]

    @classmethod
    def above_lowest(
        cls,
        in_width: int,
        width: int,
        num_blocks: int,
        res_block: "Callable[[int, int], _ResBlock]",
        attention: "Callable[[int], _Attention] | None",
    ) -> "_Stage":
        """Residual blocks, then attention where the level has it."""
        blocks: list[nn.Module] = [res_block(w, width) for w in [in_width] + [width] * (num_blocks - 1)]
        return cls(blocks if attention is None else [*blocks, attention(width)])

    @classmethod
    def lowest(
        cls,
        width: int,
        num_pairs: int,
        res_block: "Callable[[int, int], _ResBlock]",
        attention: "Callable[[int], _Attention]",
    ) -> "_Stage":
        """Pairs of residual block and attention."""
        return cls(block for _ in range(num_pairs) for block in (res_block(width, width), attention(width)))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        for block in self:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, x, condition)
            else:
                x = block(x, condition)
        return x


class _Conv(nn.Linear):
    """Convolution over 3 frames as a matrix product: [batch, frames, in] -> [batch, frames, out]."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__(3 * in_width, out_width)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(self.windows(input))

    @staticmethod
    def windows(input: Tensor) -> Tensor:
        """Each frame with its two neighbours: [batch, frames, width] -> [batch, frames, 3 * width]."""
        return _Windows.apply(input)


class _Windows(torch.autograd.Function):
    """`_Conv.windows`, whose backward pass adds in place what autograd would pad with zeros first.

    That took a tenth of a training step.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        windows = input.new_empty(*input.shape[:2], 3 * input.shape[2])
        before, same, after = windows.chunk(3, dim=2)
        before[:, 0], before[:, 1:] = 0, input[:, :-1]
        same.copy_(input)
        after[:, :-1], after[:, -1] = input[:, 1:], 0
        return windows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        before, same, after = gradients[0].chunk(3, dim=2)
        total = same.clone()
        total[:, :-1] += before[:, 1:]
        total[:, 1:] += after[:, :-1]
        return total


class _ResBlock(nn.Module):
    """Residual block of two convolutions; the conditioning scales and shifts the activations between them."""

    def __init__(self, in_width: int, out_width: int, condition_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(in_width)
        self.conv1 = _Conv(in_width, out_width)
        self.film = nn.Linear(condition_dim, 2 * out_width)
        self.norm2 = nn.LayerNorm(out_width, elementwise_affine=False)
        self.dropout = _Dropout(dropout)
        self.conv2 = _zero(_Conv(out_width, out_width))
        self.shortcut = nn.Identity() if in_width == out_width else nn.Linear(in_width, out_width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [batch, frames, in_width], condition [batch, condition_dim] -> [batch, frames, out_width]."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.film(condition)[:, None].chunk(2, dim=2)  # [batch, 1, out_width] each
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(h)))


class _Attention(nn.Module):
    """Self-attention over frames, residual: [batch, frames, width] -> the same."""

    def __init__(self, head_dim: int, window: int, width: int) -> None:
        super().__init__()
        self.head_dim, self.window = head_dim, window
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = _zero(nn.Linear(width, width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        qkv, mask = self.qkv(self.norm(x)), _window_mask(self.window, x.shape[1], x.device)
        if qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16 and torch.is_grad_enabled():
            with torch.autocast("cpu", enabled=False):  # in bf16, the backward pass takes four times as long
                h = self._attend(qkv.float(), mask).to(qkv.dtype)
        else:
            h = self._attend(qkv, mask)
        return x + self.out(h)

    def _attend(self, qkv: Tensor, mask: Tensor | None) -> Tensor:
        """[batch, frames, 3 * width] -> [batch, frames, width]."""
        q, k, v = qkv.unflatten(2, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        # Normalised queries and keys keep the logits within the range of half precision.
        q, k = (_NormaliseAndRotate.apply(y).to(v.dtype) for y in (q, k))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class _Dropout(nn.Dropout):
    """Dropout whose mask comes from 16 random bits an element on CPUs, in a third of the time of `nn.Dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not 0 < self.p < 1 or input.device.type != "cpu":
            return super().forward(input)
        bits = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = bits[: input.numel()].view(input.shape) >= round(2**16 * self.p) - 2**15
        return input * kept.to(input.dtype).mul_(1 / (1 - self.p))


class _NormaliseAndRotate(torch.autograd.Function):
    """Rotated frames of unit root mean square: [batch, heads, frames, head_dim] -> the same.

    The backward pass in closed form takes a third of the time of autograd's, a tenth of a training step.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _rotate(F.rms_norm(x, x.shape[-1:]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gradient, y = _rotate(gradients[0].float(), -1), x.float()
        scale = torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + torch.finfo(torch.float32).eps)
        y = y * scale
        along = (gradient * y).mean(dim=-1, keepdim=True)
        return torch.addcmul(gradient, y, along, value=-1).mul_(scale).to(x.dtype)


def _rotate(x: Tensor, sign: int = 1) -> Tensor:
    """Rotate channel pairs by angles proportional to the frame index: [batch, heads, frames, head_dim] -> the same."""
    half = x.shape[-1] // 2
    rates = _ROTARY_BASE ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)[:, None] * (sign * rates)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def _window_mask(window: int, num_frames: int, device: torch.device) -> Tensor | None:
    """Which frames attend to which, bool [frames, frames]; None where all attend to all."""
    if num_frames <= window:
        return None
    frame = torch.arange(num_frames, device=device)
    return (frame[:, None] - frame).abs() < window


def _zero(layer: nn.Linear) -> nn.Linear:
    """Initialise the last layer of a residual path to zero, so that the path initially adds nothing."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _check_attention(channels: tuple[int, ...], attention_levels: tuple[int, ...], head_dim: int) -> None:
    lowest = len(channels) - 1
    for level in attention_levels:
        if not 0 <= level < lowest:
            raise UserError(
                f"attention_levels: there is no level {level} above the lowest, which always has attention; "
                f"with {len(channels)} levels choose from {list(range(lowest))}"
            )
    for level in (*attention_levels, lowest):
        if head_dim % 2 or channels[level] % head_dim:
            raise UserError(
                f"attention_head_dim {head_dim} must be even and divide the width of every level with attention; "
                f"level {level} is {channels[level]} wide"
            )
