from collections import Counter

import numpy as np
import pytest

from diffaudio.corpus.datasets.sampler import Order, permuted


@pytest.mark.parametrize("size", [1, 2, 3, 10, 97, 1000])
def test_every_place_goes_to_another_one(size):
    for key in range(3):
        assert sorted(permuted(np.arange(size), size, key)) == list(range(size))


def test_a_billion_clips_take_no_list():
    places = np.arange(10**9 - 1000, 10**9)
    moved = permuted(places, 10**9, 0)
    assert len(set(moved.tolist())) == 1000 and moved.min() >= 0 and moved.max() < 10**9
    assert 0.45e9 < moved.mean() < 0.55e9


def test_each_clip_stands_everywhere_and_behind_every_other_equally_often():
    passes = Order((50,)).clips(0, 50 * 4000).reshape(4000, 50)
    followed = (passes[:, 1] - passes[:, 0]) % 50
    for seen, values in ((passes[:, 0], 50), (passes[:, 49], 50), (followed - 1, 49)):
        counts, expected = np.bincount(seen, minlength=values), 4000 / values
        assert ((counts - expected) ** 2 / expected).sum() < 1.8 * values  # chi squared; its mean is `values` - 1


def test_each_pass_meets_every_clip_once_and_in_another_order():
    passes = Order((7,), seed=3).clips(0, 7 * 200).reshape(200, 7)
    assert (np.sort(passes, axis=1) == np.arange(7)).all()
    assert len({tuple(order) for order in passes.tolist()}) > 180
    assert not np.array_equal(passes, Order((7,), seed=4).clips(0, 7 * 200).reshape(200, 7))


@pytest.mark.parametrize("weights", [(), (3.0, 1.0)])
def test_a_place_holds_the_same_clip_however_the_run_is_cut_into_batches(weights):
    order = Order((5, 8), weights, seed=1)
    whole = order.clips(0, 2100)
    assert np.array_equal(np.concatenate([order.clips(first, 7) for first in range(0, 2100, 7)]), whole)
    assert np.array_equal(Order((5, 8), weights, seed=1).clips(1020, 10), whole[1020:1030])  # across two blocks


def test_without_weights_several_corpora_are_as_one():
    assert np.array_equal(Order((5, 8), seed=2).clips(0, 50), Order((13,), seed=2).clips(0, 50))


def test_corpora_are_mixed_by_their_weights_and_each_is_gone_through_whole():
    order = Order((5, 1000, 3), (2.0, 5.0, 1.0))
    clips = order.clips(0, 8 * 1024)
    corpora = np.searchsorted([5, 1005], clips, side="right")
    assert np.bincount(corpora).tolist() == [2 * 1024, 5 * 1024, 1024]
    in_batches = np.stack([np.bincount(batch, minlength=3) for batch in corpora.reshape(-1, 32)])
    assert (abs(in_batches - [8, 20, 4]) <= 2).all()  # spread evenly
    for corpus, (first, size) in enumerate([(0, 5), (5, 1000), (1005, 3)]):
        passes = clips[corpora == corpus]
        passes = passes[: len(passes) // size * size].reshape(-1, size)
        assert (np.sort(passes, axis=1) == np.arange(first, first + size)).all()


def test_weights_that_do_not_come_out_even_hold_in_the_long_run():
    clips = Order((10, 10, 10), (1.0, 0.1, 0.3)).clips(0, 14 * 1024)
    assert np.bincount(clips // 10).tolist() == [10240, 1024, 3072]
    assert all(count in (731, 732) for count in [np.bincount(clips[:1024] // 10)[0]])


def test_processes_meet_what_one_would_have_met():
    order, seen = Order((11,)), Counter()
    for step in range(2):
        for process in range(3):
            seen.update(order.clips((step * 3 + process) * 4, 4).tolist())
    assert seen == Counter(order.clips(0, 24).tolist())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0,), "weights: 1 were given for 2 corpora; give one for each"),
        ((1.0, 0.0), "weights: 0 is not positive, or less than a 1024th of their sum; leave that corpus out"),
        ((1.0, -1.0), "weights: -1 is not positive"),
        ((1.0, float("nan")), "weights: nan is not positive"),
        ((1.0, float("inf")), "weights: inf is not positive"),
        ((5000.0, 1.0), "weights: 1 is not positive, or less than a 1024th of their sum"),
    ],
)
def test_weights_that_mix_nothing_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        Order((3, 3), weights)
