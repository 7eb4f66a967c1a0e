"""One media file -> clips: sound with a few pictures, checked.

    source  the file's name in the corpus, `Media.name`
    clip    at most `clip_s` seconds of it, from `start_s` on, with `frames_per_clip` pictures

Sound and pictures have to be there both: a clip ends where the sound does.
"""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from diffaudio.corpus import filters
from diffaudio.corpus.filters import FilterSettings
from diffaudio.corpus.sources import Media, Segment
from diffaudio.sound import encode_flac, mix_channels, resample
from diffaudio.video import MediaError, probe, read_frames, read_sound

__all__ = ["PrepareSettings", "cut_clips"]

JPEG_QUALITY = 90


@dataclass(frozen=True)
class PrepareSettings(FilterSettings):
    """How media become clips, and which are left out.

    Attributes:
        clip_s: longest clip; longer files are cut into several.
        hop_s: from the beginning of one clip to the next; None is `clip_s`, without gap or overlap.
        min_clip_s: shorter files are dropped, and shorter ends of longer files left out.
        sample_rate: of the clips, in Hz.
        channels: 1 or 2.
        frames_per_clip: pictures taken of each clip, evenly over its time.
        frame_size: longest side of a picture at most, in pixels.
        sources_per_part: media files that go into one Parquet file.
        keep_dropped: whether clips that a filter condemns stay in the corpus, with the reason.
    """

    clip_s: float = 10.0
    hop_s: float | None = None
    min_clip_s: float = 0.8
    sample_rate: int = 24000
    channels: int = 1
    frames_per_clip: int = 4
    frame_size: int = 224
    sources_per_part: int = 64
    keep_dropped: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("clip_s", "min_clip_s", "sample_rate", "frames_per_clip", "frame_size", "sources_per_part"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.hop_s is not None and self.hop_s <= 0:
            raise ValueError(f"hop_s is {self.hop_s}; it must be above 0, or None for clip_s")
        if self.min_clip_s > self.clip_s:
            raise ValueError(f"min_clip_s is {self.min_clip_s}, above clip_s, which is {self.clip_s}")
        if self.channels not in (1, 2):
            raise ValueError(f"channels is {self.channels}; choose 1 (mono) or 2 (stereo)")
        if self.min_motion > 0 and self.frames_per_clip == 1:
            raise ValueError(f"min_motion is {self.min_motion}, which compares pictures, but frames_per_clip is 1")


class _Dropped(Exception):
    def __init__(self, reason: str, detail: str, duration_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.detail, self.duration_s = reason, detail, duration_s


def cut_clips(media: Media, settings: PrepareSettings, dropped: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Cut one media file into rows of `store.CLIP_SCHEMA`.

    Nothing that is wrong with the file raises: what is left out is added to `dropped`, with the columns of
    `store.DROPPED_COLUMNS`. Reasons are unreadable, too_short, and those of `filters`.
    """
    start_s = media.segments[0].start_s
    try:
        total_s = _checked_duration(media, settings)
        for segment in media.segments:
            start_s, index = segment.start_s, 0
            while (row := _window(media.path, segment, start_s, total_s, settings)) is not None:
                if isinstance(row, _Dropped):
                    dropped.append(_dropped_row(media.name, start_s, row))
                else:
                    identity = hashlib.blake2b(f"{media.name}\n{start_s:.6f}".encode(), digest_size=8).hexdigest()
                    head = {"id": identity, "source": media.name, "start_s": start_s, "caption": segment.caption}
                    yield head | row | {"fingerprint": None, "reason": None}
                index += 1
                start_s = segment.start_s + index * (settings.hop_s or settings.clip_s)
    except _Dropped as reason:
        dropped.append(_dropped_row(media.name, start_s, reason))
    except Exception as error:  # decoders fail in ways that nobody lists, and one file must not end the run
        detail = str(error).removeprefix(f"{media.path}: ") or type(error).__name__
        dropped.append(_dropped_row(media.name, start_s, _Dropped("unreadable", detail)))


def _dropped_row(source: str, start_s: float, reason: _Dropped) -> dict[str, Any]:
    return {
        "source": source,
        "start_s": start_s,
        "duration_s": reason.duration_s,
        "reason": reason.reason,
        "detail": reason.detail,
    }


def _checked_duration(media: Media, settings: PrepareSettings) -> float | None:
    info = probe(media.path)
    verdict = filters.judge_file(info, settings)
    if verdict:
        raise _Dropped(*verdict, info.duration_s)
    return info.duration_s


def _window(
    path: str, segment: Segment, start_s: float, total_s: float | None, settings: PrepareSettings
) -> dict[str, Any] | _Dropped | None:
    """The clip that begins at `start_s`, why there is none, or None where the segment has ended."""
    ends_s = min((end_s for end_s in (segment.end_s, total_s) if end_s is not None), default=None)
    wanted_s = settings.clip_s if ends_s is None else min(settings.clip_s, ends_s - start_s)
    is_first = start_s == segment.start_s
    if not is_first and wanted_s < settings.min_clip_s:
        return None
    waveform, rate = read_sound(path, start_s=start_s, duration_s=wanted_s)
    duration_s = waveform.shape[-1] / rate
    if duration_s < settings.min_clip_s:
        if not is_first:
            return None
        detail = f"{duration_s:.2f} s of sound, below {settings.min_clip_s:g} s"
        raise _Dropped("too_short", detail, duration_s)
    verdict = filters.judge_sound(waveform, rate, settings)
    return _Dropped(*verdict, duration_s) if verdict else _clip(path, waveform, rate, start_s, settings)


def _clip(
    path: str, waveform: np.ndarray, rate: int, start_s: float, settings: PrepareSettings
) -> dict[str, Any] | _Dropped:
    """Take the pictures; scale sound that reaches beyond full scale instead of cutting off its peaks."""
    duration_s = waveform.shape[-1] / rate
    count = settings.frames_per_clip
    times_s = [start_s + duration_s * (index + 0.5) / count for index in range(count)]
    try:
        pictures = read_frames(path, times_s, max_side=settings.frame_size)
    except MediaError as error:
        return _Dropped("damaged", str(error).removeprefix(f"{path}: "), duration_s)
    if not pictures:
        return _Dropped("no_picture", "the picture ends before this clip", duration_s)
    verdict = filters.judge_pictures([picture for _, picture in pictures], settings)
    if verdict:
        return _Dropped(*verdict, duration_s)
    seen = [(t, p) for t, p in pictures if not filters.is_black(p, settings.min_brightness)]
    waveform = resample(mix_channels(waveform, settings.channels), rate, settings.sample_rate)
    waveform = waveform / max(1.0, float(np.abs(waveform).max()))
    return {
        "duration_s": waveform.shape[-1] / settings.sample_rate,
        "sample_rate": settings.sample_rate,
        "audio": encode_flac(waveform, settings.sample_rate),
        "frames": [{"time_s": time_s, "image": _jpeg(picture)} for time_s, picture in seen],
    }


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
