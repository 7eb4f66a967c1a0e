"""What a media file does to its decoder costs an error that names the file."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from media import noise, numbered_pictures, tone, write_huge_picture, write_media

from diffaudio.media import subprocess_decoding
from diffaudio.media.audio import read_audio
from diffaudio.media.audio_decoder import decode_audio
from diffaudio.media.container import MediaError
from diffaudio.media.images import read_video
from diffaudio.media.subprocess_decoding import decode

AUDIO = {"start_s": 0.0, "duration_s": None, "channels": None}


@pytest.fixture
def children(monkeypatch):
    """Children of this test alone."""
    mine = subprocess_decoding._Children()
    monkeypatch.setattr(subprocess_decoding, "_children", mine)
    yield mine
    mine.end()


@pytest.fixture
def sound(tmp_path) -> Path:
    return write_media(tmp_path / "a.mkv", sound=noise(5, 8000, channels=2))


def test_a_child_gives_what_decoding_in_this_process_gives(children, sound):
    chunks = list(decode("audio", sound, **AUDIO))
    x, rate = decode_audio(sound)
    assert {value for value, _ in chunks} == {rate}
    assert np.array_equal(np.concatenate([arrays[0] for _, arrays in chunks], axis=1), x)


def test_one_child_decodes_file_after_file(children, sound):
    list(decode("audio", sound, **AUDIO))
    (child,) = children._idle
    with pytest.raises(MediaError, match=r"none\.mkv: there is no such file"):
        list(decode("audio", sound.with_name("none.mkv"), **AUDIO))
    list(decode("audio", sound, **AUDIO))
    assert children._idle == [child]


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_decoder_that_dies_is_an_error_with_the_name_and_the_next_file_is_read(children, sound, number):
    stream = decode("audio", sound, **AUDIO)
    next(stream)
    child = stream.gi_frame.f_locals["child"]
    os.kill(child._process.pid, number)
    named = "the system killed" if number == signal.SIGKILL else number.name
    with pytest.raises(MediaError, match=rf"a\.mkv: .*{named}"):
        list(stream)
    assert len(list(decode("audio", sound, **AUDIO))) > 1


def test_a_decoder_that_never_ends_is_an_error_with_the_name(children, sound, monkeypatch):
    stream = decode("audio", sound, **AUDIO)
    next(stream)
    child = stream.gi_frame.f_locals["child"]
    os.kill(child._process.pid, signal.SIGSTOP)
    monkeypatch.setattr(subprocess_decoding, "TIMEOUT_S", 0.3)
    with pytest.raises(MediaError, match=r"a\.mkv: its decoder did not respond for"):
        list(stream)


def test_more_memory_than_a_decoder_may_have_is_an_error_with_the_name(children, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess_decoding, "MAX_MEMORY_MB", 300)
    path = write_huge_picture(tmp_path / "huge.mkv")
    with pytest.raises(MediaError, match=r"huge\.mkv: (decoding it takes more than 300 MB|no picture)"):
        read_video(path)


def test_a_stream_that_nobody_wants_to_its_end_leaves_no_child(children, sound):
    stream = decode("audio", sound, **AUDIO)
    next(stream)
    process = stream.gi_frame.f_locals["child"]._process
    stream.close()
    assert process.poll() is not None and children._idle == []


def test_threads_decode_at_the_same_time(children, sound):
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(sum(a[0].shape[1] for _, a in decode("audio", sound, **AUDIO))))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [40000] * 3 and 1 <= len(children._idle) <= 3


def test_a_bug_in_a_child_is_no_error_of_the_user(children, sound):
    with pytest.raises(RuntimeError, match="decoding failed in a child process(.|\n)*TypeError"):
        list(decode("audio", sound, nonsense=1))


def test_children_end_with_their_parent(sound):
    child = subprocess_decoding._Child()
    child._process.stdin.close()
    until = time.monotonic() + 20
    while child.is_alive and time.monotonic() < until:
        time.sleep(0.05)
    assert not child.is_alive
    child.end()


def test_relative_paths_follow_the_folder_of_the_caller(children, sound, monkeypatch):
    list(decode("audio", sound, **AUDIO))
    monkeypatch.chdir(sound.parent)
    assert list(decode("audio", Path("a.mkv"), **AUDIO))
    with pytest.raises(MediaError, match=r"^b\.mkv: there is no such file"):
        list(decode("audio", Path("b.mkv"), **AUDIO))


@pytest.mark.parametrize(
    ("suffix", "codec", "channels"), [(".mp4", None, 8), (".mkv", "wavpack", 8), (".mkv", "wavpack", 11)]
)
def test_eight_and_more_planar_channels_are_decoded_and_mixed(tmp_path, suffix, codec, channels):
    rate = 48000
    x = np.stack([tone(1, rate, frequency=300 + 100 * c)[0] for c in range(channels)])
    path = write_media(tmp_path / f"a{suffix}", sound=x, sound_codec=codec, rate=rate)
    raw, _ = decode_audio(path)
    assert raw.shape[0] == channels
    for channel in set(range(channels)) - {3}:  # the low-frequency channel of AAC
        peak = np.abs(np.fft.rfft(raw[channel, :rate])).argmax() * rate / len(raw[channel, :rate])
        assert peak == pytest.approx(300 + 100 * channel, abs=2)
    mixed, _ = read_audio(path, channels=2)
    assert mixed.shape[0] == 2 and 0.01 < mixed.abs().max() <= 1
    assert torch.isfinite(mixed).all()


def test_pictures_of_a_video_come_through(children, tmp_path):
    path = write_media(tmp_path / "a.mp4", pictures=numbered_pictures(4))
    assert [frame.size for frame in read_video(path)] == [(64, 48)] * 8
