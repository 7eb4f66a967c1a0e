r"""Train the tagger on a corpus of clips, from labels or from what CLIP sees on their frames.

    python train/tagger.py --config configs/mini/tagger.yaml --data corpora/mine --labels labels.csv \
        --out runs/tagger
    python train/tagger.py --config configs/mini/tagger.yaml --data corpora/mine --out runs/tagger \
        --clip checkpoints/mini/clip --kinds '["a dog barking", rain]'

It serves evaluation only: nothing that generates sound reads it, or the labels. A fixed share of the sources, chosen by
the hash of their names, is held out; accuracy is measured on it. The same command goes on with a stopped run.
"""

import json
import os
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads sleep; OpenMP reads it when torch is loaded

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from diffaudio.atomic_io import atomic_file, atomic_folder
from diffaudio.checkpoint import load_clip
from diffaudio.config import Count, NonNegative, NonNegativeCount, Positive, Share
from diffaudio.corpus.augment import add_noise, change_speed, filter_smoothly, random_crop_or_fill
from diffaudio.corpus.datasets.labelled import (
    LabelledClips,
    label_by_clip,
    read_labelled_clips,
    read_labels,
    split_by_source,
)
from diffaudio.distributed import PATIENCE, StopRequest, join_processes, run_script
from diffaudio.errors import UserError
from diffaudio.metrics.confidence import wilson
from diffaudio.models.tagger import Tagger
from diffaudio.seeding import seeded_generator
from diffaudio.training.divergence import DivergenceGuard
from diffaudio.training.learning_rate import learning_rate, set_learning_rate
from diffaudio.training.metrics_log import MetricsLog
from diffaudio.training.precision import resolve_precision
from diffaudio.training.progress import Progress, describe_device, is_due
from diffaudio.training.resume import resume, save_state
from diffaudio.training.run_folder import local_batch_size, open_run, run_advice

# What may change while a run goes on; all else would make it another run.
CHANGEABLE = {
    "data", "out", "labels", "clip",
    "train.precision", "train.threads", "train.save_every", "train.log_every", "train.max_states",
}  # fmt: skip


@dataclass
class TaggerSettings:
    """The network; see `diffaudio.models.tagger.Tagger`."""

    front_end: str = "mel_small"
    back_end: str = "mean_max"
    width: Count = 16
    embedding_dim: Count = 128
    sample_rate: Count = 16000
    num_mels: Count = 64
    n_fft: Count = 1024
    hop_length: Count = 320
    dropout: Share = 0.3
    name: str = "tagger"


@dataclass
class TrainSettings:
    """What is optimised, and how.

    Attributes:
        duration_s: length of the crops; shorter clips are repeated, or padded with silence.
        balance: how often a kind of n clips is drawn: n to the power of 1 minus this.
        mixup: parameter of the beta distribution by which two sounds and their targets are mixed; 0 mixes none.
        filter_db: how far a smooth random filter raises or lowers a band.
        speed: largest relative change of speed, and so of pitch.
        noise_db: level of white noise below the sound's peak, at the loudest.
        masked_share: of the spectrogram's bands, and of its steps, up to which are blanked (SpecAugment).
        label_smoothing: share of the target that is spread over all kinds.
        held_out: share of the sources that are held out for measuring.
        threads: of each process on a CPU; None shares the available ones.
        save_every: steps between two saves of `state/`.
        max_states: how many states are kept, the newest ones.
        precision: of the network; auto is bf16 where the hardware has it. Spectrograms are float32.
    """

    steps: Count = 1500
    batch_size: Count = 32
    duration_s: Positive = 3.0
    lr: Positive = 3e-3
    weight_decay: NonNegative = 0.02
    warmup_steps: NonNegativeCount = 50
    balance: Share = 0.5
    mixup: NonNegative = 0.3
    filter_db: NonNegative = 4.0
    speed: Share = 0.05
    noise_db: float = -30.0
    masked_share: Share = 0.12
    label_smoothing: Share = 0.02
    held_out: Share = 0.2
    precision: Literal["auto", "no", "bf16"] = "no"
    threads: Count | None = None
    seed: int = 0
    save_every: Count = 100
    max_states: Count = 1
    log_every: Count = 10


@dataclass
class Config:
    """Settings of `train/tagger.py`.

    Attributes:
        data: corpus of clips, made by `diffaudio prepare`.
        out: run folder.
        labels: CSV with columns `file` and `label`, a row a source of the corpus.
        clip: take the targets from what this CLIP sees on the frames, instead of from `labels`:
            a folder, an hf-hub: id, or name and tag as ViT-B-32/openai.
        kinds: texts for CLIP, one for each kind to tell apart; needed with `clip`.
        temperature: of the softmax over CLIP's similarities.
    """

    data: Path
    out: Path
    labels: Path | None = None
    clip: str | None = None
    kinds: list[str] = field(default_factory=list)
    temperature: Positive = 0.02
    tagger: TaggerSettings = field(default_factory=TaggerSettings)
    train: TrainSettings = field(default_factory=TrainSettings)


def main(config: Config) -> None:
    settings = config.train
    device: Any = join_processes(settings.threads, patience=PATIENCE).device
    accelerator = Accelerator(mixed_precision=resolve_precision(settings.precision, device))
    local_batch_size(settings.batch_size, accelerator.num_processes)
    clips, held_out = split_by_source(load_clips(config), settings.held_out)
    torch.manual_seed(settings.seed)
    tagger = Tagger(labels=clips.kinds, **asdict(config.tagger))
    torch.nn.Module.to(tagger, device)
    with open_run(config.out, config, accelerator, changeable=CHANGEABLE):
        train(config, accelerator, tagger, clips)
        if accelerator.is_main_process:
            report(config, tagger, held_out)
    accelerator.end_training()


def train(config: Config, accelerator: Accelerator, tagger: Tagger, clips: LabelledClips) -> None:
    """Optimise the tagger, from the newest state on.

    Raises:
        DivergedError: a loss, a gradient or a weight is not finite.
        KeyboardInterrupt: Ctrl-C was pressed; the step it came in is finished and saved.
    """
    settings, last = config.train, config.train.steps
    batch_size = local_batch_size(settings.batch_size, accelerator.num_processes)
    optimizer = torch.optim.AdamW(tagger.parameters(), weight_decay=settings.weight_decay)
    state: dict[str, Any] = {"optimizer": optimizer, "tagger": tagger, "num_processes": accelerator.num_processes}
    done = resume(config.out / "state", **state)
    network, optimizer = accelerator.prepare(tagger.train(), optimizer)
    schedule = partial(learning_rate, peak=settings.lr, warmup_steps=settings.warmup_steps, total_steps=last)

    def mean_over_processes(values: Tensor) -> Any:
        return accelerator.reduce(values, "mean")

    guard = DivergenceGuard(mean_over_processes, advice=partial(run_advice, config.out))
    progress = Progress(last, done, config.out / "model", visible=accelerator.is_main_process)
    progress.describe(
        tagger,
        describe_device(accelerator.device, accelerator.mixed_precision, accelerator.num_processes),
        f"{len(clips)} clips of {len(clips.kinds)} kinds; batches of {settings.batch_size}",
    )

    with MetricsLog(config.out, done) if progress.visible else nullcontext() as log, StopRequest() as stop:
        for step in progress.steps():
            generator = seeded_generator(settings.seed, accelerator.process_index, step)
            waveforms, targets = draw_batch(clips, settings, generator, batch_size)
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))  # dropout and masks take no generator
            logits = network(waveforms.to(accelerator.device), settings.masked_share)[1].float()
            loss = F.cross_entropy(logits, targets.to(logits), label_smoothing=settings.label_smoothing)
            accelerator.backward(loss)
            guard.check(step + 1, {"loss": loss, "grad_norm": gradient_norm(tagger)})
            lr = set_learning_rate(optimizer, schedule(step))
            optimizer.step()
            optimizer.zero_grad()
            stopping = bool(mean_over_processes(torch.tensor(float(stop.requested), device=accelerator.device)))

            if log and is_due(step + 1, settings.log_every):
                means = guard.take_means()
                log.scalars(step + 1, means | {"lr": lr})
                progress.show(loss=means["loss"])
            if log and (stopping or is_due(step + 1, settings.save_every, last)):
                guard.check_weights(step + 1, state)
                log.sync()
                save_state(config.out / "state", step + 1, max_states=settings.max_states, **state)
            if stopping:
                raise KeyboardInterrupt(f"step {step + 1} is saved; the same command goes on from there")
    progress.finish()


def report(config: Config, tagger: Tagger, held_out: LabelledClips) -> None:
    """Write the model, and how well it does on the sources that were held out."""
    torch.nn.Module.to(tagger.eval(), "cpu")
    with atomic_folder(config.out / "model") as folder:
        tagger.save_pretrained(folder)
    measured = measure(tagger, held_out) if len(held_out) else {"n": 0, "held_out": []}
    measured["against"] = "labels" if config.clip is None else f"what CLIP {config.clip} sees"
    with atomic_file(config.out / "held_out.json") as temporary:
        temporary.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    if len(held_out):
        print(f"held out: accuracy {measured['accuracy']} of {measured['n']}, interval {measured['interval']}")


def gradient_norm(module: torch.nn.Module) -> Tensor:
    """The norm of all gradients together."""
    return torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])


def load_clips(config: Config) -> LabelledClips:
    """The corpus with its targets.

    Raises:
        ValueError: neither labels nor CLIP, or a setting has no effect.
    """
    rate = config.tagger.sample_rate
    if config.clip is None:
        if config.labels is None:
            raise UserError("nothing to learn from: give --labels, or --clip and --kinds")
        if config.kinds:
            raise UserError("--kinds has no effect without --clip; the labels name the kinds")
        return read_labelled_clips(config.data, read_labels(config.labels), sample_rate=rate)
    if config.labels is not None or not config.kinds:
        raise UserError("--clip takes the place of --labels, and needs --kinds, the kinds to tell apart")
    clip = load_clip(config.clip)
    return label_by_clip(config.data, clip, config.kinds, sample_rate=rate, temperature=config.temperature)


def draw_batch(
    clips: LabelledClips, settings: TrainSettings, generator: torch.Generator, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Augmented crops [batch, samples], and their targets [batch, kinds]."""
    num_samples = round(settings.duration_s * clips.sample_rate)
    weights = clips.targets @ clips.targets.sum(dim=0).clamp(min=1e-6) ** -settings.balance
    chosen = torch.multinomial(weights, batch_size, replacement=True, generator=generator)
    sounds = []
    for index in chosen.tolist():
        # a little more than is needed, so that no sound is changed in speed as a whole
        longest = round(num_samples * (1 + settings.speed))
        sound = random_crop_or_fill(clips.waveforms[index].float(), longest, generator)
        sounds.append(random_crop_or_fill(change_speed(sound, settings.speed, generator), num_samples, generator))
    x, targets = torch.stack(sounds), clips.targets[chosen]
    x = filter_smoothly(x, settings.filter_db, generator)
    x = x / x.abs().amax(dim=1, keepdim=True).clamp(min=1e-4)
    if settings.mixup > 0:
        x, targets = mix_up(x, targets, settings.mixup, generator)
    return add_noise(x, settings.noise_db, generator), targets


def mix_up(x: Tensor, targets: Tensor, strength: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mix each sound with another: Zhang et al. 2018 (arXiv:1710.09412), eq. 1, with one weight an item."""
    draws = torch._sample_dirichlet(torch.full((len(x), 2), strength), generator)[:, :1]
    other = torch.randperm(len(x), generator=generator)
    return draws * x + (1 - draws) * x[other], draws * targets + (1 - draws) * targets[other]


def measure(tagger: Tagger, clips: LabelledClips) -> dict[str, Any]:
    """Accuracy over whole recordings, with its interval (95 %), by kind, and what was held out."""
    logits = tagger.tag([waveform.float() for waveform in clips.waveforms])[1]
    truth = clips.targets.argmax(dim=1)
    right = logits.argmax(dim=1) == truth
    first = logits.topk(min(3, len(clips.kinds))).indices
    share = right.double().mean().item()
    interval = wilson(share, len(clips))
    by_kind = {
        kind: f"{int(right[truth == index].sum())} of {int((truth == index).sum())}"
        for index, kind in enumerate(clips.kinds)
    }
    return {
        "accuracy": round(share, 4),
        "top_3": round((first == truth[:, None]).any(dim=1).double().mean().item(), 4),
        "n": len(clips),
        "interval": [round(interval.low, 4), round(interval.high, 4)],
        "by_kind": by_kind,
        "held_out": clips.sources,
    }


if __name__ == "__main__":
    run_script(main, Config)
