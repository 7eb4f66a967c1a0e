"""`diffaudio encode`: a corpus of clips -> latents and embeddings to train on, by any number of processes."""

import argparse
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from diffaudio.cli.options import Parser, between
from diffaudio.errors import UserError

if TYPE_CHECKING:
    from diffaudio.corpus.encode.run import EncodeReport, EncodeSettings

__all__ = ["run"]


def run(arguments: list[str]) -> None:
    given = _parser().parse_args(arguments)

    from diffaudio import distributed
    from diffaudio.checkpoint import load_encoders
    from diffaudio.corpus.encode.run import encode
    from diffaudio.generation.batch import choose_device, process_device

    settings, state = _settings(given), None
    if distributed.is_launched_as_several():
        distributed.end_with_launcher()
        state = distributed.join_processes(patience=timedelta(days=7))  # one may be done hours before the others
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
            # a CPU is busy with the models as it is
            num_threads=1 if device.type == "cpu" else min(8, distributed.share_of_cores()),
            state=state,
            progress=sys.stderr.isatty() and is_main,
        )
    except (UserError, OSError):
        if is_main:
            raise
        sys.exit(2)  # the main process tells the error
    if state:
        state.destroy_process_group()
    if is_main:
        print(_told(report, given.output, device.type, state.num_processes if state else 1))


def _settings(given: argparse.Namespace) -> "EncodeSettings":
    from diffaudio.config import parse
    from diffaudio.corpus.augment import HELPFUL, AugmentSettings
    from diffaudio.corpus.encode.run import EncodeSettings

    if not given.copies and (given.augment is not None or given.seed is not None):
        raise UserError("--augment and --seed have no effect without --copies; say how many, or leave them out")
    if given.pad and given.crop is None:
        raise UserError("--pad has no effect without --crop: clips stay whole")
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


def _parser() -> Parser:
    parser = Parser(
        prog="diffaudio encode",
        description="Turn a corpus of clips into latents and CLIP embeddings to train on. Running it again continues.",
        epilog="Under `accelerate launch -m diffaudio encode …` all processes share the work; the corpus is the same.",
    )
    parser.add_argument("corpus", type=Path, help="folder that `diffaudio prepare` made")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the encoded corpus")
    parser.add_argument(
        "--model", metavar="FOLDER|ID", help="whose autoencoder and CLIP to use (default: the one that comes along)"
    )
    parser.add_argument(
        "--autoencoder",
        metavar="FOLDER|ID",
        help="instead of the model's: ours, or in the format of its library, such as facebook/encodec_24khz",
    )
    parser.add_argument(
        "--clip",
        metavar="FOLDER|NAME",
        help="instead of the model's: a folder, an hf-hub: id, or open_clip's name and tag, such as ViT-B-32/openai",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    parser.add_argument("--batch-size", type=between(int, 1), default=16, help="clips at a time (default: %(default)s)")
    rows = parser.add_argument_group("rows", "one for each clip, as it was recorded and whole, but for these")
    rows.add_argument(
        "--crop",
        type=float,
        metavar="SECONDS",
        help="cut clips into rows of this length, end to end; what is left at the end goes, shorter clips are repeated",
    )
    rows.add_argument("--pad", action="store_true", help="let silence follow shorter clips instead of repeating them")
    rows.add_argument(
        "--copies", type=between(int, 0), default=0, metavar="N", help="augmented copies of each row (default: 0)"
    )
    rows.add_argument(
        "--augment",
        type=Path,
        metavar="FILE",
        help="YAML file that says what changes in them (default: as configs/augment/helpful.yaml)",
    )
    rows.add_argument("--seed", type=between(int, 0, 2**63 - 1), metavar="N", help="of the copies (default: 0)")
    return parser
