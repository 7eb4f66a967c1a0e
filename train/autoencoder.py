"""Fit an autoencoder to a corpus of clips: the spectral one's code in closed form, decoders and Oobleck by gradient.

    accelerate launch train/autoencoder.py --config configs/mini/autoencoder.yaml --data corpora/demo --out runs/code

The spectral autoencoder's code is the best linear one of its log-mel spectrograms, found in one pass. What is learned
beside it, and all of Oobleck, is then trained for `train.steps`. The same command goes on with a run that was
stopped; every draw is a function of (seed, process, step), so that a stopped run equals an uninterrupted one.
"""

import sys
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from diffaudio.config import Count, NonNegative, NonNegativeCount, Positive, Share
from diffaudio.corpus import store
from diffaudio.corpus.augment import AugmentSettings
from diffaudio.corpus.datasets.sampler import ClipOrder
from diffaudio.corpus.datasets.waveforms import WaveformDataset, decode_corpus, draw_crops
from diffaudio.distributed import join_processes, run_script
from diffaudio.errors import UserError
from diffaudio.models.autoencoders import Autoencoder, SpectralAutoencoder
from diffaudio.training.autoencoder.building import (
    OobleckSettings,
    SpectralSettings,
    build_autoencoder,
    copied,
    learned_parameters,
    save_autoencoder,
)
from diffaudio.training.autoencoder.closed_form import fit_code
from diffaudio.training.autoencoder.objective import AdversarySettings, LossSettings, Objective
from diffaudio.training.autoencoder.validation import ValidationSettings, validate
from diffaudio.training.autoencoder.watch import Diverged, Watch, check_weights
from diffaudio.training.run_folder import (
    RunLog,
    average_decay,
    begin_run,
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
    "data", "out", "validation",
    "train.steps", "train.precision", "train.threads", "train.save_every", "train.log_every", "train.max_loss_ratio",
}  # fmt: skip
PATIENCE = timedelta(hours=12)  # while one process decodes the corpus for all


@dataclass
class TrainSettings:
    """What is learned by gradient, and how.

    Attributes:
        steps: 0 where nothing is.
        batch_size: clips a step in each process.
        duration_s: length of the crops; a shorter clip is laid into silence.
        warmup_steps: the learning rate rises to `lr` over so many steps, then falls as a cosine.
        final_lr_fraction: of `lr`, reached at the last step.
        grad_clip: the gradient's norm is brought down to it.
        ema_decay: how much of the averaged weights stays at a step, once the average has warmed up.
        precision: of the networks; auto is bf16 where the hardware has it. Spectra and losses are float32.
        threads: of each process on a CPU; None shares out all cores.
        save_every: steps between two saves of `state/` and `model/`.
        max_loss_ratio: a loss so many times the median of the last hundred steps ends the run.
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
    log_every: Count = 10
    max_loss_ratio: Positive = 10.0


@dataclass
class Config:
    """Settings of `train/autoencoder.py`.

    Attributes:
        data: corpus of clips, made by `diffaudio prepare`.
        out: run folder; the autoencoder is written to `model/` in it.
        model: spectral (ours) or oobleck (the waveform VAE of Stable Audio, from diffusers).
        start_from: folder or hub id of an autoencoder of that kind to go on from. A spectral one keeps its code, and
            so its latents.
        peak: each clip is scaled to this largest sample first, as `diffaudio encode` does.
        held_out: share of the sources that are left out of training and measured instead.
        augment: what is changed in the clips; nothing unless said. Crops are drawn anyway.
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
    autoencoder, objective = build(config)
    if accelerator.is_main_process:
        begin_run(config.out, config, free=FREE_SETTINGS)
    state = latest_state(config.out / "state")
    report: dict[str, float] = {}
    if isinstance(autoencoder, SpectralAutoencoder) and not (state or config.start_from):
        report = fit_code(autoencoder, config.data, accelerator, peak=config.peak, held_out=config.held_out)
    dataset, held_out = open_data(config, autoencoder, accelerator)
    torch.nn.Module.to(autoencoder, device)  # diffusers' own warns of layers it does not have
    log = RunLog(config.out, steps_in(state) if state else -1) if accelerator.is_main_process else None
    if log and report:
        log.scalars(0, report)
    if log and held_out and not state:
        validate(autoencoder, held_out, config.validation, run=config.out, log=log, step=0)
    if objective and dataset:
        try:
            train(config, accelerator, autoencoder, objective.to(device), dataset, held_out, state, log)
        except Diverged as error:
            if log:
                log.close()
            sys.exit(f"{Path(sys.argv[0]).name}: stopped: {error}; {advise(config.out)}" if log else 1)
    elif log:
        save_autoencoder(autoencoder, config.out / "model", None, 0)
    if log:
        log.close()
    accelerator.wait_for_everyone()
    accelerator.end_training()


def train(
    config: Config,
    accelerator: Accelerator,
    autoencoder: Autoencoder,
    objective: Objective,
    dataset: WaveformDataset,
    held_out: WaveformDataset | None,
    state: Path | None,
    log: RunLog | None,
) -> None:
    """Learn by gradient, from `state` on.

    Raises:
        Diverged: the loss exploded, or something is not finite.
    """
    settings, num_samples = config.train, crop_size(config, autoencoder)
    order = ClipOrder((len(dataset),), seed=settings.seed)
    average = copied(autoencoder)
    learned = learned_parameters(autoencoder)
    optimizer = torch.optim.AdamW(learned, betas=settings.betas, weight_decay=settings.weight_decay)
    kept: dict[str, Any] = {"autoencoder": autoencoder, "average": average, "optimizer": optimizer}
    kept |= objective.parts()
    done = load_state(state, **kept) if state else 0
    network: Any = accelerator.prepare(autoencoder.train())
    adversary: Any = accelerator.prepare(objective.discriminator) if objective.discriminator else None

    def mean(value: Tensor) -> Tensor:
        reduced: Any = accelerator.reduce(value, "mean")
        return reduced

    watch = Watch(settings.max_loss_ratio, mean)
    begin = time.perf_counter()

    for step in tqdm(range(done, settings.steps), initial=done, total=settings.steps, disable=log is None):
        generator = seeded_generator(settings.seed, accelerator.process_index, step)
        place = (step * accelerator.num_processes + accelerator.process_index) * settings.batch_size
        clips = order.clips(place, settings.batch_size)
        x = draw_crops(dataset, clips, num_samples=num_samples, generator=generator, augment=config.augment)
        x = x.to(accelerator.device)
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))  # for layers that know no generator
        passed = network(x, generator)
        values = objective.teach(passed, x, step, mean)
        values["grad_norm"] = torch.nn.utils.clip_grad_norm_(learned, settings.grad_clip)
        of_all = seeded_generator(settings.seed, "adversary", step)
        values |= objective.teach_adversary(adversary, x, passed, step, of_all)
        watch.look(step + 1, values)
        lr = learning_rate(
            step,
            peak=settings.lr,
            warmup_steps=settings.warmup_steps,
            total_steps=settings.steps,
            final_fraction=settings.final_lr_fraction,
        )
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
        objective.update_adversary()
        update_average(average, autoencoder, average_decay(step, settings.ema_decay))

        last = step + 1 == settings.steps
        if log and (step + 1) % settings.log_every == 0:
            elapsed_s, begin = time.perf_counter() - begin, time.perf_counter()
            log.scalars(step + 1, watch.take_means() | {"lr": lr, "step_s": elapsed_s / settings.log_every})
        if log and ((step + 1) % settings.save_every == 0 or last):
            check_weights(step + 1, **kept)
            save_state(config.out / "state", step + 1, **kept)
            save_autoencoder(average, config.out / "model", dataset, num_samples)
        if log and held_out and ((step + 1) % config.validation.every == 0 or last):
            validate(average, held_out, config.validation, run=config.out, log=log, step=step + 1)
    if log and done >= settings.steps:  # a finished run: killed, perhaps, before its model was written
        save_autoencoder(average, config.out / "model", dataset, num_samples)


def build(config: Config) -> tuple[Autoencoder, Objective | None]:
    """The autoencoder, and what it is to learn by, where it learns anything by gradient.

    Raises:
        ValueError: the corpus is none, settings have no effect, or contradict each other.
    """
    store.read_manifest(config.data, *store.FORMATS["clips"])
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
    return dataset, WaveformDataset(folder, held_out=config.held_out, part="held_out") if config.held_out else None


def crop_size(config: Config, autoencoder: Autoencoder) -> int:
    """In samples."""
    return round(config.train.duration_s * autoencoder.sample_rate)


def advise(run: Path) -> str:
    """What to do when training has gone astray."""
    state = latest_state(run / "state")
    kept = f"{state} and the model beside it are as they were" if state else "nothing was saved yet"
    return f"{kept}; begin in another --out with a lower train.lr or train.grad_clip, or with more train.warmup_steps"


def steps_in(state: Path) -> int:
    """How many steps were done when it was saved."""
    return int(state.name.removeprefix("step_"))


if __name__ == "__main__":
    run_script(main, Config)
