"""Decoding the audio of media files: decoded frames are placed on a timeline by their timestamps.

    run     consecutive frames of one format; a new one begins where the sample rate or the channels change
    piece   consecutive samples, with the position of the first

All times are seconds from the beginning of the file. A track receives packets as the file is read, once, from beginning
to end, and keeps only what is requested, so that memory does not depend on the duration.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from diffaudio.media.audio_numpy import mix_channels
from diffaudio.media.container import (
    MAX_SAMPLE_RATE,
    MIN_SAMPLE_RATE,
    PREROLL_S,
    MediaError,
    OpenMedia,
    decode_packet,
    open_media,
)

__all__ = ["AudioTrack", "decode_audio", "decode_chunks"]

GAP_S = 0.1  # smaller gaps are timestamp jitter, larger ones missing audio (`min_hard_comp` of FFmpeg's aresample)
MAX_GAP_S = 3600.0  # of silence in a recording; a longer gap means a damaged timestamp
MAX_DIRECT_PLANES = 7  # PyAV reads past the end of a planar frame's pointers from eight channels on
END_S = 1.0  # how much a header may understate the duration
BUFFER_S = 2.0  # of audio that is buffered while chunks are read; the first second of it is yielded


@dataclass(frozen=True)
class _Piece:
    """Samples [channels, samples] from the position `first` on; `names` of the channels."""

    first: int
    samples: np.ndarray
    names: tuple[str, ...]

    @property
    def stop(self) -> int:
        return self.first + self.samples.shape[1]


class _Run:
    """Collects frames of one format; frames that are not at the track's rate are resampled."""

    def __init__(self, frame: Any, rate: int) -> None:
        self._format, self._layout, self._rate = frame.format.name, frame.layout, frame.sample_rate
        self._names = tuple(channel.name for channel in frame.layout.channels)
        self._fifo = av.AudioFifo()
        self._converter: Any = None
        is_wide = frame.format.is_planar and frame.layout.nb_channels > MAX_DIRECT_PLANES
        if is_wide or frame.sample_rate != rate:
            self._converter = av.AudioResampler(format="flt", layout=frame.layout, rate=rate)

    def accepts(self, frame: Any) -> bool:
        return frame.sample_rate == self._rate and frame.layout == self._layout and frame.format.name == self._format

    def add(self, frame: Any) -> int:
        """Add a frame; returns the number of samples at the track's rate."""
        frame.pts = None  # its position is known
        if self._converter is None:
            self._fifo.write(frame)
            return frame.samples
        return self._write(self._converter.resample(frame))

    def finish(self) -> int:
        """Flush the resampler; returns the number of samples."""
        return self._write(self._converter.resample(None)) if self._converter else 0

    def take(self, stop: int) -> _Piece | None:
        """The collected samples, as a piece that ends before the position `stop`."""
        frame = self._fifo.read()
        return _Piece(stop - frame.samples, _to_float(frame), self._names) if frame is not None else None

    def _write(self, frames: list[Any]) -> int:
        count = 0
        for frame in frames:
            frame.pts = None
            self._fifo.write(frame)
            count += frame.samples
        return count


class AudioTrack:
    """Decoded audio on a timeline.

    Attributes:
        sample_rate: of the first frame, in Hz; frames at another rate are resampled to it. None before the first frame.
    """

    def __init__(self, begin_s: float) -> None:
        """Start with an empty track.

        Args:
            begin_s: time stamp that the file begins with.
        """
        self.sample_rate: int | None = None
        self._begin_s = begin_s
        self._run: _Run | None = None
        self._pieces: deque[_Piece] = deque()
        self._next = 0  # sample that comes next
        self._last = 0  # past the last sample
        self._num_decoded = 0  # samples in all
        self._expected_pts: int | None = None  # time stamp of the next frame, if there is no gap before it
        self._trusts_stamp = True  # whatever the next one says

    def feed(self, packets: Iterable[Any]) -> bool:
        """Decode packets and add their audio; returns whether some of it does not decode.

        Raises:
            MediaError: the sound claims a sample rate that no recording has.
            MemoryError: there is not enough for the decoder.
        """
        damaged = False
        for packet in packets:
            frames = decode_packet(packet)
            if frames is None:
                damaged = True
                continue
            for frame in frames:
                if frame.samples:
                    self._add(frame)
        return damaged

    @property
    def end_s(self) -> float:
        """Where the audio added so far ends."""
        return max(self._last, self._next) / self.sample_rate if self.sample_rate else 0.0

    @property
    def decoded_s(self) -> float:
        """How much audio was added, as of the last `cut`."""
        return self._num_decoded / self.sample_rate if self.sample_rate else 0.0

    def cut(self, start_s: float, end_s: float | None, *, channels: int | None = None) -> np.ndarray:
        """The audio between two times, silent where there is none, shorter where it ends earlier.

        Args:
            channels: 1 or 2 to mix to, by the layout that the sound has at each moment; None leaves the channels as
                they are, but mixes sound to stereo whose channels change.

        Returns:
            [channels, samples] float32
        """
        self._drain()
        if self.sample_rate is None:
            return np.zeros((channels or 1, 0), np.float32)
        first = round(start_s * self.sample_rate)
        stop = self._last if end_s is None else min(first + round((end_s - start_s) * self.sample_rate), self._last)
        inside = [piece for piece in self._pieces if piece.first < stop and piece.stop > first]
        counts = {len(piece.samples) for piece in inside or list(self._pieces)[-1:]}
        if channels is None and len({piece.names for piece in inside}) > 1:
            channels = 2 if len(counts) > 1 else None
        if len(inside) == 1 and inside[0].first <= first and inside[0].stop >= stop:
            samples = inside[0].samples[:, first - inside[0].first : stop - inside[0].first]
            return mix_channels(samples, channels, inside[0].names) if channels else samples
        x = np.zeros((channels or max(counts, default=1), max(0, stop - first)), np.float32)
        for piece in inside:
            part = piece.samples[:, max(0, first - piece.first) : stop - piece.first]
            begin = max(0, piece.first - first)
            x[:, begin : begin + part.shape[1]] = mix_channels(part, channels, piece.names) if channels else part
        return x

    def discard_before(self, time_s: float) -> None:
        """Free the memory of what lies before a time."""
        if self.sample_rate:
            first = time_s * self.sample_rate
            self._pieces = deque(piece for piece in self._pieces if piece.stop > first)

    def reset(self) -> None:
        """Trust the next time stamp unconditionally: the reader has sought."""
        self._finish_run()
        self._expected_pts, self._trusts_stamp = None, True

    def _add(self, frame: Any) -> None:
        if not MIN_SAMPLE_RATE <= frame.sample_rate <= MAX_SAMPLE_RATE:
            raise MediaError(
                f"the sound claims a sample rate of {frame.sample_rate} Hz; {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz "
                "can be read"
            )
        rate = self.sample_rate = self.sample_rate or frame.sample_rate
        if frame.pts != self._expected_pts or self._trusts_stamp:
            self._place(frame)
        if self._run is None or not self._run.accepts(frame):
            self._finish_run()
            self._run = _Run(frame, rate)
        if self._expected_pts is not None:
            self._expected_pts += frame.samples
        self._next += self._run.add(frame)

    def _place(self, frame: Any) -> None:
        """Append a frame to the last one seamlessly, unless its timestamp places it elsewhere."""
        assert self.sample_rate is not None
        rate, time_s = self.sample_rate, frame.time
        if time_s is not None:
            stamped = round((time_s - self._begin_s) * rate)
            if self._trusts_stamp or abs(stamped - self._next) > GAP_S * rate:
                self._finish_run()
                self._next = stamped
            is_in_samples = frame.time_base.numerator * frame.sample_rate == frame.time_base.denominator
            self._expected_pts = frame.pts if is_in_samples else None
        self._trusts_stamp = False

    def _finish_run(self) -> None:
        if self._run:
            self._next += self._run.finish()
            self._drain()
            self._run = None

    def _drain(self) -> None:
        piece = self._run.take(self._next) if self._run else None
        if piece is not None:
            self._pieces.append(piece)
            self._num_decoded += piece.samples.shape[1]
        self._last = max(self._last, self._next)


def decode_audio(
    path: str | Path, *, start_s: float = 0.0, duration_s: float | None = None, channels: int | None = None
) -> tuple[np.ndarray, int]:
    """Decode the sound of a media file in this process; `audio.read_audio` does so safely, in a child process.

    Args:
        start_s: start time.
        duration_s: duration to read; None reads to the end.
        channels: 1 or 2 to mix to mono or stereo; None keeps the channels.

    Returns:
        [channels, samples] float32, and the sample rate in Hz. Shorter than `duration_s` if the sound ends earlier,
        and empty if it ends before `start_s`. Lossy formats may exceed [-1, 1].

    Raises:
        MediaError: the file cannot be read, has no audio track, or none of it can be decoded.
    """
    chunks = list(decode_chunks(path, start_s=start_s, duration_s=duration_s, channels=channels))
    widths = {len(x) for _, x in chunks}
    if len(widths) > 1:  # a change of channels midway makes it stereo
        chunks = list(decode_chunks(path, start_s=start_s, duration_s=duration_s, channels=2))
    return np.concatenate([x for _, x in chunks], axis=1), chunks[0][0]


def decode_chunks(
    path: str | Path, *, start_s: float = 0.0, duration_s: float | None = None, channels: int | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Decode like `decode_audio`, in consecutive chunks of about a second.

    Yields:
        The sample rate in Hz, and [channels, samples] float32; at least one chunk, which may be empty.

    Raises:
        MediaError: see `decode_audio`.
    """
    with open_media(path) as media:
        check_has_audio(media, path)
        try:
            yield from _chunks(media, start_s, duration_s, channels, str(path))
        except MediaError as error:
            raise error if str(error).startswith(str(path)) else MediaError(f"{path}: {error}") from error


def check_has_audio(media: OpenMedia, path: str | Path) -> None:
    """Raise an error if a file has no audio that can be decoded; it names an unknown codec."""
    if media.audio is None and media.info.unknown_audio_codec:
        raise MediaError(f"{path}: its sound is coded as {media.info.unknown_audio_codec}, which cannot be decoded")
    if media.audio is None:
        raise MediaError(f"{path}: has no sound track")


def _chunks(
    media: OpenMedia, start_s: float, duration_s: float | None, channels: int | None, path: str
) -> Iterator[tuple[int, np.ndarray]]:
    if start_s > PREROLL_S:
        media.seek(start_s - PREROLL_S, media.audio)
    end_s = _end_s(media, start_s, duration_s)
    track, damaged, num_yielded, latest_s = AudioTrack(media.begin_s), False, 0, start_s
    for packet in media.packets(media.audio):
        damaged = track.feed([packet]) or damaged
        if end_s is not None and track.end_s >= end_s:
            break
        if track.end_s > max(latest_s, 0.0) + MAX_GAP_S:
            raise MediaError(f"{path}: a time stamp leaves a gap of {track.end_s - latest_s:.0f} s without sound")
        latest_s = max(latest_s, track.end_s)
        while track.sample_rate is not None and track.end_s >= start_s + num_yielded / track.sample_rate + BUFFER_S:
            rate = track.sample_rate
            begin_s = (round(start_s * rate) + num_yielded) / rate  # aligned to a sample, so that no chunk loses one
            yield rate, track.cut(begin_s, begin_s + 1, channels=channels)
            track.discard_before(begin_s + 1)
            num_yielded += rate
    if track.sample_rate is None:
        if damaged:
            raise MediaError(f"{path}: no sound decodes from {start_s:g} s on")
        context = media.audio.codec_context
        yield context.sample_rate, np.zeros((channels or context.channels, 0), np.float32)
        return
    track.reset()  # flushes the resampler
    rate = track.sample_rate
    begin_s = (round(start_s * rate) + num_yielded) / rate
    last_s = None if end_s is None else begin_s + (round((end_s - start_s) * rate) - num_yielded) / rate
    yield rate, track.cut(begin_s, last_s, channels=channels)


def _end_s(media: OpenMedia, start_s: float, duration_s: float | None) -> float | None:
    """Where to stop reading; without a duration, shortly after the end according to the index, if there is one."""
    if duration_s is not None:
        return start_s + duration_s
    return media.info.duration_s + END_S if media.is_indexed and media.info.duration_s else None


def _to_float(frame: Any) -> np.ndarray:
    """[channels, samples] float32, from any sample format; planar frames have at most seven channels."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype.kind == "u":
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / 2.0 ** (8 * samples.itemsize - 1)
    return samples.astype(np.float32, copy=False)
