"""Train a diffusion prior, a bridge that draws an image embedding for a text (unCLIP, arXiv:2204.06125, section 2.2).

    python train/prior.py --config configs/clip/prior.yaml --clip checkpoints/mini/clip --out runs/prior

What the prior learns from decides what it is called:

- `images` (CLIPSonic-PD): captioned pictures from elsewhere, a folder of Parquet files.
- `corpus` with `captions` (CLIPSonic-SD): the pictures of the clips that the U-Net is trained on, each with a caption.
- `corpus` alone, without text: the text embedding of each picture is made up, as in language-free training (Zhou et al.
  2022, arXiv:2111.13792): the picture's own, moved by the difference of the means of texts and images, with noise;
  `texts_file` says what the mean of texts is taken of.

The result, in `model/`, is a folder for `--bridge`, or for the bridge/prior of a model. The same command goes on with a
run that was stopped, by Ctrl-C or otherwise.
"""

import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads sleep; OpenMP reads it when torch is loaded

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from diffaudio.atomic_io import atomic_folder
from diffaudio.checkpoint import load_clip
from diffaudio.config import Count, NonNegative, NonNegativeCount, Positive, Share
from diffaudio.distributed import PATIENCE, StopRequest, join_processes, run_script
from diffaudio.models.bridge.prior import PriorBridge, prior_loss
from diffaudio.models.clip import Clip
from diffaudio.seeding import seeded_generator
from diffaudio.training.captions import CaptionSettings
from diffaudio.training.divergence import DivergenceGuard
from diffaudio.training.learning_rate import learning_rate, set_learning_rate
from diffaudio.training.metrics_log import MetricsLog
from diffaudio.training.prior_pairs import load_pairs
from diffaudio.training.progress import Progress, describe_device, is_due
from diffaudio.training.resume import latest_state, resume, save_state
from diffaudio.training.run_folder import local_batch_size, open_run, run_advice

# What may change while a run goes on; all else would make it another run.
CHANGEABLE = {
    "out", "train.steps", "train.threads", "train.save_every", "train.log_every", "train.max_states",
}  # fmt: skip


@dataclass
class TrainSettings:
    """What is optimised, and how.

    Attributes:
        batch_size: pairs a step, of all processes together.
        warmup_steps: the learning rate rises to `lr` over so many steps, then falls as a cosine.
        null_share: how often the text is left out, for guidance.
        threads: of each process on a CPU; None shares the available ones.
        save_every: steps between two saves of `state/` and `model/`.
        max_states: how many states are kept, the newest ones.
    """

    steps: Count = 3000
    batch_size: Count = 256
    lr: Positive = 5e-4
    weight_decay: NonNegative = 0.01
    warmup_steps: NonNegativeCount = 100
    null_share: Share = 0.1
    threads: Count | None = None
    seed: int = 0
    save_every: Count = 500
    max_states: Count = 1
    log_every: Count = 50


@dataclass
class Config:
    """Settings of `train/prior.py`.

    Attributes:
        clip: folder, `hf-hub:` id, or open_clip's name and tag as `ViT-B-32/openai`.
        images: folder of Parquet files with columns `image` and `captions`; leave out with `corpus`.
        corpus: encoded corpora, whose image embeddings are learned from; leave out with `images`.
        captions: captions of the corpus' clips; without them, it is learned from without text.
        texts_file: sentences, one a line, whose mean embedding is that of texts; for a corpus without captions.
        pseudo_noise: with `corpus`, how much noise a made-up text embedding has, as a share of its norm.
        max_images: of the corpus, at most so many embeddings are learned from.
        guidance_scale: that the trained bridge uses; 1 is none.
        num_layers: of the transformer, and its attention heads of `attention_head_dim` values each.
    """

    out: Path
    clip: str
    images: Path | None = None
    corpus: list[Path] | None = None
    captions: CaptionSettings = field(default_factory=CaptionSettings)
    texts_file: Path | None = None
    pseudo_noise: NonNegative = 0.3
    max_images: Count = 100_000
    guidance_scale: Positive = 1.0
    num_layers: Count = 2
    num_attention_heads: Count = 6
    attention_head_dim: Count = 64
    train: TrainSettings = field(default_factory=TrainSettings)


def make_bridge(config: Config, clip: Clip, images: Tensor) -> PriorBridge:
    """An untrained prior that knows the mean and standard deviation of images."""
    torch.manual_seed(config.train.seed)
    bridge = PriorBridge(
        clip.embedding_dim,
        clip_name=clip.name,
        num_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        attention_head_dim=config.attention_head_dim,
        guidance_scale=config.guidance_scale,
    )
    bridge.transformer.clip_mean.data.copy_(images.mean(dim=0))
    bridge.transformer.clip_std.data.copy_(images.std(dim=0).clamp(min=1e-6))
    bridge.transformer.clip_mean.requires_grad_(False)
    bridge.transformer.clip_std.requires_grad_(False)
    return bridge


class Predictor(nn.Module):
    """`PriorBridge.predict` as a module, which several processes can share."""

    def __init__(self, bridge: PriorBridge) -> None:
        super().__init__()
        self.bridge = bridge

    def forward(self, noisy: Tensor, level: Tensor, texts: Tensor) -> Tensor:
        return self.bridge.predict(noisy, level, texts)


def main(config: Config) -> None:
    join_processes(config.train.threads, patience=PATIENCE)
    accelerator = Accelerator(mixed_precision="no")
    local_batch_size(config.train.batch_size, accelerator.num_processes)
    with open_run(config.out, config, accelerator, changeable=CHANGEABLE):
        train(config, accelerator)
    accelerator.end_training()


def train(config: Config, accelerator: Accelerator) -> None:
    """Optimise the prior, from the newest state on.

    Raises:
        DivergedError: a loss or a weight is not finite.
        KeyboardInterrupt: Ctrl-C was pressed; the step it came in is finished and saved.
    """
    settings, states = config.train, config.out / "state"
    batch_size = local_batch_size(settings.batch_size, accelerator.num_processes)
    clip = load_clip(config.clip)
    pairs = load_pairs(
        clip, images=config.images, corpus=config.corpus, captions=config.captions, texts_file=config.texts_file,
        pseudo_noise=config.pseudo_noise, max_images=config.max_images,
    )  # fmt: skip
    bridge = make_bridge(config, clip, pairs.images)
    parameters = [parameter for parameter in bridge.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=settings.weight_decay)
    state: dict[str, Any] = {"optimizer": optimizer, "bridge": bridge, "num_processes": accelerator.num_processes}
    begins = latest_state(states) is None
    done = resume(states, **state)
    if accelerator.is_main_process and begins:
        save_state(states, 0, **state)  # from here on other settings are noticed
    network, optimizer = accelerator.prepare(Predictor(bridge).train(), optimizer)
    schedule = partial(
        learning_rate, peak=settings.lr, warmup_steps=settings.warmup_steps, total_steps=settings.steps
    )  # fmt: skip

    def mean_over_processes(values: Tensor) -> Any:
        return accelerator.reduce(values, "mean")

    advice = partial(run_advice, config.out, clips_gradients=False)
    guard = DivergenceGuard(mean_over_processes, advice=advice)
    progress = Progress(settings.steps, done, config.out / "model", visible=accelerator.is_main_process)
    progress.describe(
        bridge,
        describe_device(accelerator.device, accelerator.mixed_precision, accelerator.num_processes),
        f"{len(pairs.images)} image embeddings; batches of {settings.batch_size}",
    )
    with MetricsLog(config.out, done) if progress.visible else nullcontext() as log, StopRequest() as stop:
        for step in progress.steps():
            generator = seeded_generator(settings.seed, accelerator.process_index, step)
            texts, images = (part.to(accelerator.device) for part in pairs.draw(batch_size, generator))
            loss = prior_loss(network, bridge, texts, images, generator, null_share=settings.null_share)
            accelerator.backward(loss)
            guard.check(step + 1, {"loss": loss})
            lr = set_learning_rate(optimizer, schedule(step))
            optimizer.step()
            optimizer.zero_grad()
            stopping = bool(mean_over_processes(torch.tensor(float(stop.requested), device=accelerator.device)))
            if log and is_due(step + 1, settings.log_every):
                means = guard.take_means()
                log.scalars(step + 1, means | {"lr": lr})
                progress.show(loss=means["loss"])
            if log and (stopping or is_due(step + 1, settings.save_every, settings.steps)):
                guard.check_weights(step + 1, state)
                with atomic_folder(config.out / "model") as folder:
                    bridge.save_pretrained(folder)
                log.sync()
                save_state(states, step + 1, max_states=settings.max_states, **state)
            if stopping:
                raise KeyboardInterrupt(f"step {step + 1} is saved; the same command goes on from there")
    progress.finish()


if __name__ == "__main__":
    run_script(main, Config)
