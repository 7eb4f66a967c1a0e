import itertools

import pytest

from diffaudio.corpus.prepare.segments import ClipPlan
from diffaudio.corpus.prepare.sources import Segment


def spans_of(plan: ClipPlan, max_spans: int = 9) -> list[tuple[float, float]]:
    spans = []
    while plan.next and len(spans) < max_spans:
        spans.append((plan.next.start_s, plan.next.end_s))
        plan.advance()
    return spans


def test_clips_follow_one_another_without_end_where_the_file_has_none():
    plan = ClipPlan([Segment()], clip_s=2.0, hop_s=2.0, min_clip_s=0.5)
    assert plan.next and plan.next.is_first
    assert spans_of(plan, 3) == [(0, 2), (2, 4), (4, 6)]


@pytest.mark.parametrize(
    ("end_s", "expected"),
    [
        (5.0, [(0, 2), (2, 4), (4, 5)]),
        (4.4, [(0, 2), (2, 4)]),  # the rest is too short
        (0.1, [(0, 0.1)]),  # as a whole: to be dropped for it
    ],
)
def test_a_segment_ends_its_clips(end_s, expected):
    assert spans_of(ClipPlan([Segment(0, end_s)], 2.0, 2.0, 0.5)) == expected


def test_clips_overlap_or_leave_gaps_as_the_hop_says():
    assert spans_of(ClipPlan([Segment(0, 4.0)], 2.0, 1.0, 0.5)) == [(0, 2), (1, 3), (2, 4), (3, 4)]
    assert spans_of(ClipPlan([Segment(1, 8)], 2.0, 3.0, 0.5)) == [(1, 3), (4, 6), (7, 8)]


def test_segments_come_one_after_the_other_with_their_captions():
    segments = [Segment(0, 3, "a dog"), Segment(10, 11, "a cat")]
    plan = ClipPlan(segments, 2.0, 2.0, 0.5)
    captions = []
    while plan.next:
        captions.append((plan.next.start_s, plan.next.segment.caption, plan.next.is_first))
        plan.advance()
    assert captions == [(0, "a dog", True), (2, "a dog", False), (10, "a cat", True)]


def test_a_gap_of_a_million_hours_is_skipped_at_once():
    plan = ClipPlan([Segment()], 2.0, 1.5, 0.5)
    plan.advance()
    assert plan.skip_to(3.6e9) == [(1.5, 3.6e9)]
    assert plan.next and plan.next.end_s > 3.6e9 >= plan.next.end_s - 1.5
    assert plan.skip_to(3.6e9) == []


@pytest.mark.parametrize("time_s", [0.0, 1.9, 2.0, 3.4, 3.5, 5.0, 6.2, 100.0])
def test_skipping_is_the_same_as_advancing_window_by_window(time_s):
    segments = [Segment(0, 4), Segment(5, 6), Segment(7)]
    slow, fast = (ClipPlan(segments, 2.0, 1.5, 0.5) for _ in range(2))
    while slow.next and slow.next.end_s <= time_s:
        slow.advance()
    fast.skip_to(time_s)
    assert spans_of(fast) == spans_of(slow)


def test_segments_in_which_no_clip_was_begun_are_known():
    segments = [Segment(0, 4), Segment(5, 6), Segment(7)]
    plan = ClipPlan(segments, 2.0, 2.0, 0.5)
    assert [window.start_s for window in plan.segments_not_begun()] == [0, 5, 7]
    for expected in ([5, 7], [5, 7], [7], [], []):
        plan.advance()
        assert [window.start_s for window in plan.segments_not_begun()] == expected
    assert list(itertools.islice(spans_of(plan), 2)) == [(11, 13), (13, 15)]
