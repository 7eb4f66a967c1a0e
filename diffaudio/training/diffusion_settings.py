"""Settings of `train/diffusion.py`: the network, the optimisation, the noise, and what is logged and saved."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from diffaudio.config import Count, NonNegative, NonNegativeCount, Positive, Share
from diffaudio.diffusion.level_sampling import NoiseSettings
from diffaudio.training.bridge_fitting import BridgeSettings
from diffaudio.training.captions import CaptionSettings
from diffaudio.training.lora import LoraSettings
from diffaudio.training.post_hoc_ema import PowerAverageSettings
from diffaudio.training.sample_logging import SampleSettings
from diffaudio.training.skipped_steps import SpikeSettings
from diffaudio.training.tracking import TrackingSettings

__all__ = ["CHANGEABLE", "Config", "TrainSettings", "UNetSettings", "ValidationSettings"]

# What may change while a run goes on; all else would make it another run.
CHANGEABLE = {
    "averages.max_snapshots", "data", "out", "resume_from", "autoencoder", "clip", "bridge", "validation", "samples",
    "dry_run", "spikes", "tracking",
    "train.compile", "train.gradient_checkpointing", "train.steps", "train.precision", "train.threads",
    "train.save_every", "train.log_every", "train.max_states",
}  # fmt: skip


@dataclass
class UNetSettings:
    """The network; see `diffaudio.models.unet.UNet1D`. Channels and embedding come from the corpus."""

    channels: tuple[int, ...] = (256, 384, 512)
    blocks_per_level: int = 2
    middle_blocks: int = 3
    attention_levels: tuple[int, ...] = (1,)
    attention_head_dim: int = 64
    attention_window: int = 128
    condition_dim: int = 256
    dropout: Share = 0.1


@dataclass
class TrainSettings:
    """What is optimised, and how.

    Attributes:
        objective: flow (flow matching), v (velocity) or epsilon (noise).
        batch_size: clips a step, of all processes and micro-batches together.
        accumulation_steps: micro-batches of a step, computed one after the other to save memory.
        duration_s: length of the crops.
        warmup_steps: the learning rate rises to `lr` over so many steps, then falls as a cosine.
        final_lr_fraction: of `lr`, reached at the last step.
        grad_clip: largest norm of the gradient; a larger one is scaled down.
        condition_dropout: how often the null embedding stands in for the frame's, for guidance.
        embedding_noise: norm of the Gaussian noise on the unit embeddings, which are normalised again.
        embedding_noise_level: above 0, noise of random levels up to this instead, with which the U-Net is also
            conditioned (unCLIP's noise augmentation); for the bridge `noise`.
        ema_decay: how much of the averaged weights stays at a step, once the average has warmed up.
        precision: auto is bf16 where the hardware has it.
        gradient_checkpointing: compute activations anew in the backward pass instead of keeping them: a third more
            work.
        compile: by torch.compile; takes minutes at the start and a C++ compiler on a CPU.
        threads: of each process on a CPU; None shares the available ones.
        save_every: steps between two saves of `state/` and `model/`.
        max_states: how many states are kept, the newest ones.
    """

    objective: Literal["flow", "v", "epsilon"] = "flow"
    steps: Count = 4000
    batch_size: Count = 32
    accumulation_steps: Count = 1
    duration_s: Positive = 5.0
    lr: Positive = 4e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: NonNegative = 0.01
    warmup_steps: NonNegativeCount = 100
    final_lr_fraction: Share = 0.1
    grad_clip: Positive = 1.0
    condition_dropout: Share = 0.1
    embedding_noise: NonNegative = 0.2
    embedding_noise_level: Share = 0.0
    ema_decay: Share = 0.999
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    threads: Count | None = None
    seed: int = 0
    save_every: Count = 200
    max_states: Count = 1
    log_every: Count = 10


@dataclass
class ValidationSettings:
    """The loss on held-out clips, where `held_out` is above 0; the model with the lowest is kept in `best/`.

    Attributes:
        every: steps between.
        clips: how many, at most; always the same, with the same crops and noise.
    """

    every: Count = 500
    clips: Count = 256


@dataclass
class Config:
    """Settings of `train/diffusion.py`.

    Attributes:
        data: encoded corpus, made by `diffaudio encode`, or a list of several made by the same models.
        out: run folder.
        autoencoder: folder or hub id of the autoencoder that encoded the corpus.
        clip: the CLIP that encoded its frames: a folder, an hf-hub: id, or name and tag as ViT-B-32/openai.
        weights: how often clips of each corpus are drawn, in proportion; empty draws all clips equally often.
        held_out: share of the sources that are left out of training and measured instead.
        resume_from: folder of a run, or one of its states, to go on from where `out` has none: on another machine, or
            with a copy. The settings must be those of that run.
        captions: trains on texts instead of pictures, a labelled baseline.
        start_from: folder or hub id of a model whose U-Net is trained on, or `bundled`; it has to have the same
            `unet`, objective, autoencoder and CLIP.
        overfit: train on so many clips alone, and see whether they come back; see `diffaudio.training.overfit`.
        dry_run: print the settings, and what the run would need, measured in a few steps; nothing is written.
        lora: train an adapter of the model in `start_from`, written to lora/ in the run folder, with `bridge.texts` as
            the words for its sounds; `--lora.rank 16` turns it on.
    """

    data: list[Path] | Path
    out: Path
    autoencoder: str
    clip: str
    weights: list[float] = field(default_factory=list)
    held_out: Share = 0.0
    resume_from: Path | None = None
    captions: CaptionSettings = field(default_factory=CaptionSettings)
    start_from: str | None = None
    overfit: Count | None = None
    dry_run: bool = False
    lora: LoraSettings | None = None
    unet: UNetSettings = field(default_factory=UNetSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    averages: PowerAverageSettings = field(default_factory=PowerAverageSettings)
    spikes: SpikeSettings = field(default_factory=SpikeSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    bridge: BridgeSettings = field(default_factory=BridgeSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    samples: SampleSettings = field(default_factory=SampleSettings)
