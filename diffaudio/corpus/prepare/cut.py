"""One media file -> clips: audio with a few frames, checked.

    source  the file's name in the corpus, `Media.name`
    clip    at most `clip_s` seconds of it, from `start_s` on, with `frames_per_clip` frames

A clip needs both audio and frames, and ends where the audio does. A file is read once, from front to back,
and no more of it is in memory than a few clips, however long it is and whatever its time stamps are.
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

from diffaudio.corpus.prepare import quality_filters
from diffaudio.corpus.prepare.fingerprints import fingerprint
from diffaudio.corpus.prepare.fragments import CutReport
from diffaudio.corpus.prepare.quality_filters import DropReason
from diffaudio.corpus.prepare.segments import ClipPlan, ClipWindow
from diffaudio.corpus.prepare.settings import PrepareSettings
from diffaudio.corpus.prepare.source_guard import SourceUnavailableError
from diffaudio.corpus.prepare.sources import Media
from diffaudio.media.audio_decoder import AudioTrack
from diffaudio.media.audio_numpy import encode_flac, mix_channels, resample
from diffaudio.media.container import PREROLL_S, SEEK_S, MediaError, OpenMedia, open_media
from diffaudio.media.memory_limit import is_machine_short_of_memory
from diffaudio.media.video_decoder import Take, VideoTrack
from diffaudio.media.video_frames import read_frames

__all__ = ["cut_clips"]

JPEG_QUALITY = 90
AHEAD_S = 1.0  # files are not quite in order of time: a clip is begun so long before its first packet
MAX_OPEN = 64  # clips begun and not finished, before frames are fetched in a pass of their own
TOLERANCE_S = 0.25  # between the length of a clip and what the header says, before its frames are fetched again
MIN_LOST_S = 1.0  # of audio at times that have other audio, before it is recorded
PACKETS_PER_SIGN = 500  # after which `alive` is called
SHORT_OF_MEMORY = (
    "the machine refuses memory that a worker may have; free some, or use fewer workers or a lower --max-memory-mb"
)


@dataclass
class _Clip:
    """A clip in the making; audio and frames come in any order.

    Attributes:
        planned_s: its expected duration, as far as the header says.
        duration_s: of its audio; None until that is complete.
        num_pending: frames that were requested and have not come yet.
        frames: those that have come, with their times.
        needs_refetch: the frames are to be read again when the duration is known, in a pass of their own.
        row: the columns that are known so far.
    """

    window: ClipWindow
    planned_s: float
    duration_s: float | None = None
    drop_reason: DropReason | None = None
    num_pending: int = 0
    frames: list[tuple[float, Image.Image]] = field(default_factory=list)
    needs_refetch: bool = False
    row: dict[str, Any] = field(default_factory=dict)

    def add_frame(self, time_s: float, picture: Image.Image | None) -> None:
        self.num_pending -= 1
        if picture is not None and (not self.frames or self.frames[-1][0] != time_s):
            self.frames.append((time_s, picture))


def cut_clips(
    media: Media, settings: PrepareSettings, report: CutReport, alive: Callable[[], None] = lambda: None
) -> Iterator[dict[str, Any]]:
    """Cut one media file into rows of `store.CLIP_SCHEMA`.

    Nothing that is wrong with the file raises. Reasons to drop it, or some of its sound, are unreadable, too_short,
    overlapping, out_of_memory, and those of `quality_filters`.

    Args:
        media: a local file.
        report: filled while rows are taken.
        alive: called every now and then while the file is read.

    Raises:
        SourceUnavailableError: the machine is short of memory.
    """

    def drop(drop_reason: DropReason, duration_s: float | None = None) -> None:
        report.drop(media.segments[0].start_s, duration_s, drop_reason)

    try:
        with open_media(media.path) as opened:
            drop_reason = quality_filters.check_header(opened.info, settings)
            if drop_reason:
                report.media_seconds = opened.info.duration_s or 0.0
                drop(drop_reason, opened.info.duration_s)
            else:
                yield from _Cutter(media, settings, report, opened).rows(alive)
    except MemoryError as error:
        if is_machine_short_of_memory():
            raise SourceUnavailableError(SHORT_OF_MEMORY) from error
        drop(("out_of_memory", "more memory than a worker may have"))
    except Exception as error:  # decoders fail in ways that nobody lists, and one file must not end the run
        report.read_to = 0
        drop(("unreadable", str(error).removeprefix(f"{media.path}: ") or type(error).__name__))


class _Cutter:
    """An open file, read from front to back."""

    def __init__(self, media: Media, settings: PrepareSettings, report: CutReport, opened: OpenMedia) -> None:
        self._media, self._settings, self._report, self._opened = media, settings, report, opened
        self._plan = ClipPlan(media.segments, settings.clip_s, settings.hop_s or settings.clip_s, settings.min_clip_s)
        self._audio = AudioTrack(opened.begin_s)
        self._video = VideoTrack(opened.video, opened.begin_s, settings.frame_size, on_miss=self._on_missed_frame)
        self._open: deque[_Clip] = deque()
        self._without_audio: deque[_Clip] = deque()  # those of them whose audio is not complete
        self._max_open = max(MAX_OPEN, 2 * math.ceil(settings.clip_s / (settings.hop_s or settings.clip_s)))
        self._video_read_s = float("-inf")  # how far the video has been read
        self._audio_packets: list[Any] = []  # not decoded yet
        self._damaged = False
        self._seek_target_s = float("-inf")
        self._header_end_s = opened.info.audio_duration_s or opened.info.duration_s
        self._update_thresholds()

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
                    self._audio_packets.append(packet)
                    continue
            time_s = self._opened.time_s(packet)
            if packet.stream is audio:
                self._read_audio(packet, time_s)
            else:
                self._read_video(packet, time_s)
            if self._is_first_finished():
                yield from self._finished_rows()
            if not self._open:
                if self._plan.next is None:
                    return
                self._seek(time_s)
        self._report.read_to = position or 0
        self._decode_sound()
        self._begin_clips(self._audio.end_s)
        self._video.finish()
        if self._audio.sample_rate is None and self._damaged:
            raise MediaError(f"{self._media.path}: no sound decodes")
        while self._without_audio:
            self._finish_audio(self._without_audio.popleft())
        yield from self._finished_rows()
        for window in self._plan.segments_not_begun():
            self._drop(_Clip(window, 0.0, 0.0), _too_short(0.0, self._settings))
        self._report_lost_audio()

    def _report_lost_audio(self) -> None:
        """Record audio that was decoded and has no time of its own, because time stamps go back."""
        lost_s = self._audio.decoded_s - self._audio.end_s
        if lost_s > MIN_LOST_S and self._seek_target_s == float("-inf"):
            detail = f"time stamps go back: {lost_s:.1f} s of sound lie at times that have other sound"
            self._report.drop(0.0, lost_s, ("overlapping", detail))

    def _begin_clips(self, time_s: float) -> None:
        """Begin the clips that may need packets from `time_s` on."""
        while (window := self._plan.next) and window.start_s <= time_s + AHEAD_S:
            if len(self._open) >= self._max_open:
                if self._open[0].duration_s is not None:  # do not wait for its frames
                    self._refetch_frames(self._open[0])
                return
            self._plan.advance()
            planned_s = window.end_s - window.start_s
            if self._header_end_s is not None and self._header_end_s > window.start_s:
                planned_s = min(planned_s, self._header_end_s - window.start_s)
            clip = _Clip(window, planned_s)
            times_s = self._frame_times(clip, planned_s)
            if times_s[0] < self._video_read_s - AHEAD_S:
                clip.needs_refetch = True
            else:
                clip.num_pending = len(times_s)
                for wanted_s in times_s:
                    self._video.request(wanted_s, clip.add_frame)
            self._open.append(clip)
            self._without_audio.append(clip)
        self._update_thresholds()

    def _update_thresholds(self) -> None:
        """From when on audio is needed, and when there is something to do: packets before that are only collected."""
        upcoming_s = self._plan.next.start_s if self._plan.next else float("inf")
        self._due_s = self._without_audio[0].window.end_s if self._without_audio else float("inf")
        self._needed_s = self._without_audio[0].window.start_s if self._without_audio else upcoming_s
        self._begin_s = upcoming_s - AHEAD_S
        time_base, begin_s = float(self._opened.audio.time_base), self._opened.begin_s
        self._first_stamp = (self._needed_s - PREROLL_S + begin_s) / time_base
        self._due_stamp = (min(self._due_s, self._begin_s) + begin_s) / time_base

    def _decode_sound(self) -> None:
        if self._audio.feed(self._audio_packets):
            self._damaged = True
        self._audio_packets.clear()

    def _read_audio(self, packet: Any, time_s: float | None) -> None:
        if time_s is not None:
            if time_s >= self._begin_s:
                self._decode_sound()
                self._skip_gap(time_s)
                self._begin_clips(time_s)
            if time_s < self._needed_s - PREROLL_S:
                return
        self._audio_packets.append(packet)
        self._decode_sound()
        if self._audio.end_s >= self._due_s:
            while self._without_audio and self._audio.end_s >= self._without_audio[0].window.end_s:
                self._finish_audio(self._without_audio.popleft())
            self._update_thresholds()
            self._audio.discard_before(self._needed_s)

    def _read_video(self, packet: Any, time_s: float | None) -> None:
        if time_s is not None:
            if time_s >= self._begin_s:
                self._begin_clips(time_s)
            self._video_read_s = time_s
        self._video.feed(packet)

    def _skip_gap(self, time_s: float) -> None:
        """Skip the clips before `time_s` where there is no audio: a wrong time stamp must not make millions of them."""
        begin_s, upcoming = self._audio.end_s, self._plan.next
        if time_s > begin_s + AHEAD_S and upcoming and begin_s <= upcoming.start_s:
            for start_s, end_s in self._plan.skip_to(time_s):
                detail = f"no sound from {start_s:.1f} s to {end_s:.1f} s"
                self._report.drop(start_s, end_s - start_s, ("silent", detail))

    def _seek(self, time_s: float | None) -> None:
        """Seek to where the next clip begins, if that is far ahead."""
        if time_s is None or self._plan.next is None:
            return
        target_s = self._plan.next.start_s - PREROLL_S
        if target_s > time_s + SEEK_S and target_s > self._seek_target_s:
            self._seek_target_s = target_s
            self._audio_packets.clear()
            if self._opened.seek(target_s, self._opened.video):
                self._audio.reset()
                self._video.reset()
                self._video_read_s = float("-inf")

    def _finish_audio(self, clip: _Clip) -> None:
        window, settings = clip.window, self._settings
        x = self._audio.cut(window.start_s, self._end_s(window))
        mixed = self._audio.cut(window.start_s, self._end_s(window), channels=settings.channels)
        rate = self._audio.sample_rate or 1
        clip.duration_s = duration_s = x.shape[1] / rate
        self._report.media_seconds = self._audio.decoded_s
        if duration_s < settings.min_clip_s:
            clip.drop_reason = _too_short(duration_s, settings)
        else:
            clip.drop_reason = quality_filters.check_audio(x, rate, settings, mixed=mixed)
        is_rest = duration_s < settings.min_clip_s and not window.is_first
        if (clip.drop_reason and not settings.keep_dropped) or is_rest or not math.isfinite(_peak(x)):
            self._refetch_frames(clip)
            return
        if abs(duration_s - clip.planned_s) > TOLERANCE_S:
            self._refetch_frames(clip)
        x = resample(mixed, rate, settings.sample_rate)
        if _peak(x) > 1:  # scaled down, not clipped
            x = x / _peak(x)
        wants_fingerprint = settings.max_duplicate_distance is not None
        clip.row = {
            "duration_s": x.shape[1] / settings.sample_rate,
            "sample_rate": settings.sample_rate,
            "audio": encode_flac(x, settings.sample_rate),
            "fingerprint": fingerprint(mix_channels(x, 1)[0], settings.sample_rate) if wants_fingerprint else None,
        }

    def _end_s(self, window: ClipWindow) -> float:
        """Where the sound of a clip ends at the latest; the last packet is filled up beyond what an index says."""
        header_end_s = self._header_end_s if self._opened.is_indexed else None  # elsewhere it is an estimate
        is_filled = header_end_s is not None and 0 < self._audio.end_s - header_end_s < TOLERANCE_S
        return min(window.end_s, header_end_s) if is_filled and header_end_s else window.end_s

    def _refetch_frames(self, clip: _Clip) -> None:
        """Request no frames in passing any more; those that the clip needs are fetched when it is finished."""
        clip.needs_refetch, clip.num_pending = True, 0
        self._video.cancel(clip.add_frame)

    def _on_missed_frame(self, take: Take) -> None:
        """Key frames were flagged falsely: the pictures of this clip have to be decoded from further back."""
        for clip in self._open:
            if clip.add_frame == take:
                self._refetch_frames(clip)

    def _is_first_finished(self) -> bool:
        return bool(self._open) and self._open[0].duration_s is not None and self._open[0].num_pending <= 0

    def _finished_rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the clips that are complete, in order."""
        while self._is_first_finished():
            clip = self._open.popleft()
            row = self._row(clip)
            if row:
                yield row

    def _row(self, clip: _Clip) -> dict[str, Any] | None:
        """Check the frames, and make the row; audio that was rejected stays rejected."""
        if clip.row and clip.needs_refetch:
            times_s = self._frame_times(clip, clip.duration_s or 0.0)
            with contextlib.suppress(MediaError):  # no frame decodes, which is found out below
                clip.frames = read_frames(self._media.path, times_s, max_side=self._settings.frame_size)
        if clip.row and not clip.drop_reason:
            clip.drop_reason = self._check_frames(clip)
        if clip.drop_reason:
            self._drop(clip, clip.drop_reason)
        if clip.drop_reason and not (self._settings.keep_dropped and clip.row and clip.frames):
            return None
        seen = [(t, p) for t, p in clip.frames if not quality_filters.is_black(p, self._settings.min_brightness)]
        frames = [{"time_s": time_s, "image": _jpeg(picture)} for time_s, picture in seen or clip.frames]
        source, start_s, caption = self._media.name, clip.window.start_s, clip.window.segment.caption
        identity = hashlib.blake2b(f"{source}\n{start_s:.6f}".encode(), digest_size=8).hexdigest()
        head = {"id": identity, "source": source, "start_s": start_s, "caption": caption}
        return head | clip.row | {"frames": frames, "reason": clip.drop_reason and clip.drop_reason[0]}

    def _check_frames(self, clip: _Clip) -> DropReason | None:
        if clip.frames:
            return quality_filters.check_frames([picture for _, picture in clip.frames], self._settings)
        if not self._video.decoded_any:
            return "damaged", "no picture decodes"
        return "no_picture", "the picture ends before this clip"

    def _drop(self, clip: _Clip, drop_reason: DropReason) -> None:
        """Record it, unless it is the short rest at the end of a longer segment."""
        if drop_reason[0] != "too_short" or clip.window.is_first:
            self._report.drop(clip.window.start_s, clip.duration_s, drop_reason)

    def _frame_times(self, clip: _Clip, duration_s: float) -> list[float]:
        count = self._settings.frames_per_clip
        return [clip.window.start_s + duration_s * (index + 0.5) / count for index in range(count)]


def _peak(x: np.ndarray) -> float:
    """NaN where there are no samples, or one of them is NaN."""
    return float(max(x.max(), -x.min())) if x.size else math.nan


def _too_short(duration_s: float, settings: PrepareSettings) -> DropReason:
    return "too_short", f"{duration_s:.2f} s of sound, below {settings.min_clip_s:g} s"


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
