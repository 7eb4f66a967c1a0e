"""Correcting wrong timestamps as packets are read, before anything is decoded.

    restart   files joined end to end: the stamps of every stream begin again, and are shifted to follow the ones before
    wrap      program and transport streams count time in 33 bits, which wrap around after 26.5 hours
    false     AVI headers that misstate the rate of the sound: its frames are counted instead
    raw       streams without a container have no stamps; FFmpeg makes them up from the rate of the first frame, which
              may change: each frame follows the one before

Containers that keep an index of all their packets (MP4, Matroska) have neither.
"""

import statistics
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["Timestamps", "can_be_wrong"]

UNINDEXED = ("mpeg", "mpegts", "flv", "ogg", "avi", "asf", "nsv", "rm")
RAW = ("aac", "ac3", "amr", "dts", "eac3", "loas", "mlp", "mp3", "truehd")
RESTART_S = 0.5  # decoding timestamps never go back within a recording, and rounding errors are smaller than this
UNORDERED_S = 3.0  # presentation timestamps do, because frames are reordered
WRAP_S = 2**33 / 90_000
MAX_LOOKAHEAD = 500  # packets held back to tell a restart from a single wrong stamp
NUM_COUNTED = 16  # packets of audio whose stamps are compared with their number of samples


def can_be_wrong(format_name: str) -> bool:
    """Whether files of a container format, named as FFmpeg names it, need `Timestamps`."""
    return format_name in (*UNINDEXED, *RAW)


class _Stream:
    def __init__(self, stream: Any, is_avi: bool) -> None:
        self.time_base = float(stream.time_base)
        self.part = 0  # how often its stamps have begun again
        self.last_s: float | None = None  # decoding time of the packet before, as stamped
        context = stream.codec_context
        rate = getattr(context, "sample_rate", 0) if stream.type == "audio" and is_avi else 0
        self.frame_s: float | None = context.frame_size / rate if rate and context.frame_size else None
        self.stamps: list[float] = []
        self.counted = 0
        self.is_false = False


class Timestamps:
    """Rewrites the stamps of packets in the order of the file.

    Attributes:
        restarted: whether stamps have begun again so far.
        is_raw: whether the stamps are made up by FFmpeg.
    """

    def __init__(self, container: Any) -> None:
        is_avi = container.format.name == "avi"
        self._streams = {stream.index: _Stream(stream, is_avi) for stream in container.streams}
        self.is_raw = container.format.name in RAW
        self._wraps = container.format.name in ("mpeg", "mpegts")
        self._near_s = (container.start_time or 0) / 1e6  # an unwrapped stamp of the packets just read
        self._offsets_s = [0.0]  # of each part
        self._end_s = float("-inf")  # of what has been read, after rewriting

    @property
    def restarted(self) -> bool:
        return len(self._offsets_s) > 1

    @property
    def is_false(self) -> bool:
        """Whether the stamps of a stream turned out to be meaningless."""
        return any(stream.is_false for stream in self._streams.values())

    def corrected(self, packets: Iterable[Any]) -> Iterator[Any]:
        """The same packets, with stamps that never begin again."""
        if self.is_raw:
            yield from self._in_sequence(packets)
            return
        held: deque[Any] = deque()  # since a packet whose stamp goes back
        for packet in packets:
            if self._wraps:
                self._unwrap(packet)
            if held:
                held.append(packet)
                is_confirmed = self._goes_back(packet) if packet.stream_index == held[0].stream_index else None
                if is_confirmed is None and len(held) < MAX_LOOKAHEAD:
                    continue
                yield from self._release(held, is_restart=is_confirmed is not False)
            elif self._goes_back(packet):
                held.append(packet)
            else:
                yield self._rewritten(packet)
        yield from self._release(held, is_restart=False)

    @staticmethod
    def _in_sequence(packets: Iterable[Any]) -> Iterator[Any]:
        """Without stamps after the first packet."""
        for count, packet in enumerate(packets):
            if count:
                packet.pts = packet.dts = None
            yield packet

    def _unwrap(self, packet: Any) -> None:
        """Shift the stamps of a packet by multiples of the wrap-around, close to those before it."""
        stamp, time_base = packet.pts if packet.dts is None else packet.dts, float(packet.time_base)
        if stamp is None:
            return
        wraps = round((stamp * time_base - self._near_s) / WRAP_S)
        if wraps:
            ticks = round(wraps * WRAP_S / time_base)
            packet.dts = None if packet.dts is None else packet.dts - ticks
            packet.pts = None if packet.pts is None else packet.pts - ticks
        self._near_s = stamp * time_base - wraps * WRAP_S

    def _release(self, held: deque[Any], *, is_restart: bool) -> Iterator[Any]:
        if held and is_restart:
            self._begin_part(held[0])
        elif held:
            held[0].pts = held[0].dts = None  # a single wrong stamp: the packet follows the one before
        while held:
            packet = held.popleft()
            if self._goes_back(packet):
                self._begin_part(packet)
            yield self._rewritten(packet)

    def _goes_back(self, packet: Any) -> bool | None:
        """None where the packet does not say."""
        stream = self._streams[packet.stream_index]
        stamp, allowed_s = (packet.pts, UNORDERED_S) if packet.dts is None else (packet.dts, RESTART_S)
        if stamp is None:
            return None
        return stream.last_s is not None and stamp * stream.time_base < stream.last_s - allowed_s

    def _begin_part(self, packet: Any) -> None:
        stream = self._streams[packet.stream_index]
        stream.part += 1
        stream.last_s = None
        if stream.part == len(self._offsets_s):
            first = packet.dts if packet.pts is None else packet.pts
            self._offsets_s.append(self._end_s - first * stream.time_base)

    def _rewritten(self, packet: Any) -> Any:
        stream = self._streams[packet.stream_index]
        stamp = packet.pts if packet.dts is None else packet.dts
        if stamp is not None:
            stream.last_s = stamp * stream.time_base
        if stream.frame_s is not None and packet.size:
            self._count(packet, stream)
        if stream.part:
            offset = round(self._offsets_s[stream.part] / stream.time_base)
            packet.dts = None if packet.dts is None else packet.dts + offset
            packet.pts = None if packet.pts is None else packet.pts + offset
        shown = packet.dts if packet.pts is None else packet.pts
        if shown is not None:
            self._end_s = max(self._end_s, (shown + (packet.duration or 0)) * stream.time_base)
        return packet

    def _count(self, packet: Any, stream: _Stream) -> None:
        """Stamp the sound of an AVI file by its frames once their stamps are found to be far off."""
        assert stream.frame_s is not None
        if not stream.is_false and len(stream.stamps) < NUM_COUNTED and packet.pts is not None:
            stream.stamps.append(packet.pts * stream.time_base)
            if len(stream.stamps) == NUM_COUNTED:
                step_s = statistics.median(b - a for a, b in zip(stream.stamps, stream.stamps[1:], strict=False))
                mean_s = (stream.stamps[-1] - stream.stamps[0]) / (NUM_COUNTED - 1)
                is_near = any(0.5 < found_s / stream.frame_s < 2 for found_s in (step_s, mean_s))
                stream.is_false = not is_near
        if stream.is_false and packet.pts is not None:
            packet.pts = packet.dts = round((stream.stamps[0] + stream.counted * stream.frame_s) / stream.time_base)
        stream.counted += 1
