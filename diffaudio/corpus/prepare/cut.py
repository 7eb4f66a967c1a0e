"""One media file -> clips: sound with a few pictures, checked.

    source  the file's name in the corpus, `Media.name`
    clip    at most `clip_s` seconds of it, from `start_s` on, with `frames_per_clip` pictures

Sound and pictures have to be there both: a clip ends where the sound does. A file is read once, from front to back,
and no more of it is in memory than a few clips, however long it is and whatever its time stamps say.
"""

import contextlib
import hashlib
import io
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from diffaudio.corpus.prepare import filters
from diffaudio.corpus.prepare.filters import Verdict
from diffaudio.corpus.prepare.fingerprints import fingerprint
from diffaudio.corpus.prepare.fragments import CutReport
from diffaudio.corpus.prepare.segments import Plan, Stretch
from diffaudio.corpus.prepare.settings import PrepareSettings
from diffaudio.corpus.prepare.sources import Media
from diffaudio.media.audio_arrays import encode_flac, mix_channels, resample
from diffaudio.media.audio_track import AudioTrack
from diffaudio.media.container import PREROLL_S, SEEK_S, MediaError, OpenMedia, open_media
from diffaudio.media.video import read_frames
from diffaudio.media.video_track import Take, VideoTrack

__all__ = ["cut_clips"]

JPEG_QUALITY = 90
AHEAD_S = 1.0  # files are not quite in order of time: a clip is begun so long before its first packet
MAX_OPEN = 64  # clips begun and not finished, before pictures are fetched from where they are
TOLERANCE_S = 0.25  # between the length of a clip and what the header says, before its pictures are taken anew
PACKETS_PER_SIGN = 500  # of life


@dataclass
class _Clip:
    """A clip in the making; sound and pictures come in any order.

    Attributes:
        planned_s: how long it will be, as far as the header says.
        duration_s: of its sound, None until that is complete.
        awaited: pictures that have not come yet.
        pictures: that have, with their times.
        taken_anew: the pictures that came are not those wanted.
        row: what is there of the row.
    """

    stretch: Stretch
    planned_s: float
    duration_s: float | None = None
    verdict: Verdict | None = None
    awaited: int = 0
    pictures: list[tuple[float, Image.Image]] = field(default_factory=list)
    taken_anew: bool = False
    row: dict[str, Any] = field(default_factory=dict)

    def take(self, time_s: float, picture: Image.Image | None) -> None:
        self.awaited -= 1
        if picture is not None and (not self.pictures or self.pictures[-1][0] != time_s):
            self.pictures.append((time_s, picture))


def cut_clips(
    media: Media, settings: PrepareSettings, report: CutReport, alive: Callable[[], None] = lambda: None
) -> Iterator[dict[str, Any]]:
    """Cut one media file into rows of `store.CLIP_SCHEMA`.

    Nothing that is wrong with the file raises. Reasons to drop it are unreadable, too_short, out_of_memory, and those
    of `filters`.

    Args:
        media: a local file.
        report: filled while rows are taken.
        alive: called every now and then while the file is read.
    """

    def drop(verdict: Verdict, duration_s: float | None = None) -> None:
        report.drop(media.segments[0].start_s, duration_s, verdict)

    try:
        with open_media(media.path) as opened:
            verdict = filters.judge_file(opened.info, settings)
            if verdict:
                report.media_seconds = opened.info.duration_s or 0.0
                drop(verdict, opened.info.duration_s)
            else:
                yield from _Cutter(media, settings, report, opened).rows(alive)
    except MemoryError:
        drop(("out_of_memory", "more memory than a worker may have"))
    except Exception as error:  # decoders fail in ways that nobody lists, and one file must not end the run
        report.read_to = 0
        drop(("unreadable", str(error).removeprefix(f"{media.path}: ") or type(error).__name__))


class _Cutter:
    """An open file on its way from front to back."""

    def __init__(self, media: Media, settings: PrepareSettings, report: CutReport, opened: OpenMedia) -> None:
        self._media, self._settings, self._report, self._opened = media, settings, report, opened
        self._plan = Plan(media.segments, settings.clip_s, settings.hop_s or settings.clip_s, settings.min_clip_s)
        self._sound = AudioTrack(opened.begin_s)
        self._pictures = VideoTrack(opened.video, opened.begin_s, settings.frame_size, on_miss=self._miss)
        self._open: deque[_Clip] = deque()
        self._unheard: deque[_Clip] = deque()  # of these, those whose sound is not complete
        self._max_open = max(MAX_OPEN, 2 * math.ceil(settings.clip_s / (settings.hop_s or settings.clip_s)))
        self._seen_s = float("-inf")  # how far the pictures have been read
        self._undecoded: list[Any] = []  # packets of sound
        self._damaged = False
        self._sought_s = float("-inf")
        self._header_end_s = opened.info.audio_duration_s or opened.info.duration_s
        self._attend()

    def rows(self, alive: Callable[[], None]) -> Iterator[dict[str, Any]]:
        audio, video = self._opened.audio, self._opened.video
        sound_index = audio.index
        position = None
        for count, packet in enumerate(self._opened.packets(audio, video)):
            position = packet.pos or position
            if count % PACKETS_PER_SIGN == PACKETS_PER_SIGN - 1:
                alive()
                self._decode_sound()
            if packet.stream_index == sound_index and packet.size:  # most packets; the last of a stream is empty
                stamp = packet.pts
                if stamp is not None and self._first_stamp <= stamp < self._due_stamp:
                    self._undecoded.append(packet)
                    continue
            time_s = self._opened.time_s(packet)
            if packet.stream is audio:
                self._hear(packet, time_s)
            else:
                self._see(packet, time_s)
            if self._is_first_finished():
                yield from self._finished()
            if not self._open:
                if self._plan.next is None:
                    return
                self._seek(time_s)
        self._report.read_to = position or 0
        self._decode_sound()
        self._begin_clips(self._sound.end_s)
        self._pictures.finish()
        if self._sound.sample_rate is None and self._damaged:
            raise MediaError(f"{self._media.path}: no sound decodes")
        while self._unheard:
            self._complete_sound(self._unheard.popleft())
        yield from self._finished()
        for stretch in self._plan.not_begun():
            self._drop(_Clip(stretch, 0.0, 0.0), _too_short(0.0, self._settings))

    def _begin_clips(self, time_s: float) -> None:
        """Begin those that may need something from `time_s` on."""
        while (stretch := self._plan.next) and stretch.start_s <= time_s + AHEAD_S:
            if len(self._open) >= self._max_open:
                if self._open[0].duration_s is not None:  # do not wait for its pictures
                    self._take_anew(self._open[0])
                return
            self._plan.advance()
            planned_s = stretch.end_s - stretch.start_s
            if self._header_end_s is not None and self._header_end_s > stretch.start_s:
                planned_s = min(planned_s, self._header_end_s - stretch.start_s)
            clip = _Clip(stretch, planned_s)
            times_s = self._times(clip, planned_s)
            if times_s[0] < self._seen_s - AHEAD_S:
                clip.taken_anew = True
            else:
                clip.awaited = len(times_s)
                for wanted_s in times_s:
                    self._pictures.request(wanted_s, clip.take)
            self._open.append(clip)
            self._unheard.append(clip)
        self._attend()

    def _attend(self) -> None:
        """Say from when on sound is needed, and when something has to be done: packets before that only wait."""
        upcoming_s = self._plan.next.start_s if self._plan.next else float("inf")
        self._due_s = self._unheard[0].stretch.end_s if self._unheard else float("inf")
        self._needed_s = self._unheard[0].stretch.start_s if self._unheard else upcoming_s
        self._begin_s = upcoming_s - AHEAD_S
        time_base, begin_s = float(self._opened.audio.time_base), self._opened.begin_s
        self._first_stamp = (self._needed_s - PREROLL_S + begin_s) / time_base
        self._due_stamp = (min(self._due_s, self._begin_s) + begin_s) / time_base

    def _decode_sound(self) -> None:
        if self._sound.feed(self._undecoded):
            self._damaged = True
        self._undecoded.clear()

    def _hear(self, packet: Any, time_s: float | None) -> None:
        if time_s is not None:
            if time_s >= self._begin_s:
                self._decode_sound()
                self._pass_over_gap(time_s)
                self._begin_clips(time_s)
            if time_s < self._needed_s - PREROLL_S:
                return
        self._undecoded.append(packet)
        self._decode_sound()
        if self._sound.end_s >= self._due_s:
            while self._unheard and self._sound.end_s >= self._unheard[0].stretch.end_s:
                self._complete_sound(self._unheard.popleft())
            self._attend()
            self._sound.discard_before(self._needed_s)

    def _see(self, packet: Any, time_s: float | None) -> None:
        if time_s is not None:
            if time_s >= self._begin_s:
                self._begin_clips(time_s)
            self._seen_s = time_s
        self._pictures.feed(packet)

    def _pass_over_gap(self, time_s: float) -> None:
        """Where the sound goes on only at `time_s`, no clip lies before; a false time stamp must not make millions."""
        begin_s, next_stretch = self._sound.end_s, self._plan.next
        if time_s > begin_s + AHEAD_S and next_stretch and begin_s <= next_stretch.start_s:
            for start_s, end_s in self._plan.pass_over(time_s):
                detail = f"no sound from {start_s:.1f} s to {end_s:.1f} s"
                self._report.drop(start_s, end_s - start_s, ("silent", detail))

    def _seek(self, time_s: float | None) -> None:
        """Go on where the next clip begins, if that is far."""
        if time_s is None or self._plan.next is None:
            return
        target_s = self._plan.next.start_s - PREROLL_S
        if target_s > time_s + SEEK_S and target_s > self._sought_s:
            self._sought_s = target_s
            self._undecoded.clear()
            if self._opened.seek(target_s, self._opened.video):
                self._sound.reset()
                self._pictures.reset()
                self._seen_s = float("-inf")

    def _complete_sound(self, clip: _Clip) -> None:
        stretch, settings = clip.stretch, self._settings
        x = self._sound.cut(stretch.start_s, self._end_s(stretch))
        mixed = self._sound.cut(stretch.start_s, self._end_s(stretch), channels=settings.channels)
        rate = self._sound.sample_rate or 1
        clip.duration_s = duration_s = x.shape[1] / rate
        self._report.media_seconds = self._sound.decoded_s
        if duration_s < settings.min_clip_s:
            clip.verdict = _too_short(duration_s, settings)
        else:
            clip.verdict = filters.judge_sound(x, rate, settings, mixed=mixed)
        is_rest = duration_s < settings.min_clip_s and not stretch.is_first
        if (clip.verdict and not settings.keep_dropped) or is_rest or not math.isfinite(_peak(x)):
            self._take_anew(clip)
            return
        if abs(duration_s - clip.planned_s) > TOLERANCE_S:
            self._take_anew(clip)
        x = resample(mixed, rate, settings.sample_rate)
        if _peak(x) > 1:  # what reaches beyond full scale is made softer, not cut off
            x = x / _peak(x)
        wants_fingerprint = settings.max_duplicate_distance is not None
        clip.row = {
            "duration_s": x.shape[1] / settings.sample_rate,
            "sample_rate": settings.sample_rate,
            "audio": encode_flac(x, settings.sample_rate),
            "fingerprint": fingerprint(mix_channels(x, 1)[0], settings.sample_rate) if wants_fingerprint else None,
        }

    def _end_s(self, stretch: Stretch) -> float:
        """Where the sound of a clip ends at the latest; the last packet is filled up beyond what an index says."""
        header_end_s = self._header_end_s if self._opened.is_indexed else None  # elsewhere it is an estimate
        is_filled = header_end_s is not None and 0 < self._sound.end_s - header_end_s < TOLERANCE_S
        return min(stretch.end_s, header_end_s) if is_filled and header_end_s else stretch.end_s

    def _take_anew(self, clip: _Clip) -> None:
        """Have no pictures taken in passing; those that the clip needs are fetched when it is finished."""
        clip.taken_anew, clip.awaited = True, 0
        self._pictures.cancel(clip.take)

    def _miss(self, take: Take) -> None:
        """Key frames were flagged falsely: the pictures of this clip have to be decoded from further back."""
        for clip in self._open:
            if clip.take == take:
                self._take_anew(clip)

    def _is_first_finished(self) -> bool:
        return bool(self._open) and self._open[0].duration_s is not None and self._open[0].awaited <= 0

    def _finished(self) -> Iterator[dict[str, Any]]:
        """The rows of clips that are complete, in order."""
        while self._is_first_finished():
            clip = self._open.popleft()
            row = self._row(clip)
            if row:
                yield row

    def _row(self, clip: _Clip) -> dict[str, Any] | None:
        """Judge the pictures; sound that was rejected on its own stays rejected."""
        if clip.row and clip.taken_anew:
            times_s = self._times(clip, clip.duration_s or 0.0)
            with contextlib.suppress(MediaError):  # which says that none decodes, as is found out below
                clip.pictures = read_frames(self._media.path, times_s, max_side=self._settings.frame_size)
        if clip.row and not clip.verdict:
            clip.verdict = self._judge_pictures(clip)
        if clip.verdict:
            self._drop(clip, clip.verdict)
        if clip.verdict and not (self._settings.keep_dropped and clip.row and clip.pictures):
            return None
        seen = [(t, p) for t, p in clip.pictures if not filters.is_black(p, self._settings.min_brightness)]
        frames = [{"time_s": time_s, "image": _jpeg(picture)} for time_s, picture in seen or clip.pictures]
        source, start_s, caption = self._media.name, clip.stretch.start_s, clip.stretch.segment.caption
        identity = hashlib.blake2b(f"{source}\n{start_s:.6f}".encode(), digest_size=8).hexdigest()
        head = {"id": identity, "source": source, "start_s": start_s, "caption": caption}
        return head | clip.row | {"frames": frames, "reason": clip.verdict and clip.verdict[0]}

    def _judge_pictures(self, clip: _Clip) -> Verdict | None:
        if clip.pictures:
            return filters.judge_pictures([picture for _, picture in clip.pictures], self._settings)
        if not self._pictures.decoded_any:
            return "damaged", "no picture decodes"
        return "no_picture", "the picture ends before this clip"

    def _drop(self, clip: _Clip, verdict: Verdict) -> None:
        """Note it; a rest at the end of a longer stretch is none to speak of."""
        if verdict[0] != "too_short" or clip.stretch.is_first:
            self._report.drop(clip.stretch.start_s, clip.duration_s, verdict)

    def _times(self, clip: _Clip, duration_s: float) -> list[float]:
        count = self._settings.frames_per_clip
        return [clip.stretch.start_s + duration_s * (index + 0.5) / count for index in range(count)]


def _peak(x: np.ndarray) -> float:
    """NaN where there is none, or one among the samples."""
    return float(max(x.max(), -x.min())) if x.size else math.nan


def _too_short(duration_s: float, settings: PrepareSettings) -> Verdict:
    return "too_short", f"{duration_s:.2f} s of sound, below {settings.min_clip_s:g} s"


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
