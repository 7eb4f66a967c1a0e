"""Which stretches of a file become clips: every `hop_s` one of `clip_s`, within each segment."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diffaudio.corpus.prepare.sources import Segment

__all__ = ["Plan", "Stretch"]


@dataclass(frozen=True)
class Stretch:
    """Where a clip is wanted.

    Attributes:
        end_s: where it ends if the sound goes on so long.
        is_first: of its segment.
    """

    segment: Segment
    start_s: float
    end_s: float
    is_first: bool


class Plan:
    """The stretches of a file in order of time, one after the other: nobody knows how many before the file ends.

    Attributes:
        next: the stretch that comes next; None after the last.
    """

    def __init__(self, segments: Sequence[Segment], clip_s: float, hop_s: float, min_clip_s: float) -> None:
        self._segments, self._clip_s, self._hop_s, self._min_clip_s = segments, clip_s, hop_s, min_clip_s
        self._segment = self._index = 0
        self.next: Stretch | None = self._stretch()

    def advance(self) -> None:
        """Go on to the next stretch."""
        self._go_to(self._index + 1)

    def pass_over(self, time_s: float) -> list[tuple[float, float]]:
        """Go on to the first stretch that ends after a time.

        Returns:
            Beginning and end of what was passed over, by segments.
        """
        passed = []
        while self.next and self.next.end_s <= time_s:
            start_s, segment = self.next.start_s, self.next.segment
            over = math.floor((time_s - self._clip_s - segment.start_s) / self._hop_s) - self._index
            end_s = time_s if segment.end_s is None else min(time_s, segment.end_s)
            self._go_to(self._index + max(1, over))
            while self.next and self.next.segment is segment and self.next.end_s <= time_s:
                self.advance()
            passed.append((start_s, end_s))
        return passed

    def not_begun(self) -> list[Stretch]:
        """The first stretches of segments that nothing was taken of."""
        rest = [] if self.next is None else [self.next] if self.next.is_first else []
        if self.next:
            rest += [self._at(segment, 0) for segment in self._segments[self._segment + 1 :]]
        return rest

    def _go_to(self, index: int) -> None:
        self._index = index
        self.next = self._stretch()
        if self.next is None and self._segment + 1 < len(self._segments):
            self._segment, self._index = self._segment + 1, 0
            self.next = self._stretch()

    def _stretch(self) -> Stretch | None:
        """What begins at the current position, None where the segment is too short for it."""
        stretch = self._at(self._segments[self._segment], self._index)
        return stretch if stretch.is_first or stretch.end_s - stretch.start_s >= self._min_clip_s else None

    def _at(self, segment: Segment, index: int) -> Stretch:
        start_s = segment.start_s + index * self._hop_s
        end_s = start_s + self._clip_s
        return Stretch(segment, start_s, end_s if segment.end_s is None else min(end_s, segment.end_s), index == 0)
