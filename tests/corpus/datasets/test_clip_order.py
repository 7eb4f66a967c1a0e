from collections import Counter

import numpy as np
import pytest

from diffaudio.corpus.datasets.clip_order import ClipOrder


@pytest.mark.parametrize("size", [1, 2, 3, 10, 97, 1000])
def test_an_epoch_is_the_permutation_that_numpy_draws_for_seed_corpus_and_epoch(size):
    order = ClipOrder((size,), seed=5)
    for epoch in (0, 1, 7):
        expected = np.random.default_rng([5, 0, epoch]).permutation(size)
        assert np.array_equal(order.clips(epoch * size, size), expected)


def test_a_run_that_resumes_in_any_epoch_continues_with_the_same_clips():
    whole = ClipOrder((50, 7), (3.0, 1.0), seed=2).clips(0, 1000)
    for first in (0, 1, 49, 66, 500, 900):
        assert np.array_equal(ClipOrder((50, 7), (3.0, 1.0), seed=2).clips(first, 100), whole[first : first + 100])
    again = ClipOrder((50, 7), (3.0, 1.0), seed=2)
    for first in (900, 0, 500, 30):  # back and forth: what is cached is not part of the answer
        assert np.array_equal(again.clips(first, 100), whole[first : first + 100])


def test_an_epoch_is_drawn_once_and_takes_8_bytes_a_clip(monkeypatch):
    drawn, real = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or real(seed))
    order = ClipOrder((1000,))
    for first in range(0, 3000, 30):
        order.clips(first, 30)
    assert drawn == [[0, 0, 0], [0, 0, 1], [0, 0, 2]]
    assert sum(epoch.nbytes for epoch in order._epochs[0].values()) <= 2 * 8 * 1000


def test_each_clip_stands_everywhere_and_behind_every_other_equally_often():
    passes = ClipOrder((50,)).clips(0, 50 * 4000).reshape(4000, 50)
    followed = (passes[:, 1] - passes[:, 0]) % 50
    for seen, values in ((passes[:, 0], 50), (passes[:, 49], 50), (followed - 1, 49)):
        counts, expected = np.bincount(seen, minlength=values), 4000 / values
        assert ((counts - expected) ** 2 / expected).sum() < 1.8 * values  # chi squared; its mean is `values` - 1


def test_each_pass_meets_every_clip_once_and_in_another_order():
    passes = ClipOrder((7,), seed=3).clips(0, 7 * 200).reshape(200, 7)
    assert (np.sort(passes, axis=1) == np.arange(7)).all()
    assert len({tuple(order) for order in passes.tolist()}) > 180
    assert not np.array_equal(passes, ClipOrder((7,), seed=4).clips(0, 7 * 200).reshape(200, 7))


@pytest.mark.parametrize("weights", [(), (3.0, 1.0)])
def test_a_place_holds_the_same_clip_however_the_run_is_cut_into_batches(weights):
    order = ClipOrder((5, 8), weights, seed=1)
    whole = order.clips(0, 2100)
    assert np.array_equal(np.concatenate([order.clips(first, 7) for first in range(0, 2100, 7)]), whole)
    assert np.array_equal(ClipOrder((5, 8), weights, seed=1).clips(1020, 10), whole[1020:1030])  # across two blocks


def test_without_weights_several_corpora_are_as_one():
    assert np.array_equal(ClipOrder((5, 8), seed=2).clips(0, 50), ClipOrder((13,), seed=2).clips(0, 50))


def test_corpora_are_mixed_by_their_weights_and_each_is_gone_through_whole():
    order = ClipOrder((5, 1000, 3), (2.0, 5.0, 1.0))
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
    clips = ClipOrder((10, 10, 10), (1.0, 0.1, 0.3)).clips(0, 14 * 1024)
    assert np.bincount(clips // 10).tolist() == [10240, 1024, 3072]
    assert all(count in (731, 732) for count in [np.bincount(clips[:1024] // 10)[0]])


def test_processes_meet_what_one_would_have_met():
    order, seen = ClipOrder((11,)), Counter()
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
        ClipOrder((3, 3), weights)
