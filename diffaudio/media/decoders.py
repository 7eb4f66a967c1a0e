"""What decoders give, put where its time stamps say: sound as one stretch of samples, pictures at wanted times.

All times are seconds from the beginning of the file. Both tracks are fed as a file is read, once, from front to back,
and hold no more of it than is asked for: hours take no more memory than minutes.
"""

import bisect
import errno
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from diffaudio.errors import UserError

__all__ = ["PictureTrack", "SoundTrack"]

GAP_S = 0.04  # time stamps are only rounded below this, above it something is missing
HOLD_S = 1.0  # how long the last picture stands where the file does not say
EQUAL_S = 1e-3  # a picture that comes so much after a time is still on screen then
MAX_WAITING = 64 << 20  # bytes of pictures held back in case none of them is wanted

_OWN = threading.local()

Take = Callable[[float, Image.Image | None], None]


def _decoded(packet: Any) -> list[Any] | None:
    """The frames of a packet, None for one that does not decode."""
    try:
        return packet.decode()
    except av.FFmpegError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(str(error)) from error
        return None


class SoundTrack:
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
            frames = _decoded(packet)
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
    def heard_s(self) -> float:
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

    def forget(self, before_s: float) -> None:
        """Let go of what lies before a time."""
        if self.format:
            first = before_s * self.format[0]
            self._pieces = deque((at, piece) for at, piece in self._pieces if at + piece.shape[1] > first)

    def restart(self) -> None:
        """Believe the next stamp, whatever it says: the reader went elsewhere."""
        self._drain()
        self._follows, self._is_new = None, True

    def _drain(self) -> None:
        frame = self._fifo.read()
        if frame is not None:
            self._pieces.append((self._next - frame.samples, _to_float(frame)))
            self._heard += frame.samples
        self._last = max(self._last, self._next)


class PictureTrack:
    """Pictures on screen at wanted times, decoding only what these need.

    Between two key frames nothing is decoded unless a time between them is wanted, and of that no picture that none
    refers to, other than the one wanted.
    """

    def __init__(self, stream: Any, begin_s: float, max_side: int | None) -> None:
        """Follow a stream of an open file.

        Args:
            begin_s: time stamp that the file begins with.
            max_side: larger pictures are brought to this longest side.
        """
        self.decoded_any = False
        self._stream, self._begin_s, self._max_side = stream, begin_s, max_side
        self._time_base = float(stream.time_base)
        self._wanted: list[tuple[float, int, Take]] = []  # in order of time, then of asking
        self._asked = 0
        self._waiting: list[Any] = []  # packets since the last key frame, or since the last that was decoded
        self._waiting_bytes = 0
        self._reached_s = float("-inf")  # latest time among them
        self._skipped = False
        self._mode = ""
        self._held: Any = None  # the picture on screen
        self._image: Image.Image | None = None  # the same, once it was taken

    @property
    def next_wanted_s(self) -> float | None:
        return self._wanted[0][0] if self._wanted else None

    def want(self, time_s: float, take: Take) -> None:
        """Ask for the picture at a time that has not been reached.

        Args:
            take: called with the picture, as RGB and upright, and the time at which it appears, or with None where
                the pictures have ended.
        """
        self._asked += 1
        bisect.insort(self._wanted, (time_s, self._asked, take))

    def forget(self, take: Take) -> None:
        """Want no more for this one."""
        self._wanted = [wanted for wanted in self._wanted if wanted[2] != take]

    def feed(self, packet: Any) -> None:
        """Take what is wanted from the next packet, as soon as it is certain."""
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None and not packet.size:
            return  # the end of the file: see finish
        time_s = None if stamp is None else stamp * self._time_base - self._begin_s
        next_s = self.next_wanted_s
        if self._waiting and packet.is_keyframe and time_s is not None and (next_s is None or time_s <= next_s):
            self._let_go()
        self._waiting.append(packet)
        self._waiting_bytes += packet.size
        self._reached_s = max(self._reached_s, time_s if time_s is not None else float("inf"))
        if (next_s is not None and self._reached_s >= next_s) or self._waiting_bytes > MAX_WAITING:
            self._decode_waiting()

    def restart(self) -> None:
        """Forget where the file was: the reader went elsewhere."""
        self._let_go()
        self._skipped = False  # a seek flushes the decoder

    def finish(self) -> None:
        """The file has ended."""
        if self._wanted:
            end = av.Packet()
            end.stream, end.time_base = self._stream, self._stream.time_base
            self._waiting.append(end)
            self._decode_waiting()
        for time_s, _, take in self._wanted:
            held = self._held
            hold_s = 0.0 if held is None else max(HOLD_S, float((held.duration or 0) * held.time_base))
            if held is None or time_s > held.time - self._begin_s + hold_s:
                take(time_s, None)
            else:
                self._give(take)
        self._wanted.clear()

    def _let_go(self) -> None:
        self._waiting.clear()
        self._waiting_bytes, self._reached_s = 0, float("-inf")
        self._held = self._image = None
        self._skipped = True

    def _decode_waiting(self) -> None:
        context = self._stream.codec_context
        if self._skipped:
            context.flush_buffers()
            self._skipped = False
        for packet in self._waiting:
            mode = "DEFAULT" if self._is_wanted(packet) else "NONREF"
            if self._mode != mode:
                context.skip_frame = self._mode = mode
            for frame in _decoded(packet) or ():
                self._show(frame)
        self._waiting.clear()
        self._waiting_bytes, self._reached_s = 0, float("-inf")

    def _is_wanted(self, packet: Any) -> bool:
        """Whether a wanted time falls on this picture, as far as the file says how long it stands."""
        if packet.pts is None or not packet.duration:
            return True
        start_s = packet.pts * self._time_base - self._begin_s - EQUAL_S
        at = bisect.bisect_left(self._wanted, start_s, key=lambda wanted: wanted[0])
        return (
            at < len(self._wanted) and self._wanted[at][0] < start_s + 2 * packet.duration * self._time_base + EQUAL_S
        )

    def _show(self, frame: Any) -> None:
        if frame.time is None or frame.is_corrupt:
            return
        self.decoded_any = True
        time_s = frame.time - self._begin_s
        while self._wanted and self._wanted[0][0] + EQUAL_S < time_s:
            if self._held is None:  # before the first picture there is none
                self._held = frame
            self._give(self._wanted.pop(0)[2])
        if self._held is not frame:
            self._held, self._image = frame, None

    def _give(self, take: Take) -> None:
        if self._image is None:
            self._image = _to_image(self._held, self._stream, self._max_side)
        take(self._held.time - self._begin_s, self._image)


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


def _reformatter() -> VideoReformatter:
    """This thread's: a new one for each file would cost more than what it does."""
    if not hasattr(_OWN, "reformatter"):
        _OWN.reformatter = VideoReformatter()
    return _OWN.reformatter


def _to_image(frame: Any, stream: Any, max_side: int | None) -> Image.Image:
    """Scale to square pixels and at most `max_side`, then turn upright."""
    aspect = float(stream.sample_aspect_ratio or 1)
    width, height = max(1, round(frame.width * aspect)), frame.height
    scale = min(1.0, (max_side or max(width, height)) / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    form = {"format": "rgb24", "interpolation": "BICUBIC", "threads": 1}
    rgb = _reformatter().reformat(frame, width=size[0], height=size[1], **form)
    plane = rgb.planes[0]
    image = Image.frombytes("RGB", size, memoryview(plane), "raw", "RGB", plane.line_size, 1)
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image
