"""A corpus as one HTML page, with its pictures and the media of the sample in files beside it.

index.html        what diffaudio/pages makes of it
inspection.json   the numbers
pictures/         SVG
clips/            of each row of the sample its sound and pictures as the corpus holds them, and a spectrogram; of
                  encoded ones a picture of the latents
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
from diffaudio.corpus.inspect.summary import HEAD, Inspection, numbers, told_bytes, told_number, told_time
from diffaudio.media.audio import decode_flac
from diffaudio.media.spectrogram_plot import spectrogram_image
from diffaudio.pages.charts import write_svg

__all__ = ["write_media", "write_page"]

PICTURE_WIDTH = 300
LATENT_RANGE = 3.0  # deviations that the colours reach
CLASSES = {  # of rows of the sample, to filter by: entry, title, edges
    "loudness_lufs": ("loudness, LUFS", (-40.0, -30.0, -20.0)),
    "bandwidth_hz": ("99 % of power, Hz", (1000.0, 4000.0)),
    "duration_s": ("duration, s", (2.0, 5.0)),
    "deviation": ("deviation", (0.5, 2.0)),
}
COLUMNS = {
    "source": "source",
    "start_s": "from, s",
    "duration_s": "duration, s",
    "loudness_lufs": "loudness, LUFS",
    "peak_db": "peak, dB",
    "bandwidth_hz": "99 % of power below, Hz",
    "mean": "mean",
    "deviation": "deviation",
    "largest": "largest",
    "pictures": "pictures",
    "copy": "copy",
    "caption": "caption",
    "reason": "marked",
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
    """Write index.html and pictures/; the media are there already.

    Args:
        times_s: of the pictures of each row of the sample.
    """
    corpus, totals = inspection.corpus, inspection.totals
    (folder / "pictures").mkdir()
    kind = {"clips": "clips", "latents": "latents and embeddings"}[corpus.kind]
    rows = zip(inspection.sample, times_s, strict=True)
    sounds = [_sound(index, row, times, corpus.kind) for index, (row, times) in enumerate(rows)]
    axes = _axes(inspection, sounds)
    lines = sum(left.lines for left in totals.left_out.values())
    told = numbers(inspection)
    data = {
        "title": f"Corpus {corpus.folder.resolve().name}",
        "notice": _notice(inspection),
        "tiles": _tiles(inspection, lines),
        "facts": {"holds": kind, "parts": len(corpus.parts), "format version": corpus.manifest["version"]},
        "numbers": {"head": ["", *HEAD], "rows": [[name, *map(told_number, row)] for name, row in told.items()]},
        "numbers_note": _sample_note(inspection),
        "pictures": _write_pictures(folder, inspection),
        "reasons": [
            {"reason": reason, "lines": left.lines, "part": 100 * left.lines / lines, "seconds": left.seconds}
            for reason, left in totals.left_out.items()
        ],
        "examples": [example for left in totals.left_out.values() for example in left.examples],
        "left_out_note": _left_out_note(inspection, lines),
        "axes": axes,
        "columns": [
            {"name": name, "title": title, "text": name in TEXTS, "exact": name in ("pictures", "copy")}
            for name, title in COLUMNS.items()
            if any(sound.get(name) is not None for sound in sounds)
        ],
        "clips_note": f"{len(sounds)} of {totals.rows + totals.marked.total():,}, drawn with seed {inspection.seed}.",
        "sounds": sounds,
        "made": _made(inspection),
    }
    pages.write_page(folder / "index.html", "corpus", data)


def _sound(index: int, row: Mapping[str, Any], times_s: list[float], kind: str) -> dict[str, Any]:
    """A row of the sample as the page wants it: what the table shows, and where its files are."""
    stem = f"clips/{index:05d}"
    known = {name: row.get(name) for name in COLUMNS}
    sound = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in known.items()}
    told = [f"{told_number(row['start_s'])} to {told_number(row['start_s'] + row['duration_s'])} s"]
    for name, unit in (("loudness_lufs", "LUFS"), ("deviation", "deviation"), ("largest", "largest")):
        if sound[name] is not None:
            told.append(f"{sound[name]:.1f} {unit}")
    sound |= {"told": ", ".join(told), "picture": f"{stem}.png", "title": f"{row['source']}, {told[0]}"}
    sound["frames"] = [[f"{stem}-{place}.jpg", time_s] for place, time_s in enumerate(times_s)]
    return sound | {"address": f"{stem}.flac" if kind == "clips" else None}


def _axes(inspection: Inspection, sounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Classes to filter by; adds to each sound which of them it is in."""
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
        there = {sound[f"class_{name}"] for sound in sounds}
        axes.append(
            {"name": f"class_{name}", "title": title, "values": [each for each in [*names, "none"] if each in there]}
        )
    if inspection.totals.marked:
        for sound in sounds:
            sound["class_reason"] = sound["reason"] or "kept"
        axes.append({"name": "class_reason", "title": "marked", "values": sorted({s["class_reason"] for s in sounds})})
    return axes


def _notice(inspection: Inspection) -> str:
    corpus = inspection.corpus
    parts = [] if corpus.finished else [f"Not finished: what is there so far; `{corpus.made_by}` goes on with it."]
    return " ".join([*parts, *(f"{warning[0].upper()}{warning[1:]}." for warning in inspection.warnings)])


def _tiles(inspection: Inspection, lines: int) -> list[list[str]]:
    totals = inspection.totals
    tiles = [
        [inspection.unit, f"{totals.rows:,}"],
        ["of sound", told_time(totals.durations.total)],
        ["sources", f"{totals.sources:,}"],
        ["on disk", told_bytes(totals.bytes_of.total())],
    ]
    if inspection.corpus.kind == "clips":
        tiles.append(["left out", f"{lines:,}"])
    if totals.marked:
        tiles.append(["marked", f"{totals.marked.total():,}"])
    if any(totals.copies):
        tiles.append(["augmented copies", f"{totals.rows - totals.copies[0]:,}"])
    if totals.captions:
        tiles.append(["with a caption", f"{totals.captions:,}"])
    return tiles


def _sample_note(inspection: Inspection) -> str:
    loudness = " Loudness after ITU-R BS.1770-4." if inspection.corpus.kind == "clips" else ""
    return (
        f"* of {len(inspection.kept)} {inspection.unit} drawn with seed {inspection.seed}; the rest of all "
        f"{inspection.totals.rows:,}.{loudness}"
    )


def _left_out_note(inspection: Inspection, lines: int) -> str:
    if inspection.corpus.kind == "latents":
        return "What was left out stands with the corpus of clips that this one was encoded from."
    if not lines:
        return "Nothing was left out."
    kept = inspection.totals.marked.total()
    still = f"; {kept:,} of them are in the corpus still, marked" if kept else ""
    shown = sum(len(left.examples) for left in inspection.totals.left_out.values())
    return f"{lines:,} clips or files{still}. Below, {shown} as examples; all are in dropped.csv."


def _write_pictures(folder: Path, inspection: Inspection) -> list[dict[str, str]]:
    """Draw what there is to draw; returns files and what they show."""
    totals, sample, unit = inspection.totals, inspection.kept, inspection.unit
    drawn = {}
    if totals.rows:
        drawn["durations"] = draw.counted(totals.durations, title="Duration", label="s", of=unit)
    if sample and inspection.corpus.kind == "clips":
        drawn["loudness"] = draw.histogram([row["loudness_lufs"] for row in sample], title="Loudness *", label="LUFS")
        levels = np.array([row["thirds_db"] for row in sample])
        drawn["spectrum"] = draw.spectrum(inspection.thirds_hz, levels)
        bandwidths = [row["bandwidth_hz"] / 1000 for row in sample]
        drawn["bandwidth"] = draw.histogram(bandwidths, title="99 % of the power below *", label="kHz")
    if sample and inspection.channels is not None:
        drawn["channels"] = draw.channels(inspection.channels.mean, inspection.channels.deviation)
        deviations = [row["deviation"] for row in sample]
        drawn["deviations"] = draw.histogram(deviations, title="Deviation of a row *", label="deviation")
    if totals.left_out:
        lines = {reason: left.lines for reason, left in sorted(totals.left_out.items(), key=lambda x: -x[1].lines)}
        drawn["left_out"] = draw.bars(lines, title="Left out", label="clips or files")
    for name, figure in drawn.items():
        write_svg(folder / "pictures" / f"{name}.svg", figure)
    return [{"file": f"pictures/{name}.svg", "told": f"{name.replace('_', ' ')}, drawn"} for name in drawn]


def _made(inspection: Inspection) -> dict[str, list[list[str]]]:
    """Small tables: settings, or the models of latents; bytes by column."""
    manifest, bytes_of = inspection.corpus.manifest, inspection.totals.bytes_of
    made = {
        title: [[name, "none" if value is None else str(value)] for name, value in manifest[title].items()]
        for title in ("settings", "autoencoder", "clip")
        if manifest.get(title)
    }
    total = max(1, bytes_of.total())
    made["bytes"] = [
        [name or "all else", f"{told_bytes(size)}, {100 * size / total:.1f} %"] for name, size in bytes_of.most_common()
    ]
    if inspection.embeddings:
        made["embeddings *"] = [
            [name.replace("_", " "), f"{value:.3f}"] for name, value in inspection.embeddings.items()
        ]
    return made


def _latent_image(latents: np.ndarray) -> Image.Image:
    """[channels, frames] as colours: blue below 0, red above; a pixel each, channel 0 at the top."""
    scaled = np.clip(latents / (2 * LATENT_RANGE) + 0.5, 0, 1)
    return Image.fromarray((colormaps["RdBu_r"](scaled)[..., :3] * 255).round().astype(np.uint8))
