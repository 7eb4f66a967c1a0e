import itertools

import pytest

from diffaudio.corpus.prepare.segments import Plan
from diffaudio.corpus.prepare.sources import Segment


def taken(plan: Plan, most: int = 9) -> list[tuple[float, float]]:
    spans = []
    while plan.next and len(spans) < most:
        spans.append((plan.next.start_s, plan.next.end_s))
        plan.advance()
    return spans


def test_clips_follow_one_another_without_end_where_the_file_has_none():
    plan = Plan([Segment()], clip_s=2.0, hop_s=2.0, min_clip_s=0.5)
    assert plan.next and plan.next.is_first
    assert taken(plan, 3) == [(0, 2), (2, 4), (4, 6)]


@pytest.mark.parametrize(
    ("end_s", "expected"),
    [
        (5.0, [(0, 2), (2, 4), (4, 5)]),
        (4.4, [(0, 2), (2, 4)]),  # the rest is too short
        (0.1, [(0, 0.1)]),  # as a whole: to be dropped for it
    ],
)
def test_a_segment_ends_its_clips(end_s, expected):
    assert taken(Plan([Segment(0, end_s)], 2.0, 2.0, 0.5)) == expected


def test_clips_overlap_or_leave_gaps_as_the_hop_says():
    assert taken(Plan([Segment(0, 4.0)], 2.0, 1.0, 0.5)) == [(0, 2), (1, 3), (2, 4), (3, 4)]
    assert taken(Plan([Segment(1, 8)], 2.0, 3.0, 0.5)) == [(1, 3), (4, 6), (7, 8)]


def test_segments_come_one_after_the_other_with_what_they_are_of():
    segments = [Segment(0, 3, "a dog"), Segment(10, 11, "a cat")]
    plan = Plan(segments, 2.0, 2.0, 0.5)
    captions = []
    while plan.next:
        captions.append((plan.next.start_s, plan.next.segment.caption, plan.next.is_first))
        plan.advance()
    assert captions == [(0, "a dog", True), (2, "a dog", False), (10, "a cat", True)]


def test_a_gap_of_a_million_hours_is_passed_over_at_once():
    plan = Plan([Segment()], 2.0, 1.5, 0.5)
    plan.advance()
    assert plan.pass_over(3.6e9) == [(1.5, 3.6e9)]
    assert plan.next and plan.next.end_s > 3.6e9 >= plan.next.end_s - 1.5
    assert plan.pass_over(3.6e9) == []


@pytest.mark.parametrize("time_s", [0.0, 1.9, 2.0, 3.4, 3.5, 5.0, 6.2, 100.0])
def test_passing_over_is_the_same_as_going_on_clip_by_clip(time_s):
    segments = [Segment(0, 4), Segment(5, 6), Segment(7)]
    slow, fast = (Plan(segments, 2.0, 1.5, 0.5) for _ in range(2))
    while slow.next and slow.next.end_s <= time_s:
        slow.advance()
    fast.pass_over(time_s)
    assert taken(fast) == taken(slow)


def test_segments_that_nothing_was_taken_of_are_told():
    segments = [Segment(0, 4), Segment(5, 6), Segment(7)]
    plan = Plan(segments, 2.0, 2.0, 0.5)
    assert [stretch.start_s for stretch in plan.not_begun()] == [0, 5, 7]
    for expected in ([5, 7], [5, 7], [7], [], []):
        plan.advance()
        assert [stretch.start_s for stretch in plan.not_begun()] == expected
    assert list(itertools.islice(taken(plan), 2)) == [(11, 13), (13, 15)]
