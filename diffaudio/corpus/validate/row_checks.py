"""Checks of one row of a corpus. Each check yields a sentence for each problem.

settings   the manifest's `PrepareSettings`; a check whose setting an older corpus lacks is skipped
"""

import io
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import soundfile
from PIL import Image, UnidentifiedImageError

from diffaudio.corpus.prepare import fingerprints as duplicates
from diffaudio.corpus.prepare import quality_filters

__all__ = ["clip_problems", "latent_problems"]

Row = Mapping[str, Any]

SILENCE_MARGIN_DB = 10.0  # the filter measured the clip before mixing and resampling, which can lower its level
STD_RANGE = (0.01, 20.0)  # of one clip's latents, whose standard deviation over the corpus is 1
LARGEST_LATENT = 100.0
SPARE_FRAMES = 2  # an autoencoder may give so many frames more or fewer than the sound has
NORM_TOLERANCE = 0.01  # of an embedding in half precision


def clip_problems(row: Row, settings: Mapping[str, Any], *, decode: bool = True) -> Iterator[str]:
    """Problems of a row of `store.CLIP_SCHEMA`.

    Args:
        decode: whether sound and pictures are decoded; without, `row` may lack them.
    """
    yield from _identity_problems(row)
    duration_s, rate = row["duration_s"], row["sample_rate"]
    max_duration_s = settings.get("clip_s", math.inf)
    if _is_number(duration_s) and duration_s > max_duration_s + 1e-3:
        yield f"duration_s is {duration_s:g}, above clip_s, which is {max_duration_s:g}"
    if rate != settings.get("sample_rate", rate):
        yield f"sample_rate is {rate}, the manifest says {settings['sample_rate']}"
    yield from _reason_problems(row, settings)
    yield from _fingerprint_problems(row, settings)
    yield from _time_problems(row, settings)
    if decode:
        yield from _sound_problems(row, settings)
        for place, frame in enumerate(row["frames"] or [], 1):
            yield from _picture_problems(frame["image"], place, settings.get("frame_size", math.inf))


def latent_problems(row: Row, latents: np.ndarray, embeddings: list[np.ndarray], manifest: Row) -> Iterator[str]:
    """Problems of a row of `latent_shards.LATENT_SCHEMA`.

    Args:
        row: its columns except latents and embeddings.
        latents: [values]
        embeddings: [dim] each.
    """
    yield from _identity_problems(row)
    if (row.get("copy") or 0) < 0:
        yield f"copy is {row['copy']}, below 0"
    channels, frames = manifest["autoencoder"]["latent_channels"], row["num_latent_frames"]
    if not frames or frames < 1:
        yield f"num_latent_frames is {frames}"
    elif len(latents) != channels * frames:
        yield f"holds {len(latents)} values of latents, {channels} channels of {frames} frames are {channels * frames}"
    elif abs(frames - row["duration_s"] * manifest["autoencoder"]["latent_rate"]) > SPARE_FRAMES:
        yield f"has {frames} frames of latents, duration_s is {row['duration_s']:g}"
    yield from _scale_problems(latents)
    if not embeddings:
        yield "has no embedding"
    elif len(embeddings) != row.get("num_pictures", len(embeddings)):
        yield f"has {len(embeddings)} embeddings, num_pictures is {row['num_pictures']}"
    for place, embedding in enumerate(embeddings, 1):
        dim, norm = manifest["clip"]["embedding_dim"], float(np.linalg.norm(embedding.astype(np.float32)))
        if len(embedding) != dim:
            yield f"embedding {place} has {len(embedding)} values, the manifest says {dim}"
        elif not math.isfinite(norm):
            yield f"embedding {place} is not finite"
        elif abs(norm - 1) > NORM_TOLERANCE:
            yield f"embedding {place} has norm {norm:.3g}, not 1"


def _identity_problems(row: Row) -> Iterator[str]:
    for name in ("id", "source"):
        if not row[name]:
            yield f"has no {name}"
    if not _is_number(row["start_s"]) or row["start_s"] < 0:
        yield f"start_s is {row['start_s']}"
    if not _is_number(row["duration_s"]) or row["duration_s"] <= 0:
        yield f"duration_s is {row['duration_s']}"
    if row.get("caption") is not None and not row["caption"].strip():
        yield "has an empty caption"


def _reason_problems(row: Row, settings: Mapping[str, Any]) -> Iterator[str]:
    reason = row.get("reason")
    if reason is not None and not settings.get("keep_dropped"):
        yield f"was rejected as '{reason}', but the corpus was prepared without --keep-dropped"


def _fingerprint_problems(row: Row, settings: Mapping[str, Any]) -> Iterator[str]:
    fingerprint = row.get("fingerprint")
    if fingerprint is not None:
        try:
            duplicates.find_duplicates([fingerprint], [row["source"]])
        except ValueError:
            yield f"the fingerprint of {len(fingerprint)} bytes is damaged or of another version"
    elif settings.get("max_duplicate_distance") is not None and row.get("reason") is None:
        yield "has no fingerprint, by which duplicates are found"


def _time_problems(row: Row, settings: Mapping[str, Any]) -> Iterator[str]:
    """A picture that is still shown may have appeared before the clip; none may appear after its end."""
    times_s = [frame["time_s"] for frame in row["frames"] or []]
    if not times_s:
        yield "has no picture"
    elif not all(_is_number(time_s) for time_s in times_s):
        yield "a picture's time is no number"
    elif any(later <= earlier for earlier, later in pairwise(times_s)):
        yield f"the pictures' times do not ascend: {', '.join(f'{time_s:g}' for time_s in times_s)}"
    elif _is_number(row["start_s"]) and _is_number(row["duration_s"]):
        end_s = row["start_s"] + row["duration_s"]
        if times_s[0] < 0 or times_s[-1] > end_s:
            late = times_s[0] if times_s[0] < 0 else times_s[-1]
            yield f"a picture's time, {late:g} s, is outside the clip, which ends at {end_s:g} s"
    max_pictures = settings.get("frames_per_clip", math.inf)
    if len(times_s) > max_pictures:
        yield f"has {len(times_s)} pictures, above frames_per_clip, which is {max_pictures}"


def _sound_problems(row: Row, settings: Mapping[str, Any]) -> Iterator[str]:
    try:
        samples, rate = soundfile.read(io.BytesIO(row["audio"] or b""), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        yield f"the sound does not decode ({error.error_string.rstrip('.')})"
        return
    if rate != row["sample_rate"]:
        yield f"the sound has {rate} Hz, sample_rate is {row['sample_rate']}"
    channels = settings.get("channels", samples.shape[1])
    if samples.shape[1] != channels:
        yield f"the sound has {samples.shape[1]} channels, the manifest says {channels}"
    if _is_number(row["duration_s"]) and abs(len(samples) - row["duration_s"] * rate) > 1:
        yield f"the sound lasts {len(samples) / rate:g} s, duration_s is {row['duration_s']:g}"
    if len(samples) == 0:
        yield "the sound is empty"
    elif row.get("reason") is None:
        yield from _silence_problems(samples.T, rate, settings.get("min_level_db"))


def _silence_problems(x: np.ndarray, sample_rate: int, min_level_db: float | None) -> Iterator[str]:
    """Of samples [channels, samples]."""
    if not x.any():
        yield "the sound is digital silence, and the clip has no reason"
    elif min_level_db is not None:
        level_db = quality_filters.loudest_level_db(x, sample_rate)
        if level_db < min_level_db - SILENCE_MARGIN_DB:
            yield (
                f"the sound is silent, {level_db:.1f} dB at its loudest with min_level_db {min_level_db:g}, "
                "and the clip has no reason"
            )


def _picture_problems(image: bytes | None, place: int, largest: float) -> Iterator[str]:
    try:
        with Image.open(io.BytesIO(image or b"")) as picture:
            picture.load()
            size = picture.size
    except UnidentifiedImageError:
        yield f"picture {place} does not decode (format not recognised)"
        return
    except Exception as error:  # Pillow's decoders fail in ways that nobody lists
        yield f"picture {place} does not decode ({' '.join(str(error).split())})"
        return
    if max(size) > largest:
        yield f"picture {place} is {size[0]} x {size[1]}, frame_size is {largest}"


def _scale_problems(latents: np.ndarray) -> Iterator[str]:
    values = latents.astype(np.float32)
    if not np.isfinite(values).all():
        yield f"{np.count_nonzero(~np.isfinite(values))} values of the latents are not finite"
    elif len(values):
        std, largest = float(values.std()), float(np.abs(values).max())
        if not STD_RANGE[0] <= std <= STD_RANGE[1] or largest > LARGEST_LATENT:
            yield (f"the latents have a standard deviation of {std:.3g} and reach {largest:.3g}; that of a corpus is 1")


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)
