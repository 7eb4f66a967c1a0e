"""Pictures of a video track at requested times, decoding only what these need.

All times are seconds from the beginning of the file. A track is fed as a file is read, once, from front to back,
and holds no more of it than is asked for: hours take no more memory than minutes.
"""

import bisect
import threading
from collections.abc import Callable
from typing import Any

import av
from av.video.reformatter import VideoReformatter
from PIL import Image

from diffaudio.media.container import decode_packet

__all__ = ["VideoTrack"]

HOLD_S = 1.0  # how long the last picture stands where the file does not say
EQUAL_S = 1e-3  # a picture that comes so much after a time is still on screen then
MAX_WAITING = 64 << 20  # bytes of pictures held back in case none of them is wanted

_OWN = threading.local()

Take = Callable[[float, Image.Image | None], None]


class VideoTrack:
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
        self._requests: list[tuple[float, int, Take]] = []  # in order of time, then of asking
        self._asked = 0
        self._waiting: list[Any] = []  # packets since the last key frame, or since the last that was decoded
        self._waiting_bytes = 0
        self._reached_s = float("-inf")  # latest time among them
        self._skipped = False
        self._mode = ""
        self._held: Any = None  # the picture on screen
        self._image: Image.Image | None = None  # the same, once it was taken

    @property
    def next_requested_s(self) -> float | None:
        return self._requests[0][0] if self._requests else None

    def request(self, time_s: float, take: Take) -> None:
        """Ask for the picture at a time that has not been reached.

        Args:
            take: called with the picture, as RGB and upright, and the time at which it appears, or with None where
                the pictures have ended.
        """
        self._asked += 1
        bisect.insort(self._requests, (time_s, self._asked, take))

    def cancel(self, take: Take) -> None:
        """Want no more for this one."""
        self._requests = [wanted for wanted in self._requests if wanted[2] != take]

    def feed(self, packet: Any) -> None:
        """Take what is wanted from the next packet, as soon as it is certain."""
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None and not packet.size:
            return  # the end of the file: see finish
        time_s = None if stamp is None else stamp * self._time_base - self._begin_s
        next_s = self.next_requested_s
        if self._waiting and packet.is_keyframe and time_s is not None and (next_s is None or time_s <= next_s):
            self._let_go()
        self._waiting.append(packet)
        self._waiting_bytes += packet.size
        self._reached_s = max(self._reached_s, time_s if time_s is not None else float("inf"))
        if (next_s is not None and self._reached_s >= next_s) or self._waiting_bytes > MAX_WAITING:
            self._decode_waiting()

    def reset(self) -> None:
        """Forget where the file was: the reader went elsewhere."""
        self._let_go()
        self._skipped = False  # a seek flushes the decoder

    def finish(self) -> None:
        """The file has ended."""
        if self._requests:
            end = av.Packet()
            end.stream, end.time_base = self._stream, self._stream.time_base
            self._waiting.append(end)
            self._decode_waiting()
        for time_s, _, take in self._requests:
            held = self._held
            hold_s = 0.0 if held is None else max(HOLD_S, float((held.duration or 0) * held.time_base))
            if held is None or time_s > held.time - self._begin_s + hold_s:
                take(time_s, None)
            else:
                self._give(take)
        self._requests.clear()

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
            for frame in decode_packet(packet) or ():
                self._show(frame)
        self._waiting.clear()
        self._waiting_bytes, self._reached_s = 0, float("-inf")

    def _is_wanted(self, packet: Any) -> bool:
        """Whether a wanted time falls on this picture, as far as the file says how long it stands."""
        if packet.pts is None or not packet.duration:
            return True
        start_s = packet.pts * self._time_base - self._begin_s - EQUAL_S
        at = bisect.bisect_left(self._requests, start_s, key=lambda wanted: wanted[0])
        end_s = start_s + 2 * packet.duration * self._time_base + EQUAL_S
        return at < len(self._requests) and self._requests[at][0] < end_s

    def _show(self, frame: Any) -> None:
        if frame.time is None or frame.is_corrupt:
            return
        self.decoded_any = True
        time_s = frame.time - self._begin_s
        while self._requests and self._requests[0][0] + EQUAL_S < time_s:
            if self._held is None:  # before the first picture there is none
                self._held = frame
            self._give(self._requests.pop(0)[2])
        if self._held is not frame:
            self._held, self._image = frame, None

    def _give(self, take: Take) -> None:
        if self._image is None:
            self._image = _to_image(self._held, self._stream, self._max_side)
        take(self._held.time - self._begin_s, self._image)


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
