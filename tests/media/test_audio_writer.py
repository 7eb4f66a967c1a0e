"""Sound files in every format: what is written is read back, long streams too."""

import numpy as np
import pytest
import soundfile
from media import noise, tone

from diffaudio.errors import UserError
from diffaudio.media.audio import read_audio
from diffaudio.media.audio_formats import FORMATS, check_format
from diffaudio.media.audio_writer import write_stream

LOSSLESS = [(".wav", 16), (".wav", 24), (".wav", 32), (".flac", 16), (".flac", 24)]


@pytest.mark.parametrize(("suffix", "bit_depth"), LOSSLESS)
@pytest.mark.parametrize("channels", [1, 2])
def test_lossless_formats_hold_samples_to_their_bit_depth(tmp_path, suffix, bit_depth, channels):
    sound = noise(0.5, 24000, channels=channels)
    path = tmp_path / f"a{suffix}"
    assert write_stream(path, [sound[:, :5000], sound[:, 5000:]], 24000, bit_depth=bit_depth) == sound.shape[1]
    found, rate = soundfile.read(path, dtype="float64", always_2d=True)
    assert rate == 24000
    step = 0 if bit_depth == 32 else 2.0 ** (1 - bit_depth)
    assert np.abs(found.T - sound).max() <= step


def test_floating_point_keeps_samples_above_full_scale_and_integers_clip_them(tmp_path):
    sound = np.array([[0.5, 1.5, -3.0]], np.float32)
    for depth, largest in ((16, 1.0), (32, 3.0)):
        write_stream(tmp_path / "a.wav", [sound], 8000, bit_depth=depth)
        assert np.abs(soundfile.read(tmp_path / "a.wav")[0]).max() == pytest.approx(largest, abs=1e-4)


@pytest.mark.parametrize("suffix", [".ogg", ".opus", ".mp3", ".OGG"])
@pytest.mark.parametrize("channels", [1, 2])
def test_lossy_formats_hold_a_tone(tmp_path, suffix, channels):
    sound = tone(1.5, 24000, channels=channels)
    path = tmp_path / f"a{suffix}"
    write_stream(path, [sound], 24000)
    found, rate = read_audio(path, sample_rate=24000)
    assert rate == 24000 and len(found) == channels
    assert abs(found.shape[1] - sound.shape[1]) < 3000  # MP3 adds a frame before and after
    middle = slice(6000, 30000)
    spectrum, expected = (np.abs(np.fft.rfft(np.asarray(x)[0, middle])) for x in (found, sound))
    assert spectrum.argmax() == expected.argmax()
    assert spectrum.max() == pytest.approx(expected.max(), rel=0.1)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_chunk_of_minutes_is_written_in_blocks(tmp_path, suffix):
    """In one piece, libsndfile's Vorbis encoder runs out of stack."""
    sound = noise(1, 8000).repeat(120, axis=1)
    assert write_stream(tmp_path / f"a{suffix}", [sound], 8000) == sound.shape[1]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("a.aac", {}, r"a\.aac: cannot write \.aac; choose \.wav, \.flac, \.ogg, \.opus or \.mp3"),
        ("a", {}, "a: cannot write a file without a suffix; choose"),
        ("a.flac", {"bit_depth": 32}, r"a bit depth of 32 does not suit \.flac; choose from 16, 24"),
        ("a.mp3", {"bit_depth": 16}, r"a bit depth of 16 does not suit \.mp3; it has none, leave it out"),
        ("a.opus", {"sample_rate": 44100}, r"\.opus cannot hold 44100 Hz; choose a sample rate from 8000, 12000"),
        ("a.mp3", {"sample_rate": 96000}, r"\.mp3 cannot hold 96000 Hz"),
    ],
)
def test_what_a_format_cannot_hold_is_an_error(tmp_path, name, settings, message):
    with pytest.raises(UserError, match=message):
        check_format(tmp_path / name, **settings)


def test_a_wav_file_longer_than_its_header_can_say_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("diffaudio.media.audio_writer.MAX_WAV_BYTES", 3000)
    with pytest.raises(UserError, match=r"a\.wav: a \.wav file holds up to 4 GB, and this sound is longer"):
        write_stream(tmp_path / "a.wav", [np.zeros((1, 1000), np.float32)] * 2, 8000)
    assert list(tmp_path.iterdir()) == []
    write_stream(tmp_path / "a.flac", [np.zeros((1, 1000), np.float32)] * 2, 8000)
