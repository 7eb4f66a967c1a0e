"""Train a small CLIP: an image tower, pretrained or not, against a fixed sentence encoder.

    python train/clip.py --config configs/mini/clip.yaml --out runs/clip
    torchrun --nproc_per_node 2 train/clip.py …          # several processes, on GPUs or on CPUs

The text tower is a Hugging Face sentence encoder, kept as it is but for word pieces that are dropped, so that the
model understands what the encoder understands, and not only the captions of its pictures. Two phases:

1. Projection. The pretrained image tower looks at several crops of each picture once; the projection from its
   features into the space of the texts is trained on these stored features.
2. Tower. The image tower itself, or the parts of it that are not frozen, goes on at a smaller learning rate, on new
   crops in each step. The statistics of its batch normalisation stay as they were.

The losses are described in `diffaudio.training.clip.objective`. Part of the pictures is held out; what the model
knows of them is printed at the end of each phase, and kept in `measures.json` in the run folder. The same command goes
on with a run that was stopped, by Ctrl-C or otherwise, in either phase.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
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

from diffaudio.atomic_io import atomic_file, atomic_folder
from diffaudio.config import Count, NonNegative, NonNegativeCount, Positive, Share
from diffaudio.distributed import PATIENCE, StopRequest, join_processes, run_script
from diffaudio.errors import UserError
from diffaudio.models.clip import Clip
from diffaudio.seeding import seeded_generator
from diffaudio.training.clip.captioned_images import hold_out, load_photographs
from diffaudio.training.clip.features import stored_features
from diffaudio.training.clip.initial_model import save_model, write_initial_folder
from diffaudio.training.clip.measures import HeldOut
from diffaudio.training.clip.objective import Teacher
from diffaudio.training.clip.tower import ImageTower
from diffaudio.training.clip.training_set import TrainingSet, build_training_set, encode_texts
from diffaudio.training.divergence import DivergenceGuard
from diffaudio.training.learning_rate import learning_rate, set_learning_rate
from diffaudio.training.metrics_log import MetricsLog
from diffaudio.training.precision import resolve_precision
from diffaudio.training.progress import Progress, describe_device, is_due
from diffaudio.training.resume import latest_state, resume, save_state
from diffaudio.training.run_folder import local_batch_size, open_run, run_advice

FinishStep = Callable[[int, str, float], None]  # steps done, phase, learning rate

# What may change while a run goes on; all else would make it another run.
CHANGEABLE = {
    "out", "kinds", "paraphrases",
    "train.steps", "train.precision", "train.threads", "train.save_every", "train.log_every", "train.max_states",
}  # fmt: skip
INITIAL_SCALE = 30.0  # of the logits


@dataclass
class TrainSettings:
    """What is optimised, and how.

    Attributes:
        projection_steps: steps of the first phase; 0 leaves it out.
        projection_batch_size: pictures a step of the first phase.
        projection_lr: its learning rate at the peak.
        projection_views: crops of each picture whose features are stored for the first phase.
        steps: steps of the second phase.
        batch_size: pictures a step of the second phase, of all processes together.
        lr: its learning rate at the peak.
        warmup_steps: in each phase the learning rate rises over so many steps, then falls as a cosine.
        frozen_parts: modules of the image tower that stay as they are in the second phase, by timm's names.
        crop_size: pixels a side of training crops; smaller than `image_size`, since a crop shows things larger than a
            whole picture does (Touvron et al. 2019, arXiv:1906.06423).
        min_crop: smallest share of a picture's area that a training crop shows.
        sounding_weight: how much more often pictures with several captions are drawn; in the image set those are
            the ones whose captions also say what is heard.
        distillation_weight: of the loss that keeps what the pretrained classifier knew of ImageNet's classes.
        precision: auto is bf16 where the hardware has it.
        threads: of each process on a CPU; None shares the available ones.
        save_every: steps between two saves of `state/` and `model/`.
        max_states: how many states are kept, the newest ones.
    """

    projection_steps: NonNegativeCount = 0
    projection_batch_size: Count = 512
    projection_lr: Positive = 1e-3
    projection_views: Count = 4
    steps: NonNegativeCount = 1800
    batch_size: Count = 64
    lr: Positive = 1.5e-3
    weight_decay: NonNegative = 0.05
    warmup_steps: NonNegativeCount = 60
    frozen_parts: tuple[str, ...] = ()
    crop_size: Count = 160
    min_crop: Share = 0.35
    sounding_weight: Positive = 4.0
    distillation_weight: NonNegative = 0.0
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    threads: Count | None = None
    seed: int = 0
    save_every: Count = 100
    max_states: Count = 1
    log_every: Count = 10

    @property
    def total_steps(self) -> int:
        """Of both phases."""
        return self.projection_steps + self.steps


@dataclass
class Config:
    """Settings of `train/clip.py`.

    Attributes:
        out: run folder.
        images: folder of Parquet files with columns `image` (JPEG bytes), `captions` (strings) and `source`.
        text_model: folder of a Hugging Face sentence encoder with mean pooling (BERT or alike).
        vocabulary_texts: text files, one sentence a line, whose words stay in the vocabulary.
        vocabulary_size: how many word pieces to keep; the most frequent ones of the names and definitions of things
            (ImageNet's synsets) fill what the texts leave.
        image_model: a timm model.
        image_weights: its pretrained weights, a safetensors file or a folder with model.safetensors; 'timm' downloads
            timm's own; left out, the tower begins with random weights.
        image_size: pixels a side that the finished model reads.
        start_from: a CLIP folder made by this script, to go on from.
        templates: sentences that a caption is put into, one drawn at random a picture.
        class_sounds: YAML file, captions with the numbers of the ImageNet classes that sound so; for distillation.
        hold_out_sources: of the sources with at most 20 pictures, one in so many is held out as a whole; 0 for none.
        hold_out_pictures: of the pictures of other sources, one in so many is held out; 0 for none.
        general_source: the source whose pictures with a single caption are held out to measure general knowledge.
        kinds: YAML file, kinds of sound with the captions of the photographs that show each, to measure with.
        paraphrases: CSV file with columns prompt and label (a kind), to measure with.
    """

    out: Path
    images: Path
    text_model: Path
    vocabulary_texts: list[Path]
    vocabulary_size: Count = 7000
    image_model: str = "tf_efficientnet_lite0"
    image_weights: str | None = None
    image_size: Count = 192
    start_from: Path | None = None
    templates: tuple[str, ...] = ("{}", "a photo of {}", "the sound of {}", "a recording of {}", "{} can be heard")
    class_sounds: Path | None = None
    hold_out_sources: NonNegativeCount = 0
    hold_out_pictures: NonNegativeCount = 0
    general_source: str | None = None
    kinds: Path | None = None
    paraphrases: Path | None = None
    train: TrainSettings = field(default_factory=TrainSettings)


def main(config: Config) -> None:
    settings = config.train
    device: Any = join_processes(settings.threads, patience=PATIENCE).device
    check(config)
    accelerator = Accelerator(mixed_precision=resolve_precision(settings.precision, device))
    local_batch_size(settings.batch_size, accelerator.num_processes)
    with open_run(config.out, config, accelerator, changeable=CHANGEABLE):
        train(config, accelerator)
    accelerator.end_training()


def check(config: Config) -> None:
    """Refuse settings that would have no effect, and folders that are missing.

    Raises:
        ValueError: names the setting.
    """
    settings, pretrained = config.train, config.image_weights is not None
    if config.start_from is not None and not (config.start_from / "open_clip_config.json").is_file():
        raise UserError(f"start_from: {config.start_from} is not a CLIP folder, open_clip_config.json is missing")
    if settings.distillation_weight and not pretrained:
        raise UserError("train.distillation_weight needs a pretrained classifier to learn from; give image_weights")
    if config.class_sounds and not settings.distillation_weight:
        raise UserError("class_sounds has no effect where train.distillation_weight is 0; leave it out")
    if settings.projection_steps and not pretrained and config.start_from is None:
        raise UserError("train.projection_steps would train on a random tower's features; give image_weights, or 0")


def train(config: Config, accelerator: Accelerator) -> None:
    """Both phases, from the newest state on.

    Raises:
        DivergedError: a loss or a weight is not finite.
        KeyboardInterrupt: Ctrl-C was pressed; the step it came in is finished and saved.
    """
    settings, initial, states = config.train, config.out / "initial", config.out / "state"
    if accelerator.is_main_process and not initial.is_dir():
        write_initial(config, initial)
    accelerator.wait_for_everyone()
    clip = Clip.from_pretrained(initial)
    data, measured = load_data(config, clip, accelerator)
    tower = ImageTower(
        clip.model,
        initial_scale=None if config.start_from else INITIAL_SCALE,
        pretrained=config.image_weights is not None or config.start_from is not None,
    ).to(accelerator.device)
    tower.freeze(settings.frozen_parts)
    head = [*tower.visual.head.parameters(), tower.logit_scale]
    optimizers = {
        "projection_optimizer": torch.optim.AdamW(head, weight_decay=settings.weight_decay, betas=(0.9, 0.98)),
        "optimizer": torch.optim.AdamW(tower.parameters(), weight_decay=settings.weight_decay, betas=(0.9, 0.98)),
    }
    state: dict[str, Any] = {"tower": tower, **optimizers, "scaler": accelerator.scaler}
    begins = latest_state(states) is None
    done = resume(states, **state)
    if accelerator.is_main_process and begins:
        save_state(states, 0, **state)  # from here on other settings are noticed

    def mean_over_processes(values: Tensor) -> Any:
        return accelerator.reduce(values, "mean")

    advice = partial(run_advice, config.out, clips_gradients=False)
    guard = DivergenceGuard(mean_over_processes, advice=advice)
    progress = Progress(settings.total_steps, done, config.out / "model", visible=accelerator.is_main_process)
    num_held_out = len(measured.photographs) + len(measured.general)
    progress.describe(
        tower,
        describe_device(accelerator.device, accelerator.mixed_precision, accelerator.num_processes),
        f"{len(data.photographs)} pictures, {num_held_out} held out; batches of {settings.batch_size}",
    )

    def measure(phase: str) -> None:
        if accelerator.is_main_process:
            was_training = tower.training
            clip.eval()
            report(config.out, phase, measured.measure(clip))
            tower.train(was_training)

    if done < settings.projection_steps:
        features = stored_features(
            tower.visual.trunk, data.photographs, settings, data.normalisation, config.out / "features", accelerator
        )
    else:
        features = None
    steps = iter(progress.steps())
    with MetricsLog(config.out, done) if progress.visible else nullcontext() as log, StopRequest() as stop:

        def finish_step(step: int, phase: str, lr: float) -> None:
            """Log, show and save what is due; `step` is the number of steps done."""
            stopping = bool(mean_over_processes(torch.tensor(float(stop.requested), device=accelerator.device)))
            if log and is_due(step, settings.log_every):
                means = guard.take_means()
                log.scalars(step, {f"{phase}/{name}": value for name, value in (means | {"lr": lr}).items()})
                progress.show(loss=means["loss"])
            ends_phase = step in (settings.projection_steps, settings.total_steps)
            if log and (stopping or ends_phase or is_due(step, settings.save_every)):
                guard.check_weights(step, state, in_half=tower)
                save_model(clip, initial, config.out / "model")
                log.sync()
                save_state(states, step, max_states=settings.max_states, **state)
            if stopping:
                raise KeyboardInterrupt(f"step {step} is saved; the same command goes on from there")

        if features is not None:
            optimizer = optimizers["projection_optimizer"]
            train_projection(steps, tower, optimizer, settings, features, data, guard, finish_step)
            features = None
        if settings.projection_steps and done <= settings.projection_steps:
            measure("projection")
        train_tower(steps, tower, optimizers["optimizer"], settings, data, accelerator, guard, finish_step)
    measure("tower")
    progress.finish()


def load_data(config: Config, clip: Clip, accelerator: Accelerator) -> tuple[TrainingSet, HeldOut]:
    """The pictures to train on, and those held out to measure with."""
    settings, texts = config.train, partial(encode_texts, clip)
    photographs = load_photographs(config.images)
    training, held_out, general = (
        [photographs[index] for index in indices]
        for indices in hold_out(
            photographs,
            one_source_in=config.hold_out_sources,
            one_picture_in=config.hold_out_pictures,
            general_source=config.general_source,
        )
    )
    measured = HeldOut.build(held_out, general, config.kinds, config.paraphrases, config.templates, texts)
    data = build_training_set(training, clip, config.templates, sounding_weight=settings.sounding_weight)
    if settings.distillation_weight:
        weights = str(config.image_weights)
        data.teacher = Teacher.build(config.image_model, weights, config.class_sounds, texts).to(accelerator.device)
    return data, measured


def train_projection(
    steps: Iterator[int], tower: ImageTower, optimizer: torch.optim.Optimizer, settings: TrainSettings,
    features: Tensor, data: TrainingSet, guard: DivergenceGuard, finish_step: FinishStep,
) -> None:  # fmt: skip
    """The first phase, the same on every process.

    Args:
        features: [views, pictures, features], half precision.
    """
    for step in steps:
        generator = seeded_generator(settings.seed, "projection", step)
        drawn = data.draw(settings.projection_batch_size, generator)
        views = torch.randint(len(features), (len(drawn[0]),), generator=generator)
        batch = features[views, drawn[0]].float().to(tower.logit_scale.device)
        teacher_logits = data.teacher.head(batch) if data.teacher else None
        values = data.losses(*tower.project(batch), drawn, teacher_logits, settings.distillation_weight)
        optimizer.zero_grad()
        values["loss"].backward()
        guard.check(step + 1, values)
        lr = learning_rate(
            step,
            peak=settings.projection_lr,
            warmup_steps=settings.warmup_steps,
            total_steps=settings.projection_steps,
        )
        set_learning_rate(optimizer, lr)
        optimizer.step()
        finish_step(step + 1, "projection", lr)
        if step + 1 == settings.projection_steps:
            return


def train_tower(
    steps: Iterator[int], tower: ImageTower, optimizer: torch.optim.Optimizer, settings: TrainSettings,
    data: TrainingSet, accelerator: Accelerator, guard: DivergenceGuard, finish_step: FinishStep,
) -> None:  # fmt: skip
    """The second phase."""
    network, optimizer = accelerator.prepare(tower, optimizer)
    batch_size = local_batch_size(settings.batch_size, accelerator.num_processes)
    first = accelerator.process_index * batch_size
    for step in steps:
        drawn = data.draw(settings.batch_size, seeded_generator(settings.seed, "tower", step))
        drawn = tuple(numbers[first : first + batch_size] for numbers in drawn)
        pixels = data.crops(drawn[0], settings, step, first).to(accelerator.device)
        with accelerator.autocast():
            teacher_logits = data.teacher(pixels) if data.teacher else None
            embeddings, scale = network(pixels)
        values = data.losses(embeddings, scale, drawn, teacher_logits, settings.distillation_weight)
        accelerator.backward(values["loss"])
        guard.check(step + 1, values)
        lr = learning_rate(
            step - settings.projection_steps,
            peak=settings.lr,
            warmup_steps=settings.warmup_steps,
            total_steps=settings.steps,
        )
        set_learning_rate(optimizer, lr)
        optimizer.step()
        optimizer.zero_grad()
        finish_step(step + 1, "tower", lr)


def write_initial(config: Config, initial: Path) -> None:
    """The model before training, as a folder."""
    torch.manual_seed(config.train.seed)
    with atomic_folder(initial) as folder:
        if config.start_from:
            shutil.copytree(config.start_from, folder, dirs_exist_ok=True)
            return
        write_initial_folder(
            folder,
            text_model=config.text_model,
            texts=config.vocabulary_texts,
            vocabulary_size=config.vocabulary_size,
            image_model=config.image_model,
            image_weights=config.image_weights,
            image_size=config.image_size,
        )


def report(out: Path, phase: str, values: dict[str, float]) -> None:
    """Print the held-out measures, and add them to measures.json."""
    path = out / "measures.json"
    measures = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    measures[phase] = values
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(measures, indent=2), encoding="utf-8")
    print(f"held out, after the {phase} phase:")
    for name, value in values.items():
        print(f"  {name:<32} {value:.3f}")


if __name__ == "__main__":
    run_script(main, Config)
