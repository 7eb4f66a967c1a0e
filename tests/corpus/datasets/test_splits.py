import pytest

from diffaudio.corpus.datasets.splits import is_held_out

SOURCES = [f"videos/{number}.mp4" for number in range(2000)]


def test_a_share_of_the_sources_is_held_out():
    assert sum(is_held_out(source, 0.1) for source in SOURCES) == pytest.approx(200, abs=40)
    assert not any(is_held_out(source, 0.0) for source in SOURCES)
    assert all(is_held_out(source, 1.0) for source in SOURCES)


def test_what_a_small_share_holds_out_a_larger_one_does_too():
    assert all(is_held_out(source, 0.3) for source in SOURCES if is_held_out(source, 0.1))


def test_the_side_of_a_source_is_that_of_its_name_for_ever():
    names = ["a.mp4", "b.mp4", "d.webm", "e.webm", "ä/c.mkv"]
    assert [is_held_out(name, 0.5) for name in names] == [False, False, True, True, False]


def test_more_than_all_cannot_be_held_out():
    with pytest.raises(ValueError, match=r"1.5 of the sources cannot be held out; give a number from 0 to 1"):
        is_held_out("a.mp4", 1.5)
