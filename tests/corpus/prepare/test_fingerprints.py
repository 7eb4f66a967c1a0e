import tracemalloc

import numpy as np
import pytest
from media import noise, tone, write_media

from diffaudio.corpus.prepare.fingerprints import VERSION, distance, find_duplicates, fingerprint
from diffaudio.media.audio_decoder import decode_audio

RATE = 16000


def events(seed, *, duration_s=4.0, rate=RATE):
    """Notes and knocks over soft noise, as a recording has them: [1, samples]."""
    rng = np.random.default_rng(seed)
    x = noise(duration_s, rate, gain=0.005, seed=seed)
    t = np.arange(x.shape[1]) / rate
    for start_s in np.sort(rng.uniform(0, duration_s, 10)):
        pitch, decay = rng.uniform(200, 3000), rng.uniform(5, 20)
        after = np.maximum(t - start_s, 0)
        x += 0.2 * (t > start_s) * np.exp(-decay * after) * np.sin(2 * np.pi * pitch * after)
    return x.astype(np.float32)


def random_words(rng, steps=120, *, sure=0xFFFF):
    """Signs that change as slowly as those of sounds do, in the lower half; all bits of `sure` are."""
    signs = np.repeat(rng.integers(0, 1 << 16, steps // 4 + 1), 4)[:steps]
    return (signs | sure << 16).astype("<u4")


def as_fingerprint(words):
    return VERSION + words.astype("<u4").tobytes()


def damaged(words, rng, fraction):
    flips = (rng.random((len(words), 16)) < fraction) @ (1 << np.arange(16))
    return words ^ flips.astype("<u4")


@pytest.fixture(scope="module")
def recording():
    x = events(0)
    return x, fingerprint(x[0], RATE)


def test_a_fingerprint_takes_4_bytes_each_40_ms_and_less_than_a_kilobyte_for_10_s():
    assert len(fingerprint(noise(10, 24000)[0], 24000)) == 949
    assert len(fingerprint(noise(10, 48000)[0], 48000)) == 949
    assert fingerprint(noise(0.5, RATE)[0], RATE) == fingerprint(np.zeros(0, np.float32), RATE) == VERSION


def test_the_distance_is_the_share_of_bits_that_differ():
    words = random_words(np.random.default_rng(0))
    flipped = words.copy()
    flipped[:12] ^= 0xFF  # half the bits of a tenth of the steps
    assert distance(as_fingerprint(words), as_fingerprint(flipped)) == pytest.approx(0.05)
    assert distance(as_fingerprint(words), as_fingerprint(words)) == 0


def test_bits_that_are_not_sure_do_not_count():
    rng = np.random.default_rng(0)
    words = random_words(rng, sure=0x00FF)
    flipped = words ^ np.uint32(0xFF00)
    assert distance(as_fingerprint(words), as_fingerprint(flipped)) == 0


def test_what_only_one_of_two_has_counts_as_half_different():
    """Cosine of one against the first n of N steps of it: sqrt(n / N)."""
    words = random_words(np.random.default_rng(0))
    expected = (1 - 0.75**0.5) / 2
    assert distance(as_fingerprint(words), as_fingerprint(words[:90])) == pytest.approx(expected)
    assert distance(as_fingerprint(words[30:]), as_fingerprint(words)) == pytest.approx(expected)


def test_too_few_bits_prove_nothing():
    words = random_words(np.random.default_rng(0), steps=10, sure=0x00FF)  # 80 bits: cosine 1, significance 8.9
    assert distance(as_fingerprint(words), as_fingerprint(words)) == 0.5
    words = random_words(np.random.default_rng(0), steps=11, sure=0x00FF)
    assert distance(as_fingerprint(words), as_fingerprint(words)) == 0


@pytest.mark.parametrize(("suffix", "rate"), [(".mp4", 44100), (".webm", 48000), (".avi", 44100)])
def test_a_fingerprint_survives_lossy_coding(tmp_path, suffix, rate):
    """AAC, Opus and MP3, softer, and in two channels."""
    sound = events(0, rate=rate)
    coded, rate = decode_audio(write_media(tmp_path / f"a{suffix}", sound=np.tile(0.3 * sound, (2, 1))))
    prints = [fingerprint(sound[0], rate), fingerprint(np.asarray(coded).mean(axis=0), rate)]
    assert distance(*prints) < 0.1
    assert find_duplicates(prints, ["a", "b"]) == [None, 0]


def test_a_fingerprint_survives_gain_shift_and_sample_rate(recording):
    x, original = recording
    halved = x[0, : x.shape[1] // 2 * 2].reshape(-1, 2).mean(axis=1)
    assert fingerprint(0.25 * x[0], RATE) == original
    assert distance(original, fingerprint(halved, RATE // 2)) < 0.05
    later = np.concatenate([np.zeros(round(0.1 * RATE), np.float32), x[0]])
    assert distance(original, fingerprint(later, RATE)) < 0.1
    for other in (fingerprint(halved, RATE // 2), fingerprint(later, RATE)):
        assert find_duplicates([original, other], ["a", "b"]) == [None, 0]


def test_different_recordings_are_far_apart(recording):
    _, original = recording
    assert distance(original, fingerprint(events(1)[0], RATE)) > 0.35


def test_steady_sounds_are_no_duplicates_of_one_another():
    t = np.arange(4 * RATE) / RATE
    hum = [sum(np.sin(2 * np.pi * 50 * k * t + phase) / k for k in range(1, 60)) for phase in (0, 1)]
    tones = [tone(4, RATE, frequency=440, gain=gain)[0] for gain in (0.3, 0.1)]
    hiss = [noise(4, RATE, seed=seed)[0] for seed in (0, 1, 2)]
    tone_in_hiss = [tones[0] + noise(4, RATE, gain=0.003, seed=seed)[0] for seed in (3, 4)]
    silence = [np.zeros(4 * RATE, np.float32)] * 2
    sounds = [*hum, *tones, *hiss, *tone_in_hiss, *silence]
    prints = [fingerprint(x, RATE) for x in sounds]
    assert find_duplicates(prints, list(map(str, range(len(prints))))) == [None] * len(prints)


def test_ticks_of_two_clocks_are_no_duplicates_unless_one_is_a_copy():
    """Each ticks once a second; half the bits of their ticks agree by chance, and some more where they are alike."""
    rng = np.random.default_rng(0)
    tick = random_words(rng, steps=25)
    other = as_fingerprint(np.tile(damaged(tick, rng, 0.1), 8))
    clock = as_fingerprint(np.tile(tick, 8))
    assert distance(clock, other) < 0.14
    copy = as_fingerprint(damaged(np.tile(tick, 8), rng, 0.02))
    assert find_duplicates([clock, other, copy], ["a", "b", "c"]) == [None, None, 0]


def test_a_repeated_hiss_is_a_duplicate_all_the_same():
    a = fingerprint(noise(4, RATE)[0], RATE)
    assert find_duplicates([a, a], ["1", "2"]) == [None, 0]


def test_only_the_first_of_equal_sounds_of_different_sources_is_kept():
    a, b = (fingerprint(events(seed)[0], RATE) for seed in (0, 1))
    assert find_duplicates([a, b, a, b, a, b], ["1", "2", "3", "4", "1", "1"]) == [None, None, 0, 1, None, 1]
    assert find_duplicates([], []) == []


def test_the_limit_is_the_distance():
    rng = np.random.default_rng(0)
    words = random_words(rng)
    pair = [as_fingerprint(words), as_fingerprint(damaged(words, rng, 0.05))]
    far = distance(*pair)
    assert 0.03 < far < 0.07
    assert find_duplicates(pair, ["a", "b"], max_distance=far + 0.001) == [None, 0]
    assert find_duplicates(pair, ["a", "b"], max_distance=far - 0.001) == [None, None]


def test_a_hundred_copies_of_one_sound_are_all_found():
    rng = np.random.default_rng(0)
    words = random_words(rng)
    prints = [as_fingerprint(damaged(words, rng, 0.02)) for _ in range(100)]
    assert find_duplicates(prints, list(map(str, range(100)))) == [None] + [0] * 99


def test_the_clips_that_remain_do_not_depend_on_which_duplicates_were_removed_before():
    """A run that was killed while it removed duplicates comes to the same end."""
    rng = np.random.default_rng(0)
    words = [random_words(rng)]
    for _ in range(150):  # copies, and copies of copies, until they are too far from the first
        words.append(damaged(words[rng.integers(len(words))], rng, 0.06) if rng.random() < 0.7 else random_words(rng))
    prints, sources = [as_fingerprint(one) for one in words], [str(i % 100) for i in range(len(words))]
    found = find_duplicates(prints, sources)
    kept = {i for i, other in enumerate(found) if other is None}
    assert 30 < len(kept) < 120
    assert all(other is None or (other in kept and other < i) for i, other in enumerate(found))
    for share in (0, 0.5, 1):
        left = [i for i in range(len(words)) if i in kept or rng.random() < share]
        again = find_duplicates([prints[i] for i in left], [sources[i] for i in left])
        assert {left[i] for i, other in enumerate(again) if other is None} == kept


def test_damaged_fingerprints_and_those_of_another_version_are_refused():
    for data in (b"", b"\x00", VERSION + b"abc"):
        with pytest.raises(ValueError, match="a fingerprint is damaged or of another version; prepare the corpus"):
            find_duplicates([data], ["1"])
    with pytest.raises(ValueError, match="1 fingerprints and 2 sources; there is one of each a clip"):
        find_duplicates([VERSION], ["1", "2"])


def test_the_memory_of_long_clips_does_not_grow_with_the_square_of_their_length():
    words = random_words(np.random.default_rng(0), steps=4000)  # of 160 s; 64 MB for all shifts at once, several times
    prints = [as_fingerprint(words), as_fingerprint(words)]
    tracemalloc.start()
    try:
        assert find_duplicates(prints, ["a", "b"]) == [None, 0]
        assert tracemalloc.get_traced_memory()[1] < 45 << 20
    finally:
        tracemalloc.stop()
