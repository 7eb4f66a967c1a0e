"""A corpus as one HTML page, with its pictures and the media of the sample in files beside it.

index.html        the page, built from diffaudio/pages
inspection.json   the numbers
pictures/         charts, as SVG
clips/            of each row of the sample its sound and pictures as they are in the corpus, and a spectrogram; of
                  encoded rows an image of the latents
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image

from diffaudio import pages
from diffaudio.corpus.inspect import plots as draw
from diffaudio.corpus.inspect.summary import (
    QUANTILE_NAMES,
    Inspection,
    format_bytes,
    format_duration,
    format_number,
    quantile_table,
)
from diffaudio.media.audio import decode_flac
from diffaudio.media.spectrogram_plot import spectrogram_image
from diffaudio.pages.charts import write_svg

__all__ = ["write_media", "write_page"]

PICTURE_WIDTH = 300
LATENT_RANGE = 3.0  # the colours reach from minus this to this
CLASSES = {  # that rows of the sample can be filtered by: key, title, edges
    "loudness_lufs": ("loudness, LUFS", (-40.0, -30.0, -20.0)),
    "bandwidth_hz": ("99 % of power, Hz", (1000.0, 4000.0)),
    "duration_s": ("duration, s", (2.0, 5.0)),
    "std": ("standard deviation", (0.5, 2.0)),
}
COLUMNS = {
    "source": "source",
    "start_s": "from, s",
    "duration_s": "duration, s",
    "loudness_lufs": "loudness, LUFS",
    "peak_db": "peak, dB",
    "bandwidth_hz": "99 % of power below, Hz",
    "mean": "mean",
    "std": "standard deviation",
    "largest": "largest",
    "pictures": "pictures",
    "copy": "copy",
    "caption": "caption",
    "reason": "rejected as",
    "id": "id",
}
TEXTS = {"source", "caption", "reason", "id"}


def write_media(folder: Path, index: int, row: Mapping[str, Any], kind: str) -> None:
    """Write the files of row `index` of the sample below clips/; `kind` is "clips" or "latents"."""
    stem = folder / "clips" / f"{index:05d}"
    stem.parent.mkdir(exist_ok=True)
    if kind == "latents":
        channels = row["latents"].reshape(-1, row["num_latent_frames"])
        _latent_image(channels).save(stem.with_suffix(".png"))
        return
    stem.with_suffix(".flac").write_bytes(row["audio"])
    spectrogram_image(*decode_flac(row["audio"]), width=PICTURE_WIDTH).save(stem.with_suffix(".png"))
    for place, frame in enumerate(row["frames"]):
        stem.with_name(f"{stem.name}-{place}.jpg").write_bytes(frame["image"])


def write_page(folder: Path, inspection: Inspection, times_s: list[list[float]]) -> None:
    """Write index.html and pictures/; `write_media` has written the media before.

    Args:
        times_s: times of the pictures of each row of the sample.
    """
    corpus, totals = inspection.corpus, inspection.totals
    (folder / "pictures").mkdir()
    kind = {"clips": "clips", "latents": "latents and embeddings"}[corpus.kind]
    rows = zip(inspection.sample, times_s, strict=True)
    sounds = [_sound(index, row, times, corpus.kind) for index, (row, times) in enumerate(rows)]
    axes = _axes(inspection, sounds)
    lines = sum(drops.lines for drops in totals.dropped.values())
    table = quantile_table(inspection)
    data = {
        "title": f"Corpus {corpus.folder.resolve().name}",
        "notice": _notice(inspection),
        "tiles": _tiles(inspection, lines),
        "facts": {"holds": kind, "parts": len(corpus.parts), "format version": corpus.manifest["version"]},
        "numbers": {
            "head": ["", *QUANTILE_NAMES],
            "rows": [[name, *map(format_number, row)] for name, row in table.items()],
        },
        "numbers_note": _sample_note(inspection),
        "pictures": _write_pictures(folder, inspection),
        "reasons": [
            {"reason": reason, "lines": drops.lines, "part": 100 * drops.lines / lines, "seconds": drops.seconds}
            for reason, drops in totals.dropped.items()
        ],
        "examples": [example for drops in totals.dropped.values() for example in drops.examples],
        "dropped_note": _dropped_note(inspection, lines),
        "axes": axes,
        "columns": [
            {"name": name, "title": title, "text": name in TEXTS, "exact": name in ("pictures", "copy")}
            for name, title in COLUMNS.items()
            if any(sound.get(name) is not None for sound in sounds)
        ],
        "clips_note": f"{len(sounds)} of {totals.rows + totals.rejected.total():,}, drawn with seed {inspection.seed}.",
        "sounds": sounds,
        "details": _details(inspection),
    }
    pages.write_page(folder / "index.html", "corpus", data)


def _sound(index: int, row: Mapping[str, Any], times_s: list[float], kind: str) -> dict[str, Any]:
    """A row of the sample for the page: the columns of the table, and the addresses of its files."""
    stem = f"clips/{index:05d}"
    known = {name: row.get(name) for name in COLUMNS}
    sound = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in known.items()}
    summary = [f"{format_number(row['start_s'])} to {format_number(row['start_s'] + row['duration_s'])} s"]
    for name, unit in (("loudness_lufs", "LUFS"), ("std", "standard deviation"), ("largest", "largest")):
        if sound[name] is not None:
            summary.append(f"{sound[name]:.1f} {unit}")
    sound |= {"summary": ", ".join(summary), "picture": f"{stem}.png", "title": f"{row['source']}, {summary[0]}"}
    sound["frames"] = [[f"{stem}-{place}.jpg", time_s] for place, time_s in enumerate(times_s)]
    return sound | {"address": f"{stem}.flac" if kind == "clips" else None}


def _axes(inspection: Inspection, sounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Classes to filter by; adds to each sound the classes it is in."""
    axes = []
    for name, (title, edges) in CLASSES.items():
        if all(sound[name] is None for sound in sounds):
            continue
        limits = [f"{edge:g}" for edge in edges]
        names = [f"below {limits[0]}", *(f"{a} to {b}" for a, b in pairwise(limits))]
        names.append(f"above {limits[-1]}")
        for sound in sounds:
            value = sound[name]
            sound[f"class_{name}"] = "none" if value is None else names[int(np.searchsorted(edges, value, "right"))]
        present = {sound[f"class_{name}"] for sound in sounds}
        axes.append(
            {"name": f"class_{name}", "title": title, "values": [each for each in [*names, "none"] if each in present]}
        )
    if inspection.totals.rejected:
        for sound in sounds:
            sound["class_reason"] = sound["reason"] or "not rejected"
        axes.append(
            {"name": "class_reason", "title": "rejected as", "values": sorted({s["class_reason"] for s in sounds})}
        )
    return axes


def _notice(inspection: Inspection) -> str:
    corpus = inspection.corpus
    parts = [] if corpus.finished else [f"Not finished: this is the state so far; `{corpus.made_by}` continues it."]
    return " ".join([*parts, *(f"{warning[0].upper()}{warning[1:]}." for warning in inspection.warnings)])


def _tiles(inspection: Inspection, lines: int) -> list[list[str]]:
    totals = inspection.totals
    tiles = [
        [inspection.unit, f"{totals.rows:,}"],
        ["of sound", format_duration(totals.durations.total)],
        ["sources", f"{totals.sources:,}"],
        ["on disk", format_bytes(totals.bytes_of.total())],
    ]
    if inspection.corpus.kind == "clips":
        tiles.append(["dropped", f"{lines:,}"])
    if totals.rejected:
        tiles.append(["rejected, but kept", f"{totals.rejected.total():,}"])
    if any(totals.copies):
        tiles.append(["augmented copies", f"{totals.rows - totals.copies[0]:,}"])
    if totals.captions:
        tiles.append(["with a caption", f"{totals.captions:,}"])
    return tiles


def _sample_note(inspection: Inspection) -> str:
    loudness = " Loudness after ITU-R BS.1770-4." if inspection.corpus.kind == "clips" else ""
    return (
        f"* of {len(inspection.usable)} {inspection.unit} drawn with seed {inspection.seed}; the rest of all "
        f"{inspection.totals.rows:,}.{loudness}"
    )


def _dropped_note(inspection: Inspection, lines: int) -> str:
    if inspection.corpus.kind == "latents":
        return "What was left out stands with the corpus of clips that this one was encoded from."
    if not lines:
        return "Nothing was dropped."
    kept = inspection.totals.rejected.total()
    still = f"; {kept:,} of them are still in the corpus, with the reason" if kept else ""
    shown = sum(len(drops.examples) for drops in inspection.totals.dropped.values())
    return f"{lines:,} clips or files{still}. Below, {shown} as examples; all are in dropped.csv."


def _write_pictures(folder: Path, inspection: Inspection) -> list[dict[str, str]]:
    """Draw the charts; returns their files and alternative texts."""
    totals, sample, unit = inspection.totals, inspection.usable, inspection.unit
    drawn = {}
    if totals.rows:
        drawn["durations"] = draw.counted(totals.durations, title="Duration", label="s", of=unit)
    if sample and inspection.corpus.kind == "clips":
        drawn["loudness"] = draw.histogram([row["loudness_lufs"] for row in sample], title="Loudness *", label="LUFS")
        levels = np.array([row["third_octaves_db"] for row in sample])
        drawn["spectrum"] = draw.spectrum(inspection.third_octaves_hz, levels)
        bandwidths = [row["bandwidth_hz"] / 1000 for row in sample]
        drawn["bandwidth"] = draw.histogram(bandwidths, title="99 % of the power below *", label="kHz")
    if sample and inspection.channels is not None:
        drawn["channels"] = draw.channels(inspection.channels.mean, inspection.channels.std)
        stds = [row["std"] for row in sample]
        drawn["stds"] = draw.histogram(stds, title="Standard deviation of a row *", label="standard deviation")
    if totals.dropped:
        lines = {reason: drops.lines for reason, drops in sorted(totals.dropped.items(), key=lambda x: -x[1].lines)}
        drawn["dropped"] = draw.bars(lines, title="Dropped", label="clips or files")
    for name, figure in drawn.items():
        write_svg(folder / "pictures" / f"{name}.svg", figure)
    return [{"file": f"pictures/{name}.svg", "alt": f"chart of {name.replace('_', ' ')}"} for name in drawn]


def _details(inspection: Inspection) -> dict[str, list[list[str]]]:
    """Small tables: settings, or the models that encoded the latents; bytes by column."""
    manifest, bytes_of = inspection.corpus.manifest, inspection.totals.bytes_of
    details = {
        title: [[name, "none" if value is None else str(value)] for name, value in manifest[title].items()]
        for title in ("settings", "autoencoder", "clip")
        if manifest.get(title)
    }
    total = max(1, bytes_of.total())
    details["bytes"] = [
        [name or "all else", f"{format_bytes(size)}, {100 * size / total:.1f} %"]
        for name, size in bytes_of.most_common()
    ]
    if inspection.embeddings:
        details["embeddings *"] = [
            [name.replace("_", " "), f"{value:.3f}"] for name, value in inspection.embeddings.items()
        ]
    return details


def _latent_image(latents: np.ndarray) -> Image.Image:
    """[channels, frames] as colours: blue below 0, red above; a pixel each, channel 0 at the top."""
    scaled = np.clip(latents / (2 * LATENT_RANGE) + 0.5, 0, 1)
    return Image.fromarray((colormaps["RdBu_r"](scaled)[..., :3] * 255).round().astype(np.uint8))
