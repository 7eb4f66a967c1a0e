"""Fit an autoencoder to a corpus of clips: the spectral one's code in closed form, decoders and Oobleck by gradient.

    python train/autoencoder.py --config configs/mini/autoencoder.yaml --data corpora/demo --out runs/code
    torchrun --nproc_per_node 8 train/autoencoder.py …        # several processes, on GPUs or on CPUs

The spectral autoencoder's code is the best linear one of its log-mel spectrograms, found in one pass. What is learned
beside it, and all of Oobleck, is then trained for `train.steps`. The same command goes on with a run that was stopped,
by Ctrl-C or otherwise; every draw is a function of (seed, process, step), so that a resumed run equals an uninterrupted
one. Which clips make up a batch does not depend on the number of processes.
"""

import os
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads sleep; OpenMP reads it when torch is loaded

import torch
from accelerate import Accelerator
from torch import Tensor

from diffaudio.config import Count, NonNegative, NonNegativeCount, Positive, Share
from diffaudio.corpus.augment import AugmentSettings
from diffaudio.corpus.datasets.clip_order import ClipOrder
from diffaudio.corpus.datasets.waveforms import WaveformDataset, decode_corpus, draw_crops, waveform_parts
from diffaudio.distributed import PATIENCE, StopRequest, join_processes, run_script
from diffaudio.errors import UserError
from diffaudio.models.autoencoders import Autoencoder, SpectralAutoencoder
from diffaudio.seeding import seeded_generator
from diffaudio.training.autoencoder.building import (
    OobleckSettings,
    SpectralSettings,
    build_autoencoder,
    copied,
    learned_parameters,
    save_autoencoder,
)
from diffaudio.training.autoencoder.objective import AdversarySettings, LossSettings, Objective
from diffaudio.training.autoencoder.principal_components import fit_code
from diffaudio.training.autoencoder.validation import ValidationSettings, measure_round_trips
from diffaudio.training.divergence import DivergenceGuard, check_finite
from diffaudio.training.ema import ema_decay, update_ema
from diffaudio.training.learning_rate import learning_rate, set_learning_rate
from diffaudio.training.metrics_log import MetricsLog
from diffaudio.training.precision import resolve_precision
from diffaudio.training.progress import Progress, describe_device, is_due
from diffaudio.training.resume import latest_state, resume, save_state
from diffaudio.training.run_folder import local_batch_size, open_run, run_advice

# What may change while a run goes on; all else would make it another run.
CHANGEABLE = {
    "data", "out", "validation",
    "train.steps", "train.precision", "train.threads", "train.save_every", "train.log_every", "train.max_states",
    "train.max_loss_ratio",
}  # fmt: skip


@dataclass
class TrainSettings:
    """What is learned by gradient, and how.

    Attributes:
        steps: 0 where nothing is.
        batch_size: clips a step, of all processes together.
        duration_s: length of the crops; shorter clips are padded with silence.
        warmup_steps: the learning rate rises to `lr` over so many steps, then falls as a cosine.
        final_lr_fraction: of `lr`, reached at the last step.
        grad_clip: largest norm of the gradient; a larger one is scaled down.
        ema_decay: how much of the averaged weights stays at a step, once the average has warmed up.
        precision: of the networks; auto is bf16 where the hardware has it. Spectra and losses are float32.
        threads: of each process on a CPU; None shares the available ones.
        save_every: steps between two saves of `state/` and `model/`.
        max_states: how many states are kept, the newest ones.
        max_loss_ratio: a loss this many times the median of the last hundred steps ends the run.
    """

    steps: NonNegativeCount = 0
    batch_size: Count = 12
    duration_s: Positive = 1.44
    lr: Positive = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: NonNegative = 0.01
    warmup_steps: NonNegativeCount = 100
    final_lr_fraction: Share = 0.05
    grad_clip: Positive = 5.0
    ema_decay: Share = 0.998
    precision: Literal["auto", "no", "bf16"] = "auto"
    threads: Count | None = None
    seed: int = 0
    save_every: Count = 200
    max_states: Count = 1
    log_every: Count = 10
    max_loss_ratio: Positive = 10.0


@dataclass
class Config:
    """Settings of `train/autoencoder.py`.

    Attributes:
        data: corpus of clips, made by `diffaudio prepare`, or a folder of sound files, which need no pictures.
        out: run folder; the autoencoder is written to `model/` in it.
        model: spectral (ours) or oobleck (the waveform VAE of Stable Audio, from diffusers).
        start_from: folder or hub id of an autoencoder of that kind to go on from. A spectral one keeps its code, and
            so its latents.
        peak: each clip is scaled to this peak first, as `diffaudio encode` does.
        held_out: share of the sources that are left out of training and measured instead.
        augment: how clips are augmented; by default not at all. Crops are drawn anyway.
    """

    data: Path
    out: Path
    model: Literal["spectral", "oobleck"] = "spectral"
    start_from: str | None = None
    peak: Share = 0.7
    held_out: Share = 0.0
    spectral: SpectralSettings = field(default_factory=SpectralSettings)
    oobleck: OobleckSettings = field(default_factory=OobleckSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    losses: LossSettings = field(default_factory=LossSettings)
    adversary: AdversarySettings = field(default_factory=AdversarySettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)


def main(config: Config) -> None:
    settings = config.train
    device: Any = join_processes(settings.threads, patience=PATIENCE).device
    accelerator = Accelerator(mixed_precision=resolve_precision(settings.precision, device))
    local_batch_size(settings.batch_size, accelerator.num_processes)
    autoencoder, objective = build(config)
    with open_run(config.out, config, accelerator, changeable=CHANGEABLE):
        report: dict[str, float] = {}
        if isinstance(autoencoder, SpectralAutoencoder) and not (
            latest_state(config.out / "state") or config.start_from
        ):
            report = fit_code(autoencoder, config.data, accelerator, peak=config.peak, held_out=config.held_out)
        dataset, held_out = open_data(config, autoencoder, accelerator)
        torch.nn.Module.to(autoencoder, device)  # diffusers' own warns of layers it does not have
        if objective and dataset:
            train(config, accelerator, autoencoder, objective.to(device), dataset, held_out, report)
        elif accelerator.is_main_process:
            with MetricsLog(config.out, -1) as log:
                log_start(config, autoencoder, held_out, report, log)
            save_autoencoder(autoencoder, config.out / "model", None, 0)
            print(f"done: the model is in {config.out / 'model'}", file=sys.stderr)
    accelerator.end_training()


def train(
    config: Config,
    accelerator: Accelerator,
    autoencoder: Autoencoder,
    objective: Objective,
    dataset: WaveformDataset,
    held_out: WaveformDataset | None,
    report: dict[str, float],
) -> None:
    """Learn by gradient, from the newest state on.

    Args:
        report: of what was fitted in closed form, for the log.

    Raises:
        DivergedError: the loss exploded, or a value is not finite.
        KeyboardInterrupt: Ctrl-C was pressed; the step it came in is finished and saved.
    """
    settings, last = config.train, config.train.steps
    num_samples = crop_size(config, autoencoder)
    batch_size = local_batch_size(settings.batch_size, accelerator.num_processes)
    order = ClipOrder((len(dataset),), seed=settings.seed)
    average = copied(autoencoder)
    learned = learned_parameters(autoencoder)
    optimizer = torch.optim.AdamW(learned, betas=settings.betas, weight_decay=settings.weight_decay)
    state: dict[str, Any] = {"autoencoder": autoencoder, "average": average, "optimizer": optimizer}
    state |= {**objective.parts(), "num_processes": accelerator.num_processes}
    done = resume(config.out / "state", **state)
    network: Any = accelerator.prepare(autoencoder.train())
    adversary: Any = accelerator.prepare(objective.discriminator) if objective.discriminator else None
    schedule = partial(
        learning_rate, peak=settings.lr, warmup_steps=settings.warmup_steps, total_steps=last,
        final_fraction=settings.final_lr_fraction,
    )  # fmt: skip

    def mean_over_processes(values: Tensor) -> Any:
        return accelerator.reduce(values, "mean")

    advice = partial(run_advice, config.out)
    guard = DivergenceGuard(mean_over_processes, advice=advice, max_loss_ratio=settings.max_loss_ratio)
    progress = Progress(last, done, config.out / "model", visible=accelerator.is_main_process)
    progress.describe(
        autoencoder,
        describe_device(accelerator.device, accelerator.mixed_precision, accelerator.num_processes),
        f"{len(dataset)} clips, {len(held_out or ())} held out; batches of {settings.batch_size}",
    )
    begin_s = time.perf_counter()

    with MetricsLog(config.out, done or -1) if progress.visible else nullcontext() as log, StopRequest() as stop:
        if log and not done:
            log_start(config, autoencoder, held_out, report, log)
        for step in progress.steps():
            generator = seeded_generator(settings.seed, accelerator.process_index, step)
            clips = order.clips(step * settings.batch_size + accelerator.process_index * batch_size, batch_size)
            x = draw_crops(dataset, clips, num_samples=num_samples, generator=generator, augment=config.augment)
            x = x.to(accelerator.device)
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))  # for layers that take no generator
            output = network(x, generator)
            values = objective.backward(output, x, step, mean_over_processes)
            values["grad_norm"] = torch.nn.utils.clip_grad_norm_(learned, settings.grad_clip)
            shared = seeded_generator(settings.seed, "adversary", step)
            values |= objective.backward_adversary(adversary, x, output, step, shared)
            guard.check(step + 1, values)
            lr = set_learning_rate(optimizer, schedule(step))
            optimizer.step()
            optimizer.zero_grad()
            objective.step_adversary()
            update_ema(average, autoencoder, ema_decay(step, settings.ema_decay))
            stopping = bool(mean_over_processes(torch.tensor(float(stop.requested), device=accelerator.device)))

            if log and is_due(step + 1, settings.log_every):
                step_s, begin_s = (time.perf_counter() - begin_s) / settings.log_every, time.perf_counter()
                means = guard.take_means()
                log.scalars(step + 1, means | {"lr": lr, "step_s": step_s})
                progress.show(loss=means["loss"])
            if log and held_out and is_due(step + 1, config.validation.every, last):
                validate(config, average, dataset, held_out, log, step + 1)
            if log and (stopping or is_due(step + 1, settings.save_every, last)):
                guard.check_weights(step + 1, state)
                save_autoencoder(average, config.out / "model", dataset, num_samples)
                log.sync()
                save_state(config.out / "state", step + 1, max_states=settings.max_states, **state)  # after all else
            if stopping:
                raise KeyboardInterrupt(f"step {step + 1} is saved; the same command goes on from there")
    progress.finish()


def log_start(
    config: Config,
    autoencoder: Autoencoder,
    held_out: WaveformDataset | None,
    report: dict[str, float],
    log: MetricsLog,
) -> None:
    """Log what was fitted in closed form, and how the autoencoder does before the first step."""
    if report:
        log.scalars(0, report)
    if held_out:
        log.scalars(0, measure_round_trips(autoencoder, held_out, config.validation, run=config.out, log=log, step=0))


def validate(
    config: Config,
    average: Autoencoder,
    dataset: WaveformDataset,
    held_out: WaveformDataset,
    log: MetricsLog,
    step: int,
) -> None:
    """Log the distances on held-out clips; the model with the lowest log-mel one so far is written to `best/`."""
    values = measure_round_trips(average, held_out, config.validation, run=config.out, log=log, step=step)
    name = "held_out_log_mel_distance_db"
    if values[name] < log.lowest(name):
        check_finite(step, {"average": average})
        save_autoencoder(average, config.out / "best", dataset, crop_size(config, average))
    log.scalars(step, values)


def build(config: Config) -> tuple[Autoencoder, Objective | None]:
    """The autoencoder, and what it is to learn by, where it learns anything by gradient.

    Raises:
        ValueError: the corpus is none, settings have no effect, or contradict each other.
    """
    waveform_parts(config.data)
    torch.manual_seed(config.train.seed)
    autoencoder = build_autoencoder(config.model, config.spectral, config.oobleck, config.start_from)
    learned = sum(parameter.numel() for parameter in learned_parameters(autoencoder))
    steps = config.train.steps
    if steps and not learned:
        raise UserError(f"train.steps {steps} has no effect: nothing in '{autoencoder.name}' is learned by gradient")
    if learned and not steps:
        raise UserError(f"train.steps is 0, but {learned} weights of '{autoencoder.name}' are to be learned; set it")
    if config.start_from and not steps:
        raise UserError("start_from has no effect where nothing is learned by gradient; leave it out")
    for name in ("crop", "picture_crop", "picture_flip"):
        if getattr(config.augment, name):
            raise UserError(f"augment.{name} has no effect: crops are drawn anyway, and there are no pictures")
    if config.augment.changes_sound and not steps:
        raise UserError("augment has no effect on what is fitted in closed form; leave it out")
    if not steps:
        return autoencoder, None
    return autoencoder, Objective(config.losses, config.adversary, autoencoder, crop_size(config, autoencoder))


def open_data(
    config: Config, autoencoder: Autoencoder, accelerator: Accelerator
) -> tuple[WaveformDataset | None, WaveformDataset | None]:
    """The clips to train on, where anything is learned by gradient, and those held out, where any are."""
    if not config.train.steps and not config.held_out:
        return None, None
    folder = config.out / "waveforms"
    with accelerator.main_process_first():
        decode_corpus(
            config.data,
            folder,
            sample_rate=autoencoder.sample_rate,
            audio_channels=autoencoder.audio_channels,
            peak=config.peak,
            progress=accelerator.is_main_process,
        )
    dataset = WaveformDataset(folder, held_out=config.held_out)
    return dataset, WaveformDataset(folder, held_out=config.held_out, split="held_out") if config.held_out else None


def crop_size(config: Config, autoencoder: Autoencoder) -> int:
    """In samples."""
    return round(config.train.duration_s * autoencoder.sample_rate)


if __name__ == "__main__":
    run_script(main, Config)
