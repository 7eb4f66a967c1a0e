"""`diffaudio encode`: a corpus of clips -> latents and embeddings for training, in any number of processes."""

import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from diffaudio.cli.options import check_exists, check_model
from diffaudio.config import Count, NonNegativeCount, Seed, parse, parse_command
from diffaudio.errors import UserError

if TYPE_CHECKING:
    from diffaudio.corpus.encode.run import EncodeReport, EncodeSettings

__all__ = ["run"]


@dataclass(kw_only=True)
class Options:
    """The options of `diffaudio encode`. By default, each clip becomes one row, unaltered and uncut.

    Attributes:
        corpus: folder written by `diffaudio prepare`.
        output: folder for the encoded corpus.
        model: folder or hub id of the model whose autoencoder and CLIP to use (default: the bundled model).
        autoencoder: use this one instead of the model's: folder or hub id of a diffaudio autoencoder, or of one in its
            library's format, such as facebook/encodec_24khz.
        clip: use this one instead of the model's: a folder, an hf-hub: id, or an open_clip name and tag, such as
            ViT-B-32/openai.
        device: auto, cpu, cuda, cuda:N (such as cuda:1) or mps.
        batch_size: clips per batch.
        crop: cut clips into consecutive rows of this many seconds; the remainder is discarded, and clips shorter than
            one row are repeated to fill it.
        pad: with --crop, pad shorter clips with silence instead of repeating them.
        copies: number of augmented copies of each row.
        augment: YAML file with the augmentation settings (default: those of configs/augment/helpful.yaml).
        seed: random seed of the augmentation (default: 0).
    """

    corpus: Path
    output: Path
    model: str | None = None
    autoencoder: str | None = None
    clip: str | None = None
    device: str = "auto"
    batch_size: Count = 16
    crop: float | None = None
    pad: bool = False
    copies: NonNegativeCount = 0
    augment: Path | None = None
    seed: Seed | None = None


def run(arguments: list[str]) -> None:
    given = parse_command(
        Options,
        arguments,
        program="diffaudio encode",
        description="Turn a corpus of clips into latents and CLIP embeddings to train on. Running it again continues.",
        epilog="Under `accelerate launch -m diffaudio encode …` all processes share the work; the corpus is the same.",
        flags={"corpus": ("corpus",), "output": ("-o", "--output")},
        groups=dict.fromkeys(("crop", "pad", "copies", "augment", "seed"), "rows"),
    )
    _check_options(given)
    check_exists(given.corpus, given.augment)
    check_model(given.model)

    from diffaudio import distributed
    from diffaudio.checkpoint import load_encoders
    from diffaudio.corpus.encode.run import encode
    from diffaudio.generation.batch import choose_device, process_device

    settings, state = _settings(given), None
    if distributed.is_launched_as_several():
        distributed.end_with_launcher()
        state = distributed.join_processes(patience=timedelta(days=7))  # one may finish hours before the others
    is_main = state is None or state.is_main_process
    try:
        device = process_device(given.device, state) if state else choose_device(given.device)
        autoencoder, clip = load_encoders(given.model, autoencoder=given.autoencoder, clip=given.clip)
        report = encode(
            given.corpus,
            given.output,
            autoencoder=autoencoder,
            clip=clip,
            settings=settings,
            device=device,
            batch_size=given.batch_size,
            # the models already keep a CPU busy
            num_threads=1 if device.type == "cpu" else min(8, distributed.share_of_cores()),
            state=state,
            progress=sys.stderr.isatty() and is_main,
        )
    except (UserError, OSError):
        if is_main:
            raise
        sys.exit(2)  # the main process reports the error
    if state:
        state.destroy_process_group()
    if is_main:
        print(_told(report, given.output, device.type, state.num_processes if state else 1))


def _check_options(given: Options) -> None:
    if not given.copies and (given.augment is not None or given.seed is not None):
        raise UserError("--augment and --seed have no effect without --copies; say how many, or leave them out")
    if given.pad and given.crop is None:
        raise UserError("--pad has no effect without --crop: clips stay whole")


def _settings(given: Options) -> "EncodeSettings":
    from diffaudio.corpus.augment import HELPFUL, AugmentSettings
    from diffaudio.corpus.encode.run import EncodeSettings

    augment = parse(AugmentSettings, ["--config", str(given.augment)]) if given.augment else HELPFUL
    return EncodeSettings(
        crop_s=given.crop,
        pad=given.pad,
        copies=given.copies,
        augment=augment if given.copies else None,
        seed=given.seed or 0,
    )


def _told(report: "EncodeReport", output: Path, device: str, processes: int) -> str:
    manifest = report.manifest
    copies = manifest["settings"]["copies"]
    clips, minutes = manifest["clips"], manifest["seconds"] / 60
    told = f"{output}: {clips} clips, {minutes:.1f} minutes"
    if copies:
        of_each = "a copy of each" if copies == 1 else f"{copies} copies of each"
        told = f"{output}: {clips // (1 + copies)} clips and {of_each}, {minutes:.1f} minutes"
    if report.clips_s > 0:
        hour_s = 3600 * report.took_s / report.clips_s / processes
        cost = f"{hour_s:.0f} seconds" if hour_s < 90 else f"{hour_s / 60:.1f} minutes"
        machines = device if processes == 1 else f"{processes} processes, {device}"
        told += f"\n1 hour of clips takes {cost} on {machines}"
    return told
