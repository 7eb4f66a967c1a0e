"""Train the U-Net on an encoded corpus: sound latents, conditioned on the CLIP embedding of a frame.

    accelerate launch train/diffusion.py --config configs/mini/diffusion.yaml --data corpora/mine --out runs/mine

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
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from diffaudio.audio import write_audio
from diffaudio.config import Count, NonNegative, NonNegativeCount, Positive, Share
from diffaudio.corpus.dataset import LatentDataset, draw_batch
from diffaudio.diffusion.objectives import diffusion_loss, training_scheduler
from diffaudio.files import replaced_whole
from diffaudio.launch import join_processes, run_script
from diffaudio.model_folder import load_encoders
from diffaudio.models.bridge import Bridge, fit_bridge
from diffaudio.models.clip import Clip
from diffaudio.models.unet import UNet1D
from diffaudio.pipeline import DiffAudioPipeline
from diffaudio.plot import spectrogram_figure
from diffaudio.training import (
    RunLog,
    average_decay,
    begin_run,
    check_encoders,
    latest_state,
    learning_rate,
    load_state,
    resolve_precision,
    save_state,
    seeded_generator,
    update_average,
)

# What may change while a run goes on; all else would make it another run.
FREE_SETTINGS = {
    "data", "out", "autoencoder", "clip", "bridge", "samples",
    "train.steps", "train.precision", "train.threads", "train.save_every", "train.log_every",
}  # fmt: skip


@dataclass
class UNetSettings:
    """The network; see `diffaudio.models.unet.UNet1D`. Channels and embedding come from the corpus."""

    channels: tuple[int, ...] = (256, 384, 512)
    blocks_per_level: int = 2
    middle_blocks: int = 3
    attention_levels: tuple[int, ...] = (1,)
    attention_head_dim: int = 64
    attention_reach: int = 128
    condition_dim: int = 256
    dropout: Share = 0.1


@dataclass
class TrainSettings:
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
        threads: of each process on a CPU; None shares out all cores.
        save_every: steps between two saves of `state/` and `model/`.
    """

    objective: Literal["flow", "v"] = "flow"
    steps: Count = 4000
    batch_size: Count = 32
    duration_s: Positive = 5.0
    lr: Positive = 4e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: NonNegative = 0.01
    warmup_steps: NonNegativeCount = 100
    final_lr_fraction: Share = 0.1
    grad_clip: Positive = 1.0
    condition_dropout: Share = 0.1
    embedding_noise: NonNegative = 0.2
    ema_decay: Share = 0.999
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    threads: Count | None = None
    seed: int = 0
    save_every: Count = 200
    log_every: Count = 10


@dataclass
class BridgeSettings:
    """How a text's embedding is carried to where pictures' lie; see `diffaudio.models.bridge`.

    Attributes:
        texts: what pictures may show or users may write; see `fit_bridge` for what each kind makes of them.
        texts_file: more of them, one a line.
        max_pictures: how many of the corpus' pictures `retrieval` remembers at most, drawn at random.
        temperature: of `retrieval`; None takes its default.
        familiarity_threshold: below it a prompt is far from all that was heard; None never says so.
    """

    kind: Literal["none", "shift", "retrieval"] = "retrieval"
    texts: list[str] = field(default_factory=list)
    texts_file: Path | None = None
    max_pictures: Count = 4096
    temperature: float | None = None
    familiarity_threshold: float | None = None


@dataclass
class SampleSettings:
    """What is generated while training.

    Attributes:
        prompts: texts; with none nothing is generated.
        every: steps between.
        num_inference_steps: of the sampler.
    """

    prompts: list[str] = field(default_factory=list)
    every: Count = 500
    sampler: str = "dpm++2m_sde"
    num_inference_steps: Count = 25
    guidance_scale: NonNegative = 2.0
    duration_s: Positive = 5.0
    seed: int = 0


@dataclass
class Config:
    """Settings of `train/diffusion.py`.

    Attributes:
        data: encoded corpus, made by `diffaudio encode`.
        out: run folder.
        autoencoder: folder or hub id of the autoencoder that encoded the corpus.
        clip: the CLIP that encoded its frames: a folder, an hf-hub: id, or name and tag as ViT-B-32/openai.
    """

    data: Path
    out: Path
    autoencoder: str
    clip: str
    unet: UNetSettings = field(default_factory=UNetSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    bridge: BridgeSettings = field(default_factory=BridgeSettings)
    samples: SampleSettings = field(default_factory=SampleSettings)


def main(config: Config) -> None:
    settings = config.train
    device: Any = join_processes(settings.threads).device
    accelerator = Accelerator(mixed_precision=resolve_precision(settings.precision, device))
    dataset = LatentDataset(config.data)
    unet, pipe = build(config, dataset, device)
    average = pipe.unet
    if accelerator.is_main_process:
        begin_run(config.out, config, free=FREE_SETTINGS)
    optimizer = torch.optim.AdamW(unet.parameters(), betas=settings.betas, weight_decay=settings.weight_decay)
    kept: dict[str, Any] = {"optimizer": optimizer, "scaler": accelerator.scaler, "unet": unet, "average": average}
    state = latest_state(config.out / "state")
    done = load_state(state, **kept) if state else 0
    network, optimizer = accelerator.prepare(unet, optimizer)
    log = RunLog(config.out, done) if accelerator.is_main_process else None
    seen: list[Tensor] = []
    begin = time.perf_counter()

    for step in tqdm(range(done, settings.steps), initial=done, total=settings.steps, disable=log is None):
        generator = seeded_generator(settings.seed, accelerator.process_index, step)
        losses, levels = batch_loss(network, dataset, pipe.scheduler, settings, generator)
        lr = learning_rate(
            step,
            peak=settings.lr,
            warmup_steps=settings.warmup_steps,
            total_steps=settings.steps,
            final_fraction=settings.final_lr_fraction,
        )
        for group in optimizer.param_groups:
            group["lr"] = lr
        accelerator.backward(losses.mean())
        grad_norm: Any = accelerator.clip_grad_norm_(network.parameters(), settings.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        update_average(average, unet, average_decay(step, settings.ema_decay))

        seen.append(torch.stack([losses.detach(), levels], dim=1))
        if (step + 1) % settings.log_every == 0:
            gathered: Any = accelerator.gather(torch.cat(seen))
            values = loss_by_level(gathered)
            elapsed_s, begin = time.perf_counter() - begin, time.perf_counter()
            if log:
                log.scalars(
                    step + 1, values | {"grad_norm": float(grad_norm), "lr": lr, "step_s": elapsed_s / len(seen)}
                )
            seen.clear()
        if log and ((step + 1) % settings.save_every == 0 or step + 1 == settings.steps):
            save_state(config.out / "state", step + 1, **kept)
            pipe.save_pretrained(config.out / "model", dtype=torch.float16)
        if log and config.samples.prompts and (step + 1) % config.samples.every == 0:
            listen(config, pipe, log, step + 1)
    if log and done >= settings.steps:  # a finished run: the model anew, with the bridge that is asked for now
        pipe.save_pretrained(config.out / "model", dtype=torch.float16)
    if log:
        log.close()
    accelerator.wait_for_everyone()
    accelerator.end_training()


def build(config: Config, dataset: LatentDataset, device: torch.device) -> tuple[UNet1D, DiffAudioPipeline]:
    """The network to train, and the pipeline around its average.

    Raises:
        ValueError: a part is not there or does not fit, or the corpus was encoded by other models.
    """
    autoencoder, clip = load_encoders(None, autoencoder=config.autoencoder, clip=config.clip)
    check_encoders(config.data, dataset, autoencoder, clip)
    torch.manual_seed(config.train.seed)
    unet = UNet1D(dataset.latent_channels, dataset.embedding_dim, **asdict(config.unet))
    pipe = DiffAudioPipeline(
        unet=copy.deepcopy(unet).eval().requires_grad_(False),
        scheduler=training_scheduler(config.train.objective),
        autoencoder=autoencoder,
        clip=clip,
        bridge=make_bridge(config.bridge, dataset, clip),
    )
    torch.nn.Module.to(unet, device)  # diffusers' own warns of layers it does not have
    return unet, pipe.to(device)


def batch_loss(
    network: Any, dataset: LatentDataset, scheduler: Any, settings: TrainSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw a batch; the loss of each item [batch], and its noise level in 0..1 [batch]."""
    device = next(network.parameters()).device
    torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))  # the U-Net's dropout knows no generator
    num_frames = round(settings.duration_s * dataset.latent_rate)
    latents, embeddings = draw_batch(
        dataset, batch_size=settings.batch_size, num_frames=num_frames, generator=generator
    )
    noise = settings.embedding_noise * embeddings.shape[1] ** -0.5 * torch.randn(embeddings.shape, generator=generator)
    return diffusion_loss(
        network,
        latents.to(device),
        F.normalize(embeddings + noise, dim=1).to(device),
        scheduler=scheduler,
        generator=generator,
        condition_dropout=settings.condition_dropout,
    )


def loss_by_level(seen: Tensor) -> dict[str, float]:
    """The mean loss, and that of each quarter of the noise levels; [items, 2] holds loss and level (0 clean to 1)."""
    losses, levels = seen.unbind(dim=1)
    values = {"loss": losses.mean().item()}
    quarters = (levels * 4).long().clamp(0, 3)
    for quarter in quarters.unique().tolist():
        values[f"loss_level_{quarter * 25}_{quarter * 25 + 25}"] = losses[quarters == quarter].mean().item()
    return values


def make_bridge(settings: BridgeSettings, dataset: LatentDataset, clip: Clip) -> Bridge:
    """Fit the bridge to the pictures of the corpus.

    Raises:
        ValueError: a setting has no effect with this kind.
    """
    given: dict[str, Any] = {"familiarity_threshold": settings.familiarity_threshold}
    if settings.temperature is not None:
        if settings.kind != "retrieval":
            raise ValueError(f"bridge.temperature has no effect with bridge.kind {settings.kind}; leave it out")
        given["temperature"] = settings.temperature
    pictures = dataset.all_embeddings()
    if settings.kind == "retrieval" and len(pictures) > settings.max_pictures:
        pictures = pictures[torch.randperm(len(pictures), generator=seeded_generator(0))[: settings.max_pictures]]
    sentences = settings.texts + read_lines(settings.texts_file)
    batches = [clip.encode_text(sentences[start : start + 64]) for start in range(0, len(sentences), 64)]
    return fit_bridge(settings.kind, pictures, torch.cat(batches) if batches else None, **given)


def read_lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise ValueError(f"bridge.texts_file: {path} cannot be read: {error.strerror}") from None


def listen(config: Config, pipe: DiffAudioPipeline, log: RunLog, step: int) -> None:
    """Generate the prompts; sounds and spectrograms go into samples/ and TensorBoard."""
    settings, rate = config.samples, pipe.autoencoder.sample_rate
    output: Any = pipe(
        settings.prompts,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        audio_length_in_s=settings.duration_s,
        sampler=settings.sampler,
        generator=[seeded_generator(settings.seed, index) for index in range(len(settings.prompts))],
    )
    with replaced_whole(config.out / "samples" / f"step_{step:08d}") as folder:
        for index, (prompt, waveform) in enumerate(zip(settings.prompts, output.audios, strict=True)):
            picture = spectrogram_figure(waveform, rate, title=prompt)
            write_audio(folder / f"{index:02d}.wav", waveform, rate)
            picture.savefig(folder / f"{index:02d}.png")
            log.sound(step, f"sample/{index:02d} {prompt}", waveform, rate, picture)


if __name__ == "__main__":
    run_script(main, Config)
