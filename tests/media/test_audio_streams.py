"""Reading sound files whatever their header says, and writing them whole."""

import errno
import os
import struct
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from media import noise, tone, write_media

from diffaudio.media import audio_writer
from diffaudio.media.audio import read_audio, resample, write_audio
from diffaudio.media.chunked import write_chunks
from diffaudio.media.container import MediaError


def write_flac(path: Path, x: np.ndarray, *, total_samples: int | None = None) -> Path:
    """A FLAC file, whose header claims another number of samples."""
    soundfile.write(path, x.T, 8000, format="FLAC")
    if total_samples is not None:
        data = bytearray(path.read_bytes())
        (field,) = struct.unpack(">Q", data[18:26])  # 20 bits of rate, 3 of channels, 5 of width, 36 of samples
        data[18:26] = struct.pack(">Q", field & ~((1 << 36) - 1) | total_samples)
        path.write_bytes(data)
    return path


@pytest.mark.parametrize("total_samples", [0, 2**32, 2**36 - 1])
@pytest.mark.parametrize("part", [(0.0, None), (1.0, 0.5), (1.5, 9.0)])
def test_a_flac_with_a_wrong_length_gives_the_sound_that_it_contains(tmp_path, total_samples, part):
    x = noise(2, 8000)
    path = write_flac(tmp_path / "a.flac", x, total_samples=total_samples)
    found, rate = read_audio(path, start_s=part[0], duration_s=part[1])
    stop = None if part[1] is None else round((part[0] + part[1]) * 8000)
    expected = x[:, round(part[0] * 8000) : stop]
    assert rate == 8000 and found.shape == expected.shape
    assert np.allclose(found, expected, atol=1e-4)


def test_a_damaged_flac_gives_what_comes_before_and_after_the_damage(tmp_path):
    path = write_flac(tmp_path / "a.flac", noise(6, 8000))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    path.write_bytes(data)
    found, _ = read_audio(path)
    assert 2 * 8000 < found.shape[1] <= 6 * 8000 + 4096


def test_a_file_cut_off_in_its_middle_gives_what_is_left(tmp_path):
    for name in ("a.flac", "a.wav"):
        soundfile.write(tmp_path / name, noise(6, 8000).T, 8000)
        os.truncate(tmp_path / name, (tmp_path / name).stat().st_size // 2)
        assert read_audio(tmp_path / name)[0].shape[1] == pytest.approx(3 * 8000, rel=0.3)


@pytest.mark.parametrize("rate", [1, 500, 4_000_000_000])
def test_a_wav_that_claims_an_absurd_rate_is_one_error_in_bounded_memory(tmp_path, rate):
    form = (b"RIFF", 80036, b"WAVE", b"fmt ", 16, 1, 1, rate, (rate * 2) % 2**32, 2, 16, b"data", 80000)
    (tmp_path / "a.wav").write_bytes(struct.pack("<4sI4s4sIHHIIHH4sI", *form) + bytes(80000))
    with pytest.raises(MediaError, match=r"a\.wav: (claims a sample rate of|cannot be read)"):
        read_audio(tmp_path / "a.wav", sample_rate=24000)


def test_rates_without_a_common_divisor_take_no_gigabytes(tmp_path):
    program = (
        "import resource, torch\nfrom diffaudio.media.audio import resample\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert resample(torch.zeros(2, 1, 44099), 44099, 24000).shape == (2, 1, 24000)\n"
        "assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    t = torch.arange(44099) / 44099
    expected = torch.sin(2 * torch.pi * 1000 * torch.arange(24000) / 24000)
    assert torch.allclose(
        resample(torch.sin(2 * torch.pi * 1000 * t), 44099, 24000)[500:-500], expected[500:-500], atol=1e-3
    )


def test_every_link_of_a_chained_ogg_is_read(tmp_path):
    """As a recording of a radio station has them; libsndfile reads the first."""
    links = []
    for index, (frequency, rate) in enumerate([(440, 48000), (1000, 48000), (2000, 48000)]):
        link = tmp_path / f"{index}.ogg"
        soundfile.write(link, tone(2, rate, frequency=frequency)[0], rate, format="OGG", subtype="VORBIS")
        links.append(link.read_bytes())
    (tmp_path / "chain.ogg").write_bytes(b"".join(links))
    x, rate = read_audio(tmp_path / "chain.ogg")
    assert rate == 48000 and x.shape[1] / rate == pytest.approx(6, abs=0.1)
    for index, frequency in enumerate((440, 1000, 2000)):
        part = x[0, round((2 * index + 0.5) * rate) : round((2 * index + 1.5) * rate)]
        assert np.abs(np.fft.rfft(part)).argmax() == pytest.approx(frequency, abs=2)
    whole, _ = read_audio(tmp_path / "0.ogg")
    assert whole.shape[1] == 2 * 48000


def test_what_libsndfile_does_not_know_is_tried_with_ffmpeg(tmp_path):
    with av.open(str(tmp_path / "a.ogg"), "w", format="ogg") as container:
        stream = container.add_stream("flac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray((tone(1, 8000) * 32767).astype(np.int16), format="s16p", layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        for packet in [*stream.encode(av.AudioResampler(format="s16").resample(frame)[0]), *stream.encode(None)]:
            container.mux(packet)
    write_media(tmp_path / "b.mp4", sound=tone(1, 44100)).rename(tmp_path / "b.wav")
    for name in ("a.ogg", "b.wav"):
        found, rate = read_audio(tmp_path / name)
        assert found.shape[1] == pytest.approx(rate, abs=2048) and 0.25 < found.abs().max() < 0.35


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_full_disk_is_an_error_wherever_it_comes_and_leaves_nothing(tmp_path, monkeypatch, suffix):
    waveform = torch.from_numpy(noise(1, 8000))
    write_audio(tmp_path / f"whole{suffix}", waveform, 8000)
    size = (tmp_path / f"whole{suffix}").stat().st_size

    class Full:
        """A file on a disk with so much room left."""

        def __init__(self, raw, room):
            self._raw, self._room = raw, room

        def __getattr__(self, name):
            return getattr(self._raw, name)

        def write(self, data):
            if self._raw.tell() + len(data) > self._room:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self._raw.write(data)

    checked = audio_writer._Checked
    for room in (0, 20, size // 2, size - 1):
        monkeypatch.setattr(audio_writer, "_Checked", lambda raw, room=room: checked(Full(raw, room)))
        for write in (
            lambda path: write_audio(path, waveform, 8000),
            lambda path: write_chunks(path, [waveform], 8000),
        ):
            with pytest.raises(OSError, match="No space left on device"):
                write(tmp_path / f"a{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == [f"whole{suffix}"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_libsndfile_itself_hides_a_full_disk_which_is_why_writing_is_checked():
    with open("/dev/full", "wb+", buffering=0) as full:
        checked = audio_writer._Checked(full)
        assert checked.write(b"x") == 0 and checked.error is not None and checked.error.errno == errno.ENOSPC


def test_channels_of_a_layout_are_mixed_by_their_names(tmp_path):
    x = np.zeros((5, 8000), np.float32)
    x[3] = tone(1, 8000)[0]  # BL of 5.0, not a low-frequency channel
    from diffaudio.media.audio_numpy import mix_channels

    stereo = mix_channels(x, 2, ("FL", "FR", "FC", "BL", "BR"))
    assert np.abs(stereo[0]).max() > 0.05 and not stereo[1].any()
    bass = mix_channels(x, 2, ("FL", "FR", "FC", "LFE", "BC"))
    assert not bass.any()
