"""Where clips lie in a file: a window of `clip_s` every `hop_s`, within each segment."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diffaudio.corpus.prepare.sources import Segment

__all__ = ["ClipPlan", "ClipWindow"]


@dataclass(frozen=True)
class ClipWindow:
    """Where a clip is wanted.

    Attributes:
        end_s: where it ends, if the sound is long enough.
        is_first: whether it is the first of its segment.
    """

    segment: Segment
    start_s: float
    end_s: float
    is_first: bool


class ClipPlan:
    """The windows of a file, one after the other in order of time; only its end tells how many there are.

    Attributes:
        next: the next window; None after the last.
    """

    def __init__(self, segments: Sequence[Segment], clip_s: float, hop_s: float, min_clip_s: float) -> None:
        self._segments, self._clip_s, self._hop_s, self._min_clip_s = segments, clip_s, hop_s, min_clip_s
        self._segment = self._index = 0
        self.next: ClipWindow | None = self._window()

    def advance(self) -> None:
        """Advance to the next window."""
        self._go_to(self._index + 1)

    def skip_to(self, time_s: float) -> list[tuple[float, float]]:
        """Advance to the first window that ends after a time.

        Returns:
            Start and end of what was skipped, segment by segment.
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

    def segments_not_begun(self) -> list[ClipWindow]:
        """The first windows of the segments in which no clip was begun."""
        rest = [] if self.next is None else [self.next] if self.next.is_first else []
        if self.next:
            rest += [self._at(segment, 0) for segment in self._segments[self._segment + 1 :]]
        return rest

    def _go_to(self, index: int) -> None:
        self._index = index
        self.next = self._window()
        if self.next is None and self._segment + 1 < len(self._segments):
            self._segment, self._index = self._segment + 1, 0
            self.next = self._window()

    def _window(self) -> ClipWindow | None:
        """The window at the current position; None where the segment is too short for one."""
        window = self._at(self._segments[self._segment], self._index)
        return window if window.is_first or window.end_s - window.start_s >= self._min_clip_s else None

    def _at(self, segment: Segment, index: int) -> ClipWindow:
        start_s = segment.start_s + index * self._hop_s
        end_s = start_s + self._clip_s
        return ClipWindow(segment, start_s, end_s if segment.end_s is None else min(end_s, segment.end_s), index == 0)
