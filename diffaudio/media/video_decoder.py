"""Decoding the frames of a video track at requested times, and only the packets that they depend on.

All times are seconds from the beginning of the file. A track receives packets as the file is read, once, from beginning
to end, and keeps only what is requested, so that memory does not depend on the duration.
"""

import bisect
from collections.abc import Callable
from typing import Any

import av
from PIL import Image

from diffaudio.media.container import decode_packet
from diffaudio.media.frame_to_image import to_image

__all__ = ["VideoTrack"]

HOLD_S = 1.0  # how long the last frame is shown if the file does not say
EQUAL_S = 1e-3  # tolerance: a frame that appears this much after a requested time still counts
MAX_WAITING = 64 << 20  # maximum bytes of packets held back in case none of their frames is requested

Take = Callable[[float, Image.Image | None], None]


class VideoTrack:
    """The frames on screen at requested times.

    Packets between two key frames are only decoded if a time between them is requested, and frames to which no other
    refers are skipped unless they are requested. Key frame flags can be wrong: if decoding that begins at a flagged
    packet gives no frame, the track decodes everything from then on.

    Attributes:
        decoded_any: whether a picture has been decoded.
        skips: whether flags of key frames are believed, so that what lies between can be passed over.
    """

    def __init__(
        self,
        stream: Any,
        begin_s: float,
        max_side: int | None,
        *,
        on_miss: Callable[[Take], None] | None = None,
        skips: bool = True,
    ) -> None:
        """Follow a stream of an open file.

        Args:
            begin_s: timestamp of the beginning of the file.
            max_side: larger frames are reduced to this longest side.
            on_miss: called with the callback of a request for a frame that depends on packets before the position where
                reading began; without it, such requests receive the first frame that can be decoded.
            skips: whether flags of key frames are believed.
        """
        self.decoded_any = False
        self._stream, self._begin_s, self._max_side = stream, begin_s, max_side
        self._on_miss, self.skips = on_miss, skips
        self._time_base = float(stream.time_base)
        self._requests: list[tuple[float, int, Take]] = []  # ordered by time, then by order of the calls
        self._num_requests = 0
        self._waiting: list[Any] = []  # packets since the last key frame, or since the last that was decoded
        self._waiting_bytes = 0
        self._reached_s = float("-inf")  # latest time among them
        self._skipped = False
        self._is_complete = True  # whether all frames to which the next ones refer have been decoded
        self._key_s = float("inf")  # time of the key frame at which decoding began
        self._mode = ""
        self._shown: Any = None  # the frame on screen
        self._image: Image.Image | None = None  # the same as an image, once it has been requested

    @property
    def next_requested_s(self) -> float | None:
        return self._requests[0][0] if self._requests else None

    def request(self, time_s: float, take: Take) -> None:
        """Request the frame at a time that has not been reached.

        Args:
            take: callback that receives the frame, RGB and upright, and the time at which it appears, or None after the
                last frame.
        """
        self._num_requests += 1
        bisect.insort(self._requests, (time_s, self._num_requests, take))

    def cancel(self, take: Take) -> None:
        """Drop all requests with this callback."""
        self._requests = [request for request in self._requests if request[2] != take]

    def feed(self, packet: Any) -> None:
        """Process the next packet; requests are answered as soon as the answer is certain."""
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None and not packet.size:
            return  # the end of the file: see finish
        time_s = None if stamp is None else stamp * self._time_base - self._begin_s
        next_s = self.next_requested_s
        can_skip = self.skips and packet.is_keyframe and time_s is not None and (next_s is None or time_s <= next_s)
        if self._waiting and can_skip:
            self._skip()
        if packet.is_keyframe and time_s is not None:
            self._key_s = min(self._key_s, time_s)
        self._waiting.append(packet)
        self._waiting_bytes += packet.size
        self._reached_s = max(self._reached_s, time_s if time_s is not None else float("inf"))
        is_reached = next_s is not None and self._reached_s >= next_s
        if is_reached or not self.skips or self._waiting_bytes > MAX_WAITING:
            self._decode_waiting()

    def reset(self) -> None:
        """Discard the state after the reader has sought to another position."""
        self._skip()
        self._skipped = False  # a seek flushes the decoder
        self._is_complete = False

    def finish(self) -> None:
        """Answer the remaining requests at the end of the file."""
        if self._requests:
            end = av.Packet()
            end.stream, end.time_base = self._stream, self._stream.time_base
            self._waiting.append(end)
            self._decode_waiting()
        for time_s, _, take in self._requests:
            shown = self._shown
            hold_s = 0.0 if shown is None else max(HOLD_S, float((shown.duration or 0) * shown.time_base))
            if not self._is_complete and self._on_miss:
                self._on_miss(take)
            elif shown is None or time_s > shown.time - self._begin_s + hold_s:
                take(time_s, None)
            else:
                self._give(take)
        self._requests.clear()

    def _skip(self) -> None:
        """Discard the waiting packets; the next one can be decoded without them."""
        self._waiting.clear()
        self._waiting_bytes, self._reached_s = 0, float("-inf")
        self._shown = self._image = None
        self._skipped, self._key_s = True, float("inf")

    def _decode_waiting(self) -> None:
        context = self._stream.codec_context
        if self._skipped:
            context.flush_buffers()
            self._skipped = self._is_complete = False
        for packet in self._waiting:
            mode = "DEFAULT" if not self.skips or self._is_requested(packet) else "NONREF"
            if self._mode != mode:
                context.skip_frame = self._mode = mode
            for frame in decode_packet(packet) or ():
                self._show(frame)
        self._waiting.clear()
        self._waiting_bytes, self._reached_s = 0, float("-inf")

    def _is_requested(self, packet: Any) -> bool:
        """Whether a requested time is within this frame's duration, as far as the file gives one."""
        if packet.pts is None or not packet.duration:
            return True
        start_s = packet.pts * self._time_base - self._begin_s - EQUAL_S
        at = bisect.bisect_left(self._requests, start_s, key=lambda request: request[0])
        end_s = start_s + 2 * packet.duration * self._time_base + EQUAL_S
        return at < len(self._requests) and self._requests[at][0] < end_s

    def _show(self, frame: Any) -> None:
        if frame.time is None or frame.is_corrupt:
            return
        time_s = frame.time - self._begin_s
        if not self._is_complete and self._on_miss:
            if not frame.key_frame:  # the frames to which it refers were not decoded
                if time_s > self._key_s - EQUAL_S:  # earlier frames only precede the key frame
                    self.skips = False
                return
            while self._requests and self._requests[0][0] + EQUAL_S < time_s:
                self._on_miss(self._requests.pop(0)[2])
        self._is_complete = self.decoded_any = True
        while self._requests and self._requests[0][0] + EQUAL_S < time_s:
            if self._shown is None:  # a time before the first frame
                self._shown = frame
            self._give(self._requests.pop(0)[2])
        if self._shown is not frame:
            self._shown, self._image = frame, None

    def _give(self, take: Take) -> None:
        if self._image is None:
            self._image = to_image(self._shown, self._stream.sample_aspect_ratio, self._max_side)
        take(self._shown.time - self._begin_s, self._image)
