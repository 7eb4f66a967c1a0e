"""Train the U-Net on an encoded corpus: sound latents, conditioned on the CLIP embedding of a frame.

    python train/diffusion.py --config configs/mini/diffusion.yaml --data corpora/mine --out runs/mine
    torchrun --nproc_per_node 8 train/diffusion.py …          # several processes, on GPUs or on CPUs

The same command goes on with a run that was stopped, by Ctrl-C or otherwise. Every draw (clips, copies, crops, frames,
noise, dropped conditions) is a function of (seed, step, place in the batch), so that a resumed run equals an
uninterrupted one, and so that batches do not depend on the number of processes or micro-batches.
"""

import copy
import os
import sys
import time
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads sleep; OpenMP reads it when torch is loaded

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from diffaudio.checkpoint import load_clip, load_encoders
from diffaudio.config import to_yaml
from diffaudio.corpus.datasets.clip_order import ClipOrder
from diffaudio.corpus.datasets.latents import LatentDataset
from diffaudio.diffusion.level_sampling import ExpectedLoss
from diffaudio.diffusion.loss import DiffusionLoss, diffusion_loss
from diffaudio.diffusion.training_scheduler import training_scheduler
from diffaudio.distributed import PATIENCE, StopRequest, join_processes, run_script
from diffaudio.errors import UserError
from diffaudio.models.unet import UNet1D
from diffaudio.pipeline import DiffAudioPipeline
from diffaudio.seeding import BatchDraws
from diffaudio.training.batches import Batch, draw_ahead, draw_noisy_batch
from diffaudio.training.bridge_fitting import make_bridge, read_lines
from diffaudio.training.captions import CaptionedDataset, check_captions
from diffaudio.training.conditions import check_embedding_noise
from diffaudio.training.diffusion_settings import CHANGEABLE, Config, TrainSettings
from diffaudio.training.divergence import DivergenceGuard, check_finite
from diffaudio.training.dry_run import describe_plan, measure_steps
from diffaudio.training.ema import ema_decay, update_ema
from diffaudio.training.encoder_check import check_encoders
from diffaudio.training.learning_rate import learning_rate, set_learning_rate
from diffaudio.training.lora_preservation import preserving_loss
from diffaudio.training.lora_run import LoraRun, begin_lora
from diffaudio.training.memory_advice import explain_out_of_memory
from diffaudio.training.memory_estimate import estimate_training
from diffaudio.training.metrics_log import MetricsLog, loss_by_noise_level
from diffaudio.training.overfit import report_overfit
from diffaudio.training.post_hoc_ema import PowerAverages, remove_snapshots_after
from diffaudio.training.precision import resolve_precision
from diffaudio.training.progress import Progress, describe_device, is_due
from diffaudio.training.resume import resume, save_state
from diffaudio.training.run_folder import check_data_parallel, local_batch_size, open_run, run_advice
from diffaudio.training.sample_logging import check_samples, log_samples
from diffaudio.training.skipped_steps import SkippedSteps
from diffaudio.training.start_checks import check_start
from diffaudio.training.start_from import load_start
from diffaudio.training.tracking import check_trackers, start_trackers, track_sound


def main(config: Config) -> None:
    config = resolve(config)
    settings = config.train
    trackers: Any = check_trackers(config.tracking) or None
    device: Any = join_processes(settings.threads, patience=PATIENCE).device
    precision = resolve_precision(settings.precision, device)
    accelerator = Accelerator(mixed_precision=precision, log_with=trackers, project_dir=config.out)
    # All mistakes are found before the run begins.
    check_data_parallel(accelerator)
    check_embedding_noise(settings.embedding_noise, settings.embedding_noise_level)
    local_batch_size(settings.batch_size, accelerator.num_processes, settings.accumulation_steps)
    dataset, held_out = open_data(config)
    order = ClipOrder(dataset.sizes, tuple(config.weights), settings.seed)
    unet, pipe, lora = build(config, dataset, device)
    check_samples(config.samples, pipe)
    run = Run(config, accelerator, unet, pipe, lora, dataset, order, held_out)
    with explain_out_of_memory(device, memory_settings(config), MEMORY_ADVICE):
        if config.dry_run:
            print_plan(run)
            return
        with open_run(config.out, config, accelerator, changeable=CHANGEABLE, resume_from=config.resume_from):
            start_trackers(accelerator, config.tracking, config.out, asdict(config))
            train(run)
    accelerator.end_training()


def resolve(config: Config) -> Config:
    """The settings with those that `overfit` and `lora` imply.

    Raises:
        ValueError: settings contradict each other, or have no effect.
    """
    if config.lora is not None:
        if config.start_from is None:
            raise UserError("lora adapts a model; name it as start_from, such as --start_from bundled")
        config = replace(config, averages=replace(config.averages, sigma_rel=()))
    if config.overfit is None:
        return config
    for name, value in (("weights", config.weights), ("lora", config.lora)):
        if value:
            raise UserError(f"{name} has no effect beside overfit; leave it out")
    train = replace(
        config.train, condition_dropout=0.0, embedding_noise=0.0, embedding_noise_level=0.0, weight_decay=0.0
    )
    unet, averages = replace(config.unet, dropout=0.0), replace(config.averages, sigma_rel=())
    return replace(config, train=train, unet=unet, averages=averages, held_out=0.0)


@dataclass(frozen=True)
class Run:
    """What a run works with.

    Attributes:
        unet: that is trained; `pipe` holds its average.
        lora: where an adapter is trained.
        order: of the clips of `dataset`.
    """

    config: Config
    accelerator: Accelerator
    unet: UNet1D
    pipe: DiffAudioPipeline
    lora: LoraRun | None
    dataset: LatentDataset
    order: ClipOrder
    held_out: LatentDataset | None

    @property
    def model_folder(self) -> Path:
        """Where what is trained is written."""
        return self.config.out / ("lora" if self.lora else "model")

    def save_model(self, folder: Path) -> None:
        """Write the model, or the adapter."""
        if self.lora:
            self.lora.save(folder, self.pipe)
        else:
            self.pipe.save_pretrained(folder, dtype=torch.float16)


def train(run: Run) -> None:
    """Optimise the U-Net, from the newest state on.

    Raises:
        DivergedError: a loss, a gradient or a weight is not finite.
        KeyboardInterrupt: Ctrl-C was pressed; the step it came in is finished and saved.
    """
    config, accelerator, unet, pipe, dataset = run.config, run.accelerator, run.unet, run.pipe, run.dataset
    settings, average, last, held_out = config.train, pipe.unet, config.train.steps, run.held_out
    start_loss = overfitted_loss(pipe, dataset, settings) if config.overfit else 0.0
    skipped = SkippedSteps(config.spikes)
    averages, expected_loss = PowerAverages(unet, config.averages), make_expected_loss(config, accelerator.device)
    optimizer = make_optimizer(settings, unet, expected_loss)
    state: dict[str, Any] = {"optimizer": optimizer, "unet": unet, "average": average, **averages.modules}
    state["skipped"] = skipped
    if expected_loss is not None:
        state["expected_loss"] = expected_loss
    state |= {"scaler": accelerator.scaler, "num_processes": accelerator.num_processes}
    done = resume(config.out / "state", newer=["skipped"], **state)
    if settings.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    network, optimizer = accelerator.prepare(unet, optimizer)
    if settings.compile:
        network.compile()
    schedule = partial(
        learning_rate, peak=settings.lr, warmup_steps=settings.warmup_steps, total_steps=last,
        final_fraction=settings.final_lr_fraction,
    )  # fmt: skip

    def mean_over_processes(values: Tensor) -> Any:
        return accelerator.reduce(values, "mean")

    guard = DivergenceGuard(mean_over_processes, advice=partial(run_advice, config.out), skipped=skipped)
    progress = Progress(last, done, run.model_folder, visible=accelerator.is_main_process)
    progress.describe(
        unet,
        describe_device(accelerator.device, accelerator.mixed_precision, accelerator.num_processes),
        f"{len(dataset)} clips, {len(held_out or ())} held out; batches of {settings.batch_size}",
    )
    recent: list[Tensor] = []
    draw = partial(draw_step, config, dataset, run.order, accelerator)
    if progress.visible:
        remove_snapshots_after(config.out / "averages", done)
        if not done:
            progress.say(check_start(dataset, pipe.autoencoder))
    track: dict[str, Any] = (
        {"track": accelerator.log, "track_sound": partial(track_sound, accelerator)} if accelerator.trackers else {}
    )
    begin_s = time.perf_counter()

    with (
        MetricsLog(config.out, done, **track) if progress.visible else nullcontext() as log,
        StopRequest() as stop,
        closing(draw_ahead(draw, range(done, last))) as drawn,
    ):
        for step, batches in zip(progress.steps(), drawn, strict=True):
            losses = []
            for batch in batches:
                is_last = batch is batches[-1]
                with nullcontext() if is_last else accelerator.no_sync(network):  # gradients are reduced once a step
                    batch = batch.to(accelerator.device)
                    loss = batch_loss(network, batch, pipe.scheduler, config, expected_loss, run.lora)
                    accelerator.backward(loss.total / len(batches))
                losses.append(torch.stack([loss.items.detach(), loss.levels], dim=1))
            average_gradients(expected_loss, accelerator)
            grad_norm: Any = accelerator.clip_grad_norm_(network.parameters(), settings.grad_clip)
            checked = {"loss": torch.cat(losses)[:, 0].mean()}
            problem = guard.check(step + 1, checked if accelerator.scaler else checked | {"grad_norm": grad_norm})
            lr = set_learning_rate(optimizer, schedule(step))
            if problem is None:
                optimizer.step()
                update_ema(average, unet, ema_decay(step, settings.ema_decay))
                averages.update(unet, step + 1)
            else:
                progress.say(f"step {step + 1} is skipped, {int(skipped.total)} so far: {problem}")
                if accelerator.scaler:
                    accelerator.scaler.update()
            optimizer.zero_grad()
            recent += losses
            stopping = bool(mean_over_processes(torch.tensor(float(stop.requested), device=accelerator.device)))

            if is_due(step + 1, settings.log_every):
                gathered: Any = accelerator.gather(torch.cat(recent))
                num_steps = len(recent) / settings.accumulation_steps
                step_s, begin_s = (time.perf_counter() - begin_s) / num_steps, time.perf_counter()
                recent.clear()
                if log:
                    values = loss_by_noise_level(gathered)
                    values |= {"grad_norm": float(grad_norm), "lr": lr, "step_s": step_s}
                    log.scalars(step + 1, values | ({"skipped_steps": total} if (total := int(skipped.total)) else {}))
                    progress.show(loss=values["loss"])
            if log and held_out and is_due(step + 1, config.validation.every, last):
                validate(run, held_out, log, step + 1)
            if log and config.samples.prompts and is_due(step + 1, config.samples.every):
                log_samples(config.samples, pipe, config.out, log, step + 1)
            if log and (stopping or is_due(step + 1, settings.save_every, last)):
                guard.check_weights(step + 1, state, in_half=average)
                run.save_model(run.model_folder)
                averages.save_snapshot(config.out / "averages", step + 1)
                log.sync()
                save_state(config.out / "state", step + 1, max_states=settings.max_states, **state)  # after all else
            if stopping:
                raise KeyboardInterrupt(f"step {step + 1} is saved; the same command goes on from there")
    if accelerator.is_main_process and done >= last:  # the model anew, with the bridge that is asked for now
        run.save_model(run.model_folder)
    progress.finish()
    if config.overfit and accelerator.is_main_process:
        losses = start_loss, overfitted_loss(pipe, dataset, settings)
        report = report_overfit(config.out / "overfit", pipe, dataset, settings.duration_s, losses)
        progress.say(report.describe())


def validate(run: Run, held_out: LatentDataset, log: MetricsLog, step: int) -> None:
    """Log the loss on held-out clips; the model with the lowest so far is written to `best/`."""
    config, pipe = run.config, run.pipe
    values = loss_by_noise_level(held_out_losses(pipe, held_out, config.train, config.validation.clips))
    if values["loss"] < log.lowest("held_out_loss"):
        check_finite(step, {"average": pipe.unet}, in_half=pipe.unet)
        run.save_model(config.out / "best")
    log.scalars(step, {f"held_out_{name}": value for name, value in values.items()})


def open_data(config: Config) -> tuple[LatentDataset, LatentDataset | None]:
    """The clips to train on, and those held out, where any are.

    Raises:
        ValueError: a corpus cannot be used, or a setting has no effect.
    """
    folders = config.data if isinstance(config.data, list) else [config.data]
    if config.weights and len(folders) == 1:
        raise UserError("weights has no effect with one corpus; leave it out, or give several as data")
    check_captions(config.captions, config.bridge.kind)
    opened = LatentDataset
    if config.captions.source is not None:
        opened = partial(CaptionedDataset, load_clip(config.clip), config.captions)
    dataset = opened(*folders, held_out=config.held_out)
    if config.overfit:
        return dataset.first_crops_of(config.overfit), None
    if not config.held_out:
        return dataset, None
    return dataset, opened(*folders, held_out=config.held_out, split="held_out")


def build(
    config: Config, dataset: LatentDataset, device: torch.device
) -> tuple[UNet1D, DiffAudioPipeline, LoraRun | None]:
    """The network to train, the pipeline around its average, and what belongs to an adapter.

    Raises:
        ValueError: a part is not there or does not fit, or the corpus was encoded by other models.
    """
    autoencoder, clip = load_encoders(None, autoencoder=config.autoencoder, clip=config.clip)
    check_encoders(dataset, autoencoder, clip)
    scheduler = training_scheduler(config.train.objective, config.noise)
    unet_settings: dict[str, Any] = asdict(config.unet) | {"embedding_noise_level": config.train.embedding_noise_level}
    parts: dict[str, Any] = {}
    if config.start_from is not None:
        models = {"scheduler": scheduler, "autoencoder": autoencoder, "clip": clip}
        parts = load_start(config.start_from, unet_settings, **models)
    else:
        torch.manual_seed(config.train.seed)
        parts["unet"] = UNet1D(dataset.latent_channels, dataset.embedding_dim, **unet_settings)
    if config.lora is None:
        parts["bridge"] = make_bridge(config.bridge, dataset, clip)
    pipe = DiffAudioPipeline(**parts | {"scheduler": scheduler, "autoencoder": autoencoder, "clip": clip}).to(device)
    lora = None
    if config.lora is not None:
        texts = config.bridge.texts + read_lines(config.bridge.texts_file)
        num_frames = round(config.train.duration_s * dataset.latent_rate)
        seed = config.train.seed
        lora = begin_lora(pipe, config.lora, dataset, texts, num_frames=num_frames, seed=seed)
    unet = pipe.unet.train()
    pipe.unet = copy.deepcopy(unet).eval().requires_grad_(False)
    return unet, pipe, lora


MEMORY_ADVICE = (
    "lower train.batch_size, or raise train.accumulation_steps, which changes nothing but the memory; shorten "
    "train.duration_s, use train.precision bf16, or make unet.channels narrower"
)


def memory_settings(config: Config) -> dict[str, object]:
    """The settings that decide how much memory a step takes."""
    train = config.train
    names = ("batch_size", "accumulation_steps", "duration_s", "precision")
    named: dict[str, object] = {f"train.{name}": getattr(train, name) for name in names}
    return named | {"unet.channels": list(config.unet.channels)}


def print_plan(run: Run) -> None:
    """Print the settings, and what the run would need; see `dry_run`."""
    config, accelerator, settings, dataset = run.config, run.accelerator, run.config.train, run.dataset
    expected_loss = make_expected_loss(config, accelerator.device)
    network, optimizer = accelerator.prepare(run.unet, make_optimizer(settings, run.unet, expected_loss))
    set_learning_rate(optimizer, 0.0)

    def step(number: int) -> None:
        for batch in draw_step(config, dataset, run.order, accelerator, number):
            loss = batch_loss(
                network, batch.to(accelerator.device), run.pipe.scheduler, config, expected_loss, run.lora
            )
            accelerator.backward(loss.total)
        optimizer.step()
        optimizer.zero_grad()
        update_ema(run.pipe.unet, run.unet, 0.0)

    measured = measure_steps(step, accelerator.device)
    if not accelerator.is_main_process:
        return
    print(to_yaml(config))
    print(check_start(dataset, run.pipe.autoencoder))
    frames = round(settings.duration_s * dataset.latent_rate)
    estimate = estimate_training(
        {name: value for name, value in run.unet.config.items() if not name.startswith("_")},
        batch_size=local_batch_size(settings.batch_size, accelerator.num_processes, settings.accumulation_steps),
        num_frames=frames,
        averages=1 + len(config.averages.sigma_rel),
        half_precision=accelerator.mixed_precision != "no",
        gradient_checkpointing=settings.gradient_checkpointing,
    )
    for line in describe_plan(
        measured,
        {"unet": run.unet, "autoencoder": run.pipe.autoencoder, "clip": run.pipe.clip},
        steps=settings.steps,
        batch_shape=(settings.batch_size, dataset.latent_channels, frames),
        num_clips=len(dataset),
        max_states=settings.max_states,
        out=config.out,
        estimate=None if run.lora else estimate,
    ):
        print(line)


def make_optimizer(settings: TrainSettings, unet: UNet1D, expected_loss: ExpectedLoss | None) -> torch.optim.AdamW:
    """AdamW over the weights of the U-Net, and of what is learned beside it without weight decay."""
    groups: list[dict[str, Any]] = [{"params": list(unet.parameters()), "weight_decay": settings.weight_decay}]
    if expected_loss is not None:
        groups.append({"params": list(expected_loss.parameters()), "weight_decay": 0.0})
    fused = next(unet.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, betas=settings.betas, fused=fused)


def make_expected_loss(config: Config, device: torch.device) -> ExpectedLoss | None:
    """What the noise settings want learned beside the U-Net."""
    return ExpectedLoss().to(device) if config.noise.learns_expected_loss else None


def average_gradients(module: torch.nn.Module | None, accelerator: Accelerator) -> None:
    """Replace the gradients of a module that is not prepared by their means over the processes."""
    for parameter in module.parameters() if module is not None else ():
        parameter.grad = accelerator.reduce(parameter.grad, "mean")  # type: ignore[assignment]


def draw_step(
    config: Config, dataset: LatentDataset, order: ClipOrder, accelerator: Accelerator, step: int
) -> list[Batch]:
    """The micro-batches of this process at a step."""
    settings, process = config.train, accelerator.process_index
    local = local_batch_size(settings.batch_size, accelerator.num_processes, settings.accumulation_steps)
    batches = []
    for micro in range(settings.accumulation_steps):
        first = (process * settings.accumulation_steps + micro) * local
        clips = order.clips(step * settings.batch_size + first, local)
        draws = BatchDraws(settings.seed, step, settings.batch_size, range(first, first + local))
        num_frames = round(settings.duration_s * dataset.latent_rate)
        noisy = {"num_frames": num_frames, "embedding_noise": settings.embedding_noise}
        noisy["max_noise_level"] = settings.embedding_noise_level
        batch = draw_noisy_batch(dataset, clips, draws, **noisy)
        batches.append(batch.pin_memory() if accelerator.device.type == "cuda" else batch)
    return batches


def batch_loss(
    network: Any,
    batch: Batch,
    scheduler: Any,
    config: Config,
    expected_loss: ExpectedLoss | None = None,
    lora: LoraRun | None = None,
) -> DiffusionLoss:
    """The loss of a batch that lies on the device of the network."""
    torch.manual_seed(batch.draws.generator("dropout").initial_seed())  # the U-Net's dropout knows no generator
    preserved = lora.preserved if lora else None
    if lora:
        batch = lora.put_words_into(batch)
    if preserved:
        batch = preserved.put_into(batch)

    def loss_of(unet: Any) -> DiffusionLoss:
        return diffusion_loss(
            unet,
            batch.latents,
            batch.embeddings,
            noise=batch.noise,
            scheduler=scheduler,
            draws=batch.draws,
            condition_dropout=config.train.condition_dropout,
            settings=config.noise,
            expected_loss=expected_loss,
        )

    return preserving_loss(loss_of, network, preserved.count(len(batch.latents))) if preserved else loss_of(network)


def held_out_losses(pipe: DiffAudioPipeline, dataset: LatentDataset, settings: TrainSettings, max_clips: int) -> Tensor:
    """`fixed_losses` of some clips that were not trained on, always the same."""
    return fixed_losses(pipe, dataset, settings, ClipOrder(dataset.sizes).clips(0, min(max_clips, len(dataset))))


@torch.no_grad()
def fixed_losses(pipe: DiffAudioPipeline, dataset: LatentDataset, settings: TrainSettings, clips: np.ndarray) -> Tensor:
    """Loss and noise level of clips, for the averaged weights: [clips, 2].

    Clips, crops, frames, noise and its levels are the same at every call and for every `noise` setting but the
    schedule's; conditions are neither dropped nor made noisy.
    """
    num_frames, losses = round(settings.duration_s * dataset.latent_rate), []
    for place in range(0, len(clips), settings.batch_size):
        chosen = clips[place : place + settings.batch_size]
        draws = BatchDraws(0, place, len(chosen))
        batch = draw_noisy_batch(dataset, chosen, draws, num_frames=num_frames, embedding_noise=0.0)
        batch = batch.to(next(pipe.unet.parameters()).device)
        loss = diffusion_loss(
            pipe.unet, batch.latents, batch.embeddings, noise=batch.noise, scheduler=pipe.scheduler, draws=draws,
            condition_dropout=0.0,
        )  # fmt: skip
        losses.append(torch.stack([loss.items, loss.levels], dim=1))
    return torch.cat(losses)


def overfitted_loss(pipe: DiffAudioPipeline, dataset: LatentDataset, settings: TrainSettings) -> float:
    """The mean loss on the few clips of `overfit`, each at 32 noise levels that are the same at every call."""
    clips = np.tile(np.arange(len(dataset)), 32)
    return float(fixed_losses(pipe, dataset, settings, clips)[:, 0].mean())


if __name__ == "__main__":
    run_script(main, Config)
