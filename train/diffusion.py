"""Train the U-Net on an encoded corpus: sound latents, conditioned on the CLIP embedding of a frame.

    accelerate launch train/diffusion.py --config configs/mini/diffusion.yaml --data corpora/demo-encoded --out runs/demo

The same command goes on with a run that was stopped. Every draw (clips, crops, frames, noise, dropout) is
a function of (seed, process, step), so that a stopped run equals an uninterrupted one.
"""

import copy
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from diffaudio.config import parse, run_script, to_yaml
from diffaudio.corpus.dataset import LatentDataset, draw_batch
from diffaudio.diffusion.objectives import diffusion_loss, training_scheduler
from diffaudio.files import replaced_whole, written_whole
from diffaudio.models.unet import UNet1D
from diffaudio.training import (
    RunLog,
    average_decay,
    latest_state,
    learning_rate,
    load_state,
    resolve_precision,
    save_state,
    seeded_generator,
    update_average,
)

FREE_SETTINGS = {"steps", "precision", "save_every", "log_every"}  # of `train`, to change while a run goes on


@dataclass
class UNet:
    """The network; see `diffaudio.models.unet.UNet1D`. Channels and embedding come from the corpus."""

    channels: tuple[int, ...] = (256, 384, 512)
    blocks_per_level: int = 2
    middle_blocks: int = 3
    attention_levels: tuple[int, ...] = (1,)
    attention_head_dim: int = 64
    attention_reach: int = 128
    condition_dim: int = 256
    dropout: float = 0.1


@dataclass
class Train:
    """What is optimised, and how.

    Attributes:
        objective: flow (flow matching) or v (v-prediction).
        batch_size: clips a step in each process.
        duration_s: length of the crops.
        warmup_steps: the learning rate rises to `lr` over so many steps, then falls as a cosine.
        final_lr_fraction: of `lr`, reached at the last step.
        grad_clip: the gradient's norm is brought down to it.
        condition_dropout: how often the null embedding stands in for the frame's, for guidance.
        embedding_noise: norm of the Gaussian noise on the unit embeddings, which are normalised again.
        ema_decay: how much of the averaged weights stays at a step, once the average has warmed up.
        precision: auto is bf16 where the hardware has it.
        save_every: steps between two saves of `state/` and `model/`.
    """

    objective: Literal["flow", "v"] = "flow"
    steps: int = 4000
    batch_size: int = 32
    duration_s: float = 5.0
    lr: float = 4e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    warmup_steps: int = 100
    final_lr_fraction: float = 0.1
    grad_clip: float = 1.0
    condition_dropout: float = 0.1
    embedding_noise: float = 0.2
    ema_decay: float = 0.999
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    seed: int = 0
    save_every: int = 200
    log_every: int = 10


@dataclass
class Config:
    """Settings of `train/diffusion.py`.

    Attributes:
        data: encoded corpus, made by `diffaudio encode`.
        out: run folder.
        autoencoder: folder of the autoencoder that encoded the corpus.
        clip: folder or name of the CLIP that encoded its frames.
    """

    data: Path
    out: Path
    autoencoder: Path
    clip: Path
    unet: UNet = field(default_factory=UNet)
    train: Train = field(default_factory=Train)


def main(config: Config) -> None:
    settings = config.train
    device = PartialState().device
    accelerator = Accelerator(mixed_precision=resolve_precision(settings.precision, device))
    dataset = LatentDataset(config.data)
    num_frames = round(settings.duration_s * dataset.latent_rate)
    if accelerator.is_main_process:
        begin_run(config)

    torch.manual_seed(settings.seed)
    unet = UNet1D(dataset.latent_channels, dataset.embedding_dim, **asdict(config.unet)).to(device)
    average = copy.deepcopy(unet).eval().requires_grad_(False)
    scheduler = training_scheduler(settings.objective)
    optimizer = torch.optim.AdamW(unet.parameters(), betas=settings.betas, weight_decay=settings.weight_decay)
    kept: dict[str, Any] = {"optimizer": optimizer, "scaler": accelerator.scaler, "unet": unet, "average": average}
    state = latest_state(config.out / "state")
    done = load_state(state, **kept) if state else 0
    network, optimizer = accelerator.prepare(unet, optimizer)
    log = RunLog(config.out, done) if accelerator.is_main_process else None
    seen: list[tuple[Tensor, Tensor]] = []
    begin = time.perf_counter()

    for step in tqdm(range(done, settings.steps), initial=done, total=settings.steps, disable=log is None):
        generator = seeded_generator(settings.seed, accelerator.process_index, step)
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))  # for dropout
        latents, embeddings = draw_batch(
            dataset, batch_size=settings.batch_size, num_frames=num_frames, generator=generator
        )
        embeddings = blur(embeddings, settings.embedding_noise, generator)
        losses, levels = diffusion_loss(
            network,
            latents.to(device),
            embeddings.to(device),
            scheduler=scheduler,
            generator=generator,
            condition_dropout=settings.condition_dropout,
        )
        for group in optimizer.param_groups:
            group["lr"] = rate = learning_rate(
                step,
                peak=settings.lr,
                warmup_steps=settings.warmup_steps,
                total_steps=settings.steps,
                final_fraction=settings.final_lr_fraction,
            )
        accelerator.backward(losses.mean())
        grad_norm = accelerator.clip_grad_norm_(network.parameters(), settings.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        update_average(average, unet, average_decay(step, settings.ema_decay))

        seen.append((losses.detach(), levels))
        if (step + 1) % settings.log_every == 0:
            values = loss_by_level(*(accelerator.gather(torch.cat(column).to(device)) for column in zip(*seen)))
            elapsed_s, begin = time.perf_counter() - begin, time.perf_counter()
            if log:
                log.scalars(step + 1, values | {"grad_norm": float(grad_norm), "lr": rate, "step_s": elapsed_s / len(seen)})
            seen.clear()
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            if accelerator.is_main_process:
                save_state(config.out / "state", step + 1, **kept)
                save_model(config, average, scheduler)
            accelerator.wait_for_everyone()
    if log:
        log.close()
    accelerator.end_training()


def blur(embeddings: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Unit embeddings [batch, dim] moved by Gaussian noise of norm `noise` or about, and normalised again."""
    dim = embeddings.shape[1]
    return F.normalize(embeddings + noise * dim**-0.5 * torch.randn(embeddings.shape, generator=generator), dim=1)


def loss_by_level(losses: Tensor, levels: Tensor) -> dict[str, float]:
    """The mean loss, and that of each quarter of the noise levels, 0 (clean) to 1; both tensors are [items]."""
    values = {"loss": losses.mean().item()}
    quarters = (levels * 4).long().clamp(0, 3)
    for quarter in quarters.unique().tolist():
        values[f"loss_level_{quarter * 25}_{quarter * 25 + 25}"] = losses[quarters == quarter].mean().item()
    return values


def begin_run(config: Config) -> None:
    """Make the run folder and keep the settings there.

    Raises:
        ValueError: the run was begun with other settings, which would make it another one.
    """
    path = config.out / "config.yaml"
    if latest_state(config.out / "state"):
        before, now = (flat(settings) for settings in (parse(Config, ["--config", str(path)]), config))
        for name in now:
            if now[name] != before[name]:
                raise ValueError(
                    f"{config.out}: the run was begun with {name} {before[name]}, not {now[name]}; "
                    "go on with that, or choose another --out"
                )
    config.out.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        temporary.write_text(to_yaml(config), encoding="utf-8")


def flat(config: Config) -> dict[str, Any]:
    """The settings that a run cannot change, by dotted name."""
    unet = {f"unet.{name}": value for name, value in asdict(config.unet).items()}
    return unet | {f"train.{name}": v for name, v in asdict(config.train).items() if name not in FREE_SETTINGS}


def save_model(config: Config, average: UNet1D, scheduler: Any) -> None:
    """Write the folder for inference, averaged weights in half precision."""
    with replaced_whole(config.out / "model") as folder:
        copy.deepcopy(average).half().save_pretrained(folder / "unet")
        scheduler.save_pretrained(folder / "scheduler")


if __name__ == "__main__":
    run_script(main, Config)
