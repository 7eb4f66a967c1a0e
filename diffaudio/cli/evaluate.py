"""`diffaudio evaluate`: a folder of sounds -> quality metrics."""

import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaudio.cli.options import check_exists, check_report_path, check_resamples
from diffaudio.config import Count, Seed, parse_command
from diffaudio.errors import UserError

if TYPE_CHECKING:
    from diffaudio.evaluation.report import Row
    from diffaudio.evaluation.sound_files import Sound, SoundFile

__all__ = ["run"]

SUBCOMMANDS = ("bridge", "kinds", "ranking", "reconstruction")


@dataclass(kw_only=True)
class Options:
    """The options of `diffaudio evaluate`.

    Attributes:
        folder: folder of sounds or videos to evaluate, searched recursively.
        reference: folder of real recordings; without it, no distances are computed.
        real_row: hold out as many reference recordings as there are sounds and evaluate them too, to show what real
            sound scores; with --no-real-row, the sounds are compared with all recordings.
        conventions: also compute what other toolkits define otherwise: audioldm_eval's inception score over 10 splits
            and its KL divergences, kadtk's bandwidth, fadtk's extrapolation.
        labels: CSV with the column file, and label or prompt or both, for sounds in either folder.
        backbone: one or more embedding models: yamnet or tagger (both bundled), the folder of a tagger, CLAP, VGGish,
            PANNs Cnn14, OpenL3 or YAMNet, or the hub id of a CLAP model.
        clip: CLIP whose text embeddings the CLIP-space score uses: a folder, an hf-hub: id, or an open_clip name and
            tag, such as ViT-B-32/openai (default: the bundled model's).
        output: .json file for the report; a page with players is written beside it (.html).
        seed: random seed of all draws.
        resamples: number of resamples for each confidence interval, at least 20.
        device: auto, cpu, cuda, cuda:N (such as cuda:1) or mps.
    """

    folder: Path
    reference: Path | None = None
    real_row: bool = True
    conventions: bool = False
    labels: Path | None = None
    backbone: list[str] = field(default_factory=lambda: ["yamnet"])
    clip: str | None = None
    output: Path = Path("report.json")
    seed: Seed = 0
    resamples: Count = 200
    device: str = "auto"


def run(arguments: list[str]) -> None:
    if arguments and arguments[0] in SUBCOMMANDS:
        importlib.import_module(f"diffaudio.cli.evaluate_{arguments[0]}").run(arguments[1:])
        return
    given = parse_command(
        Options,
        arguments,
        program="diffaudio evaluate",
        description="Measure a folder of sound, of diffaudio or any other program, against a folder of recordings.",
        epilog="What a sound should be is read from NAME.json beside NAME.wav (entries prompt and label), or from "
        "--labels. Distances and shares come with 95 % intervals over the sounds. `diffaudio evaluate reconstruction` "
        "measures autoencoders, `diffaudio evaluate kinds` a model kind by kind, `diffaudio evaluate bridge` its "
        "bridges, and `diffaudio evaluate ranking` compares reports; each has its own --help, and a folder of such a "
        "name is ./reconstruction.",
        flags={"folder": ("folder",), "output": ("-o", "--output")},
    )
    check_exists(given.folder, given.reference, given.labels)
    check_resamples(given.resamples)
    check_report_path(given.output)

    from diffaudio.checkpoint import bundled_model
    from diffaudio.evaluation.page import write_evaluation_page
    from diffaudio.evaluation.reference import Reference, split_reference
    from diffaudio.evaluation.report import write_report
    from diffaudio.evaluation.rows import evaluated_row, load_embedder, make_report, real_row, shuffled_row
    from diffaudio.evaluation.sound_files import find_sounds, read_texts
    from diffaudio.generation.batch import choose_device

    texts = read_texts(given.labels) if given.labels else {}
    files = find_sounds(given.folder, texts)
    recordings = find_sounds(given.reference, texts) if given.reference else []
    if texts and not any(file.path.stem in texts or file.name in texts for file in [*files, *recordings]):
        raise UserError(f"{given.labels}: names none of the sounds; its column file has to hold their file names")

    embedder = load_embedder(given.backbone, given.clip or bundled_model() / "clip", device=choose_device(given.device))
    draws: dict[str, Any] = {"seed": given.seed, "resamples": given.resamples}
    embedded = embedder.embed(_with_progress(files, given.folder))
    reference = None
    if given.reference is not None:
        everything = embedder.embed(_with_progress(recordings, given.reference))
        wanted = embedded.wanted()
        reference = split_reference(everything, wanted, seed=given.seed) if given.real_row else Reference(everything)
    rows = [evaluated_row(embedded, reference, name=str(given.folder), conventions=given.conventions, **draws)]
    if reference is not None and given.real_row:
        rows.append(real_row(reference, name=str(given.reference), **draws))
    rows.append(shuffled_row(embedded, reference, name=str(given.folder), **draws))
    report = make_report(
        embedder,
        rows,
        **draws,
        reference=str(given.reference) if given.reference else None,
        labels=str(given.labels) if given.labels else None,
    )
    write_report(given.output, report)
    page = given.output.with_suffix(".html")
    write_evaluation_page(page, report, embedded, [file.path for file in files])
    for line in _table(rows):
        print(line)
    print(f"{given.output}, {page}: {len(files)} sounds")


def _with_progress(files: "Sequence[SoundFile]", folder: Path) -> "Iterator[Sound]":
    from tqdm import tqdm

    from diffaudio.evaluation.sound_files import read_sounds

    bar = {"desc": folder.name, "unit": "sound", "leave": False, "delay": 1e-3, "disable": not sys.stderr.isatty()}
    return iter(tqdm(read_sounds(files), total=len(files), **bar))


def _table(rows: "Sequence[Row]") -> Iterator[str]:
    """The rows side by side, one metric per line; then the metrics left out, and the warnings."""
    names = list(dict.fromkeys(metric.name for row in rows for metric in row.metrics))
    lines = [["", *(f"{row.kind} ({row.sounds} sounds)" for row in rows)]]
    lines += [[name, *(_cell(row, name) for row in rows)] for name in names]
    widths = [max(len(line[column]) for line in lines) for column in range(len(rows) + 1)]
    for line in lines:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
    for row in rows[:1]:
        yield from (f"left out: {name}: {reason}" for name, reason in row.left_out.items())
        yield from (f"note: {warning}" for warning in row.warnings)


def _cell(row: "Row", name: str) -> str:
    """Value and interval, and the number of sounds where it differs from the row's."""
    metric = next((metric for metric in row.metrics if metric.name == name), None)
    if metric is None:
        return "-"
    interval = "" if metric.low is None else f" [{metric.low:.3g}, {metric.high:.3g}]"
    return f"{metric.value:.4g}{interval}" + ("" if metric.n == row.sounds else f" n={metric.n}")
