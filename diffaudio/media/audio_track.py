"""Decoded sound, put where its time stamps say, as one stretch of samples.

All times are seconds from the beginning of the file. A track is fed as a file is read, once, from front to back,
and holds no more of it than is asked for: hours take no more memory than minutes.
"""

from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import numpy as np

from diffaudio.errors import UserError
from diffaudio.media.container import PREROLL_S, MediaError, decode_packet, open_media

__all__ = ["AudioTrack", "decode_audio"]

GAP_S = 0.04  # time stamps are only rounded below this, above it something is missing
HOLD_S = 1.0  # a header may understate the duration by so much


class AudioTrack:
    """Decoded sound on a line of time.

    Attributes:
        format: sample rate in Hz and number of channels, once something has been added.
    """

    def __init__(self, begin_s: float) -> None:
        """Begin with nothing.

        Args:
            begin_s: time stamp that the file begins with.
        """
        self.format: tuple[int, int] | None = None
        self._begin_s = begin_s
        self._fifo = av.AudioFifo()
        self._pieces: deque[tuple[int, np.ndarray]] = deque()  # first sample, [channels, samples]
        self._next = 0  # sample that comes next
        self._last = 0  # past the last sample
        self._heard = 0  # samples in all
        self._follows: int | None = None  # time stamp of the next frame, if there is no gap before it
        self._is_new = True  # the next stamp is to be believed

    def feed(self, packets: Iterable[Any]) -> bool:
        """Decode packets and add their sound; True if some of it does not decode.

        Raises:
            ValueError: it has another sample rate or number of channels than what came before.
            MemoryError: there is not enough for the decoder.
        """
        damaged = False
        for packet in packets:
            frames = decode_packet(packet)
            if frames is None:
                damaged = True
                continue
            for frame in frames:
                if frame.pts != self._follows or self._is_new:
                    self._place(frame)
                frame.pts = None  # the stamp has been seen to
                try:
                    self._fifo.write(frame)
                except ValueError:
                    self._change_format(frame)
                    self._fifo.write(frame)
                num_samples = frame.samples
                self._next += num_samples
                if self._follows is not None:
                    self._follows += num_samples
        return damaged

    @property
    def end_s(self) -> float:
        """Where the sound added so far ends."""
        return max(self._last, self._next) / self.format[0] if self.format else 0.0

    @property
    def decoded_s(self) -> float:
        """How much sound was added, as of the last `cut`."""
        return self._heard / self.format[0] if self.format else 0.0

    def _place(self, frame: Any) -> None:
        """Have a frame follow the last without a seam, unless its stamp says that it belongs elsewhere."""
        if self.format is None:
            self.format = frame.sample_rate, frame.layout.nb_channels
            self._is_new = True
        rate, time_s = self.format[0], frame.time
        if time_s is not None:
            stamped = round((time_s - self._begin_s) * rate)
            if self._is_new or abs(stamped - self._next) > GAP_S * rate:
                self._drain()
                self._next = stamped
            self._follows = frame.pts if frame.time_base.numerator * rate == frame.time_base.denominator else None
        self._is_new = False

    def _change_format(self, frame: Any) -> None:
        if (frame.sample_rate, frame.layout.nb_channels) != self.format:
            raise UserError("the sound changes its sample rate or channels midway")
        self._drain()  # only the format of the samples is another
        self._fifo = av.AudioFifo()

    def cut(self, start_s: float, end_s: float | None) -> np.ndarray:
        """The sound between two times, silent where there is none, shorter where it ends before.

        Returns:
            [channels, samples] float32
        """
        self._drain()
        if self.format is None:
            return np.zeros((1, 0), np.float32)
        rate, channels = self.format
        first = round(start_s * rate)
        stop = self._last if end_s is None else min(first + round((end_s - start_s) * rate), self._last)
        inside = [(at, piece) for at, piece in self._pieces if at < stop and at + piece.shape[1] > first]
        if len(inside) == 1 and inside[0][0] <= first and inside[0][0] + inside[0][1].shape[1] >= stop:
            at, piece = inside[0]
            return piece[:, first - at : stop - at]
        x = np.zeros((channels, max(0, stop - first)), np.float32)
        for at, piece in inside:
            part = piece[:, max(0, first - at) : stop - at]
            begin = max(0, at - first)
            x[:, begin : begin + part.shape[1]] = part
        return x

    def has_sound(self, start_s: float, end_s: float) -> bool:
        """Whether anything was decoded between two times."""
        self._drain()
        rate = self.format[0] if self.format else 1
        return any(at < end_s * rate and at + piece.shape[1] > start_s * rate for at, piece in self._pieces)

    def discard_before(self, before_s: float) -> None:
        """Let go of what lies before a time."""
        if self.format:
            first = before_s * self.format[0]
            self._pieces = deque((at, piece) for at, piece in self._pieces if at + piece.shape[1] > first)

    def reset(self) -> None:
        """Believe the next stamp, whatever it says: the reader went elsewhere."""
        self._drain()
        self._follows, self._is_new = None, True

    def _drain(self) -> None:
        frame = self._fifo.read()
        if frame is not None:
            self._pieces.append((self._next - frame.samples, _to_float(frame)))
            self._heard += frame.samples
        self._last = max(self._last, self._next)


def decode_audio(path: str | Path, *, start_s: float = 0.0, duration_s: float | None = None) -> tuple[np.ndarray, int]:
    """Decode the first sound track as it is; `audio.read_audio` also resamples and mixes.

    Args:
        start_s: where to begin.
        duration_s: how much to read; None reads to the end.

    Returns:
        [channels, samples] float32, and the sample rate in Hz. Shorter than `duration_s` where the sound ends
        before, and empty where it ends before `start_s`. Lossy formats may reach beyond [-1, 1].

    Raises:
        MediaError: the file cannot be read, has no sound track, or nothing of it decodes.
    """
    with open_media(path) as media:
        if media.audio is None:
            raise MediaError(f"{path}: has no sound track")
        if start_s > PREROLL_S:
            media.seek(start_s - PREROLL_S, media.audio)
        total_s = media.info.duration_s
        end_s = start_s + duration_s if duration_s is not None else total_s and total_s + HOLD_S
        track, damaged = AudioTrack(media.begin_s), False
        for packet in media.packets(media.audio):
            damaged = track.feed([packet]) or damaged
            if end_s is not None and track.end_s >= end_s:
                break
        if track.format is None:
            if damaged:
                raise MediaError(f"{path}: no sound decodes from {start_s:g} s on")
            context = media.audio.codec_context
            return np.zeros((context.channels, 0), np.float32), context.sample_rate
        return np.ascontiguousarray(track.cut(start_s, end_s)), track.format[0]


def _to_float(frame: Any) -> np.ndarray:
    """[channels, samples] float32, whatever the format of the samples."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype.kind == "u":
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / 2.0 ** (8 * samples.itemsize - 1)
    return samples.astype(np.float32, copy=False)
