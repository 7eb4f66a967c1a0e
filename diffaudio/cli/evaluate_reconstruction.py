"""`diffaudio evaluate reconstruction`: round trip of recordings through autoencoders, one row for each."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaudio.cli.options import check_exists, check_report_path, check_resamples
from diffaudio.config import Count, Seed, parse_command
from diffaudio.errors import UserError

if TYPE_CHECKING:
    from diffaudio.evaluation.report import Metric, Row
    from diffaudio.evaluation.sound_files import Sound, SoundFile

__all__ = ["run"]


@dataclass(kw_only=True)
class Options:
    """The options of `diffaudio evaluate reconstruction`.

    Attributes:
        folder: folder of recordings, sounds or videos, searched recursively.
        autoencoder: one or more folders or hub ids of diffaudio autoencoders or models, or of autoencoders in their
            libraries' formats, such as facebook/encodec_24khz (default: the bundled model's).
        labels: CSV with the columns file and label, for the recordings.
        backbone: one or more classifiers: yamnet or tagger (both bundled), or the folder of a tagger or PANNs Cnn14.
        output: .json file for the report.
        seed: random seed of all draws.
        resamples: number of resamples for each confidence interval, at least 20.
        device: auto, cpu, cuda, cuda:N (such as cuda:1) or mps.
    """

    folder: Path
    autoencoder: list[str] = field(default_factory=list)
    labels: Path | None = None
    backbone: list[str] = field(default_factory=lambda: ["yamnet"])
    output: Path = Path("reconstruction.json")
    seed: Seed = 0
    resamples: Count = 200
    device: str = "auto"


def run(arguments: list[str]) -> None:
    given = parse_command(
        Options,
        arguments,
        program="diffaudio evaluate reconstruction",
        description="Encode and decode recordings, and measure the result: whether a classifier still recognises it, "
        "and how far its spectrogram is from the original's.",
        epilog="Labels are read from NAME.json beside NAME.wav (entry label), or from --labels. Shares and distances "
        "come with 95 % intervals over the recordings; speed is the median of five runs on five seconds. The report "
        "holds the log-mel distance of every kind.",
        flags={"folder": ("folder",), "output": ("-o", "--output")},
    )
    check_exists(given.folder, given.labels)
    check_resamples(given.resamples)
    check_report_path(given.output)

    from torch import nn

    from diffaudio.checkpoint import bundled_model, load_coder
    from diffaudio.evaluation.reconstruction import recordings_row, round_trip_row
    from diffaudio.evaluation.report import write_report
    from diffaudio.evaluation.rows import load_embedder, make_report
    from diffaudio.evaluation.sound_files import find_sounds, read_texts
    from diffaudio.generation.batch import choose_device
    from diffaudio.models.autoencoders import size_on_disk

    texts = read_texts(given.labels) if given.labels else {}
    files = find_sounds(given.folder, texts)
    if texts and not any(file.path.stem in texts or file.name in texts for file in files):
        raise UserError(f"{given.labels}: names none of the sounds; its column file has to hold their file names")
    device = choose_device(given.device)
    models = given.autoencoder or [str(bundled_model() / "autoencoder")]
    autoencoders = [(model, load_coder(model)) for model in models]
    embedder = load_embedder(given.backbone, device=device)
    draws: dict[str, Any] = {"seed": given.seed, "resamples": given.resamples}
    embedded = embedder.embed(_with_progress(files, "recordings"))
    rows = [recordings_row(embedded, name=str(given.folder), **draws)]
    for model, autoencoder in autoencoders:
        nn.Module.to(autoencoder, device=device)
        sounds, size = _with_progress(files, model), size_on_disk(model)
        rows.append(round_trip_row(autoencoder, sounds, embedded, embedder, name=model, bytes_on_disk=size, **draws))
        nn.Module.to(autoencoder, device="cpu")
    labels = str(given.labels) if given.labels else None
    write_report(given.output, make_report(embedder, rows, **draws, reference=str(given.folder), labels=labels))
    for line in _table(rows, [backbone.name for backbone in embedder.backbones]):
        print(line)
    print(f"{given.output}: {len(files)} recordings")


def _with_progress(files: "Sequence[SoundFile]", what: str) -> "Iterator[Sound]":
    from tqdm import tqdm

    from diffaudio.evaluation.sound_files import read_sounds

    bar = {"desc": what, "unit": "sound", "leave": False, "delay": 1e-3, "disable": not sys.stderr.isatty()}
    return iter(tqdm(read_sounds(files), total=len(files), **bar))


def _table(rows: "Sequence[Row]", backbones: Sequence[str]) -> Iterator[str]:
    """One row for the recordings, and one for each autoencoder."""
    heads = [head for name in backbones for head in (f"right by {name}", "as the original")]
    lines = [["", *heads, "log-mel dB", "worst kind", "MR-STFT", "SI-SDR dB", *COSTS]]
    lines += [[row.name, *_cells(row, backbones)] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
    yield "encoding and decoding: times faster than real time"


# heading -> metric name, and its formatter
COSTS = {
    "encoding": ("encode_s_per_s", lambda value: f"{1 / max(value, 1e-9):.0f}x"),
    "decoding": ("decode_s_per_s", lambda value: f"{1 / max(value, 1e-9):.0f}x"),
    "sound": ("sample_rate_hz", lambda value: f"{value / 1000:g} kHz"),
    "channels": ("audio_channels", lambda value: f"{value:.0f}"),
    "latents": ("latent_channels", lambda value: f"{value:.0f}"),
    "rate": ("latent_rate_hz", lambda value: f"{value:.4g} Hz"),
    "values/s": ("latent_values_per_s", lambda value: f"{value:.0f}"),
    "on disk": ("megabytes_on_disk", lambda value: f"{value:.1f} MB"),
}


def _cells(row: "Row", backbones: Sequence[str]) -> Iterator[str]:
    from diffaudio.evaluation.reconstruction import worst_kind

    found = {metric.name: metric for metric in row.metrics}
    for name in backbones:
        yield _number(found.get(f"accuracy_{name}", found.get(f"recognised_at_5_{name}")))
        yield _number(found.get(f"agreement_{name}"))
    yield _number(found.get("log_mel_distance_db"))
    worst = worst_kind(row)
    yield "-" if worst is None else f"{worst[0]} {worst[1].value:.2f} (n={worst[1].n})"
    for name in ("multi_resolution_stft_distance", "si_sdr_db"):
        yield _number(found.get(name))
    for name, written in COSTS.values():
        yield written(found[name].value) if name in found else "-"


def _number(metric: "Metric | None") -> str:
    if metric is None:
        return "-"
    return f"{metric.value:.3g}" + ("" if metric.low is None else f" [{metric.low:.3g}, {metric.high:.3g}]")
