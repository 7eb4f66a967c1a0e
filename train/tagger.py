r"""Train the tagger on a corpus of clips, from labels or from what CLIP sees on their frames.

    python train/tagger.py --config configs/mini/tagger.yaml --data corpora/mine --labels labels.csv \
        --out runs/tagger
    python train/tagger.py --config configs/mini/tagger.yaml --data corpora/mine --out runs/tagger \
        --clip checkpoints/mini/clip --kinds '["a dog barking", rain]'

With --outliers, a folder of recordings of none of the kinds, the tagger gets one more class, 'none of these'; it is
learned from these recordings, from noise and tones, and from the clips played backwards or with scrambled phases.

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
from diffaudio.corpus.datasets.labelled import (
    LabelledClips,
    label_by_clip,
    read_labelled_clips,
    read_labels,
    split_by_source,
    with_outliers,
)
from diffaudio.distributed import PATIENCE, StopRequest, join_processes, run_script
from diffaudio.errors import UserError
from diffaudio.models.tagger import Tagger
from diffaudio.seeding import seeded_generator
from diffaudio.training.divergence import DivergenceGuard
from diffaudio.training.learning_rate import learning_rate, set_learning_rate
from diffaudio.training.metrics_log import MetricsLog
from diffaudio.training.precision import resolve_precision
from diffaudio.training.progress import Progress, describe_device, is_due
from diffaudio.training.resume import resume, save_state
from diffaudio.training.run_folder import local_batch_size, open_run, run_advice
from diffaudio.training.tagger_batches import BatchSettings, Pools, draw_batch
from diffaudio.training.tagger_measures import measure

# What may change while a run goes on; all else would make it another run.
CHANGEABLE = {
    "data", "out", "labels", "outliers", "clip",
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
class TrainSettings(BatchSettings):
    """What is optimised, and how.

    Attributes:
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
    lr: Positive = 3e-3
    weight_decay: NonNegative = 0.02
    warmup_steps: NonNegativeCount = 50
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
        outliers: folder of recordings of none of the kinds, for one more class, 'none of these'.
        clip: take the targets from what this CLIP sees on the frames, instead of from `labels`:
            a folder, an hf-hub: id, or name and tag as ViT-B-32/openai.
        kinds: texts for CLIP, one for each kind to tell apart; needed with `clip`.
        temperature: of the softmax over CLIP's similarities.
    """

    data: Path
    out: Path
    labels: Path | None = None
    outliers: Path | None = None
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

    pools = Pools.of(clips, settings.balance)

    def mean_over_processes(values: Tensor) -> Any:
        return accelerator.reduce(values, "mean")

    guard = DivergenceGuard(mean_over_processes, advice=partial(run_advice, config.out, clips_gradients=False))
    progress = Progress(last, done, config.out / "model", visible=accelerator.is_main_process)
    progress.describe(
        tagger,
        describe_device(accelerator.device, accelerator.mixed_precision, accelerator.num_processes),
        f"{len(clips)} clips of {len(clips.kinds)} kinds; batches of {settings.batch_size}",
    )

    with MetricsLog(config.out, done) if progress.visible else nullcontext() as log, StopRequest() as stop:
        for step in progress.steps():
            generator = seeded_generator(settings.seed, accelerator.process_index, step)
            waveforms, targets = draw_batch(clips, pools, settings, generator, batch_size)
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
        clips = read_labelled_clips(config.data, read_labels(config.labels), sample_rate=rate)
    elif config.labels is not None or not config.kinds:
        raise UserError("--clip takes the place of --labels, and needs --kinds, the kinds to tell apart")
    else:
        clip = load_clip(config.clip)
        clips = label_by_clip(config.data, clip, config.kinds, sample_rate=rate, temperature=config.temperature)
    return clips if config.outliers is None else with_outliers(clips, config.outliers)


if __name__ == "__main__":
    run_script(main, Config)
