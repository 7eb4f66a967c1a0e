"""Train a small CLIP: an image tower, pretrained or not, against a fixed sentence encoder.

    python train/clip.py --config configs/mini/clip.yaml --out runs/clip

The text tower is a Hugging Face sentence encoder, kept as it is but for word pieces that are dropped, so that the
model understands what the encoder understands, and not only the captions of its pictures. Two phases:

1. Projection. The pretrained image tower looks at several crops of each picture once; the projection from its
   features into the space of the texts is trained on these stored features.
2. Tower. The image tower itself, or the parts of it that are not frozen, goes on at a smaller learning rate, on new
   crops in each step. The statistics of its batch normalisation stay as they were.

The losses are described in `diffaudio.training.clip.objective`. Part of the pictures is held out; what the model
knows of them is printed at the end of each phase, and kept in `measures.json` in the run folder.
"""

import json
import math
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads sleep; OpenMP reads it when torch is loaded

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from diffaudio.atomic_io import atomic_file, atomic_folder
from diffaudio.config import Count, NonNegative, NonNegativeCount, Positive, Share
from diffaudio.distributed import join_processes, run_script
from diffaudio.errors import UserError
from diffaudio.models.clip import Clip
from diffaudio.seeding import seeded_generator
from diffaudio.training.clip.captioned_images import draw_crops, hold_out, load_photographs, sampling_weights
from diffaudio.training.clip.features import stored_features
from diffaudio.training.clip.initial_model import save_model, write_initial_folder
from diffaudio.training.clip.measures import HeldOut
from diffaudio.training.clip.objective import CaptionBank, Teacher, caption_loss, distillation_loss
from diffaudio.training.divergence import DivergenceGuard
from diffaudio.training.learning_rate import learning_rate, set_learning_rate
from diffaudio.training.metrics_log import MetricsLog
from diffaudio.training.precision import resolve_precision
from diffaudio.training.resume import latest_state, resume, save_state
from diffaudio.training.run_folder import open_run, run_advice


@dataclass
class Config:
    """Settings of `train/clip.py`.

    Attributes:
        images: folder of Parquet files with columns `image` (JPEG bytes), `captions` (strings) and `source`.
        text_model: folder of a Hugging Face sentence encoder with mean pooling (BERT or alike).
        vocabulary_texts: text files, one sentence a line, whose words stay in the vocabulary.
        vocabulary_size: how many word pieces to keep; the most frequent ones of the names and definitions of things
            (ImageNet's synsets) fill what the texts leave.
        image_model: a timm model.
        image_weights: its pretrained weights, a safetensors file or a folder with model.safetensors; 'timm' downloads
            timm's own; left out, the tower begins with random weights.
        image_size: pixels a side that the finished model reads.
        crop_size: pixels a side of training crops; smaller than `image_size`, since a crop shows things larger than a
            whole picture does (Touvron et al. 2019, arXiv:1906.06423).
        min_crop: smallest share of a picture's area that a training crop shows.
        templates: sentences that a caption is put into, one drawn at random a picture.
        start_from: a CLIP folder made by this script, to go on from.
        sounding_weight: how much more often pictures with several captions are drawn; in the image set those are
            the ones whose captions also say what is heard.
        distillation_weight: of the loss that keeps what the pretrained classifier knew of ImageNet's classes.
        class_sounds: YAML file, captions with the numbers of the ImageNet classes that sound so.
        projection_views: crops of each picture whose features are stored for the first phase.
        projection_steps: steps of the first phase; 0 leaves it out.
        steps: steps of the second phase.
        batch_size: pictures a step and process, in the second phase.
        frozen_parts: modules of the image tower that stay as they are in the second phase, by timm's names.
        hold_out_sources: of the sources with at most 20 pictures, one in so many is held out as a whole; 0 for none.
        hold_out_pictures: of the pictures of other sources, one in so many is held out; 0 for none.
        general_source: the source whose pictures with a single caption are held out to measure general knowledge.
        kinds: YAML file, kinds of sound with the captions of the photographs that show each, to measure with.
        paraphrases: CSV file with columns prompt and label (a kind), to measure with.
        threads: CPU threads of each process; left out, the processes share the cores.
    """

    out: Path
    images: Path
    text_model: Path
    vocabulary_texts: list[Path]
    vocabulary_size: Count = 7000
    image_model: str = "tf_efficientnet_lite0"
    image_weights: str | None = None
    image_size: Count = 192
    crop_size: Count = 160
    min_crop: Share = 0.35
    templates: tuple[str, ...] = ("{}", "a photo of {}", "the sound of {}", "a recording of {}", "{} can be heard")
    start_from: Path | None = None
    sounding_weight: Positive = 4.0
    distillation_weight: NonNegative = 0.0
    class_sounds: Path | None = None
    projection_views: Count = 4
    projection_steps: NonNegativeCount = 0
    projection_batch_size: Count = 512
    projection_learning_rate: Positive = 1e-3
    steps: NonNegativeCount = 1800
    batch_size: Count = 64
    learning_rate: Positive = 1.5e-3
    weight_decay: NonNegative = 0.05
    warmup_steps: NonNegativeCount = 60
    frozen_parts: tuple[str, ...] = ()
    hold_out_sources: NonNegativeCount = 0
    hold_out_pictures: NonNegativeCount = 0
    general_source: str | None = None
    kinds: Path | None = None
    paraphrases: Path | None = None
    threads: Count | None = None
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    seed: int = 0
    save_every: Count = 100
    log_every: Count = 10


class ImageTower(nn.Module):
    """What is trained of a CLIP: the image tower and the scale of the logits.

    pixels [batch, 3, size, size] -> embeddings [batch, dim] of unit norm, and the scale.
    """

    def __init__(self, model: Any, *, initial_scale: float | None) -> None:
        super().__init__()
        self.visual = model.visual.to(memory_format=torch.channels_last)
        self.logit_scale = model.logit_scale
        if initial_scale is not None:
            nn.init.constant_(self.logit_scale, math.log(initial_scale))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.visual.trunk(pixels.contiguous(memory_format=torch.channels_last))
        return self.project(features)

    def project(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, features] -> the same as `forward`"""
        return F.normalize(self.visual.head(features).float(), dim=-1), self.logit_scale.exp().clamp(max=100)


def encode_texts(clip: Clip, texts: Sequence[str]) -> Tensor:
    return torch.cat([clip.encode_text(list(texts[start : start + 64])) for start in range(0, len(texts), 64)])


def check(config: Config) -> None:
    """Refuse settings that would have no effect, and folders that are missing."""
    pretrained = config.image_weights is not None
    if config.start_from is not None and not (config.start_from / "open_clip_config.json").is_file():
        raise UserError(f"start_from: {config.start_from} is not a CLIP folder, open_clip_config.json is missing")
    if config.distillation_weight and not pretrained:
        raise UserError("distillation_weight needs a pretrained classifier to learn from; give image_weights")
    if config.class_sounds and not config.distillation_weight:
        raise UserError("class_sounds has no effect where distillation_weight is 0; leave it out")
    if config.projection_steps and not pretrained and config.start_from is None:
        raise UserError("projection_steps would train on the features of a random tower; give image_weights, or 0")


def train_projection(
    tower: ImageTower, config: Config, features: Tensor, caption_set: Tensor, weights: Tensor, bank: CaptionBank,
    teacher: Teacher | None, log: MetricsLog | None, guard: DivergenceGuard,
) -> None:  # fmt: skip
    """The first phase, the same on every process.

    Args:
        features: [views, pictures, features], half precision.
        caption_set: [pictures], which one each has.
        weights: [pictures], how often each is drawn.
    """
    parameters = [*tower.visual.head.parameters(), tower.logit_scale]
    optimizer = torch.optim.AdamW(parameters, weight_decay=config.weight_decay, betas=(0.9, 0.98))
    for step in tqdm(range(config.projection_steps), desc="projection", disable=log is None):
        generator = seeded_generator(config.seed, "projection", step)
        chosen = torch.multinomial(weights, config.projection_batch_size, replacement=True, generator=generator)
        views = torch.randint(len(features), (len(chosen),), generator=generator)
        lr = learning_rate(
            step,
            peak=config.projection_learning_rate,
            warmup_steps=config.warmup_steps,
            total_steps=config.projection_steps,
        )
        set_learning_rate(optimizer, lr)
        seen = features[views, chosen].float().to(tower.logit_scale.device)
        embeddings, scale = tower.project(seen)
        captions, templates = bank.draw(caption_set[chosen], generator)
        loss = caption_loss(embeddings, scale, bank, caption_set[chosen], captions, templates)
        values = {"projection/caption_loss": loss.item(), "projection/scale": scale.item()}
        if teacher:
            distillation = distillation_loss(embeddings, scale, teacher.classes, teacher.head(seen))
            loss = loss + config.distillation_weight * distillation
            values["projection/distillation_loss"] = distillation.item()
        optimizer.zero_grad()
        loss.backward()
        guard.check(step + 1, {"loss": loss})
        optimizer.step()
        if log and (step + 1) % config.log_every == 0:
            log.scalars(step + 1, values)


def freeze(tower: ImageTower, config: Config) -> None:
    """Hold the frozen parts still; where the tower was pretrained, the statistics of its batch normalisation too."""
    modules = dict(tower.visual.trunk.named_modules())
    for name in config.frozen_parts:
        if name not in modules:
            parts = ", ".join(part for part in modules if part and part.count(".") <= 1)
            raise UserError(f"frozen_parts: '{name}' is not a part of {config.image_model}; its parts: {parts}")
        modules[name].requires_grad_(False)
    if config.image_weights is not None or config.start_from is not None:
        tower.eval()


def main(config: Config) -> None:
    device: Any = join_processes(config.threads).device
    check(config)
    accelerator = Accelerator(mixed_precision=resolve_precision(config.precision, device))
    with open_run(config.out, config, accelerator, changeable={"steps", "save_every", "log_every", "threads"}):
        train(config, accelerator)
    accelerator.end_training()


def train(config: Config, accelerator: Accelerator) -> None:
    """Both phases, from the newest state on.

    Raises:
        DivergedError: a loss or a weight is not finite.
    """
    initial, states = config.out / "initial", config.out / "state"
    if accelerator.is_main_process and not initial.is_dir():
        write_initial(config, initial)
    accelerator.wait_for_everyone()
    clip = Clip.from_pretrained(initial)
    photographs = load_photographs(config.images)
    training, held_out, general = hold_out(
        photographs,
        one_source_in=config.hold_out_sources,
        one_picture_in=config.hold_out_pictures,
        general_source=config.general_source,
    )

    def texts(batch: list[str]) -> Tensor:
        return encode_texts(clip, batch)

    measured = HeldOut.build(
        [photographs[i] for i in held_out], [photographs[i] for i in general], config.kinds, config.paraphrases,
        config.templates, texts,
    ) if accelerator.is_main_process else None  # fmt: skip
    photographs = [photographs[i] for i in training]
    distinct = sorted({photograph.captions for photograph in photographs})
    number = {captions: index for index, captions in enumerate(distinct)}
    caption_set = torch.tensor([number[photograph.captions] for photograph in photographs])
    weights = sampling_weights([photograph.captions for photograph in photographs], config.sounding_weight)
    bank = CaptionBank.build(distinct, config.templates, texts)
    teacher = None
    if config.distillation_weight:
        teacher = Teacher.build(config.image_model, str(config.image_weights), config.class_sounds, texts).to(
            accelerator.device
        )
    mean, std = (torch.tensor(clip.model.visual.preprocess_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))

    tower = ImageTower(clip.model, initial_scale=None if config.start_from else 30.0).to(accelerator.device)
    optimizer = torch.optim.AdamW(tower.parameters(), weight_decay=config.weight_decay, betas=(0.9, 0.98))
    begins = latest_state(states) is None
    done = resume(states, optimizer=optimizer, tower=tower)
    log = MetricsLog(config.out, done) if accelerator.is_main_process else None
    if log and begins:
        save_state(states, 0, optimizer=optimizer, tower=tower)  # from here on other settings are noticed

    def mean_over_processes(values: Tensor) -> Any:
        return accelerator.reduce(values, "mean")

    guard = DivergenceGuard(mean_over_processes, advice=lambda: run_advice(config.out))

    def save(step: int) -> None:
        guard.check_weights(step, {"tower": tower, "optimizer": optimizer}, in_half=tower)
        save_model(clip, initial, config.out / "model")
        save_state(states, step, optimizer=optimizer, tower=tower)

    def measure(phase: str) -> None:
        if measured:
            was_training = tower.training
            clip.eval()
            report(config.out, phase, measured.measure(clip))
            tower.train(was_training)

    if config.projection_steps and done == 0:
        tower.eval()
        features = stored_features(
            tower.visual.trunk, photographs, config, (mean, std), config.out / "features", accelerator
        )
        train_projection(tower, config, features, caption_set, weights, bank, teacher, log, guard)
        del features
        done = config.projection_steps
        if log:
            save(done)
        measure("projection")

    tower.train()
    freeze(tower, config)
    network, optimizer = accelerator.prepare(tower, optimizer)
    total = config.projection_steps + config.steps
    for step in tqdm(range(done, total), initial=done, total=total, desc="tower", disable=log is None):
        generator = seeded_generator(config.seed, accelerator.process_index, step)
        chosen = torch.multinomial(weights, config.batch_size, replacement=True, generator=generator)
        pictures = [photographs[index].open() for index in chosen.tolist()]
        pixels = (draw_crops(pictures, config.crop_size, config.min_crop, generator) - mean) / std
        pixels = pixels.to(accelerator.device)
        captions, templates = bank.draw(caption_set[chosen], generator)
        lr = learning_rate(
            step - config.projection_steps,
            peak=config.learning_rate,
            warmup_steps=config.warmup_steps,
            total_steps=config.steps,
        )
        set_learning_rate(optimizer, lr)
        with accelerator.autocast():
            embeddings, scale = network(pixels)
        loss = caption_loss(embeddings, scale, bank, caption_set[chosen], captions, templates)
        values = {"tower/caption_loss": loss.item(), "tower/scale": scale.item()}
        if teacher:
            with accelerator.autocast():
                teacher_logits = teacher(pixels)
            distillation = distillation_loss(embeddings, scale, teacher.classes, teacher_logits.float())
            loss = loss + config.distillation_weight * distillation
            values["tower/distillation_loss"] = distillation.item()
        accelerator.backward(loss)
        guard.check(step + 1, {"loss": loss})
        optimizer.step()
        optimizer.zero_grad()
        if log and (step + 1) % config.log_every == 0:
            log.scalars(step + 1, values)
        if log and ((step + 1) % config.save_every == 0 or step + 1 == total):
            save(step + 1)
    measure("tower")
    if log:
        log.close()


def write_initial(config: Config, initial: Path) -> None:
    """The model before training, as a folder."""
    torch.manual_seed(config.seed)
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
