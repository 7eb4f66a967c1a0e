import numpy as np
import pytest
import torch
from media import noise, numbered_pictures, tone, write_media

from diffaudio.media.audio import (
    check_audio_path,
    crop_or_pad,
    decode_flac,
    encode_flac,
    mix_channels,
    read_audio,
    resample,
    scale_to_peak,
    write_audio,
)
from diffaudio.media.container import MediaError

STEP = 1 / 32768  # of 16-bit samples


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
@pytest.mark.parametrize("channels", [1, 2])
def test_written_audio_is_read_back(tmp_path, suffix, channels):
    waveform = torch.from_numpy(noise(0.5, 24000, channels=channels))
    write_audio(tmp_path / f"a{suffix}", waveform, 24000)
    read, rate = read_audio(tmp_path / f"a{suffix}")
    assert rate == 24000 and read.shape == waveform.shape and read.dtype == torch.float32
    assert torch.allclose(read, waveform, atol=STEP)


def test_a_segment_of_a_file_is_read(tmp_path):
    waveform = torch.from_numpy(noise(2, 8000))
    write_audio(tmp_path / "a.wav", waveform, 8000)
    read, _ = read_audio(tmp_path / "a.wav", start_s=0.5, duration_s=1)
    assert torch.allclose(read, waveform[:, 4000:12000], atol=STEP)
    assert read_audio(tmp_path / "a.wav", start_s=1.5, duration_s=1)[0].shape == (1, 4000)
    assert read_audio(tmp_path / "a.wav", start_s=9)[0].shape == (1, 0)


def test_the_sound_of_a_video_is_read_resampled_and_mixed(tmp_path):
    path = write_media(tmp_path / "a.mkv", sound=tone(1, 8000, channels=2), pictures=numbered_pictures(1))
    waveform, rate = read_audio(path, sample_rate=24000, channels=1)
    expected = torch.from_numpy(tone(1, 24000))
    assert rate == 24000 and waveform.shape == (1, 24000)
    assert torch.allclose(waveform[:, 500:-500], expected[:, 500:-500], atol=1e-3)


def test_unreadable_sound_files_are_named(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"nothing")
    with pytest.raises(MediaError, match=r"a\.wav: cannot be read as a sound file"):
        read_audio(tmp_path / "a.wav")
    with pytest.raises(MediaError, match=r"b\.wav: there is no such file"):
        read_audio(tmp_path / "b.wav")


def test_a_file_that_fails_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError):
        write_audio(tmp_path / "a.wav", torch.zeros(1, 2), -1)
    with pytest.raises(ValueError, match=r"a\.wav: the waveform has the shape \[1, 2, 3\]; expected"):
        write_audio(tmp_path / "a.wav", torch.zeros(1, 2, 3), 8000)
    assert list(tmp_path.iterdir()) == []


def test_paths_that_cannot_be_written_are_refused_beforehand(tmp_path):
    check_audio_path(tmp_path / "a.wav")
    with pytest.raises(ValueError, match=r"a\.aac: cannot write \.aac; choose \.wav, \.flac, \.ogg, \.opus or \.mp3"):
        check_audio_path(tmp_path / "a.aac")
    with pytest.raises(ValueError, match=r"the folder .*nowhere does not exist"):
        check_audio_path(tmp_path / "nowhere" / "a.wav")
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        check_audio_path(tmp_path / "folder.wav")


def test_resampling_keeps_tones_below_half_the_rate_and_removes_those_above():
    low, high = torch.from_numpy(tone(1, 44100, frequency=1000)), torch.from_numpy(tone(1, 44100, frequency=15000))
    down = resample(torch.stack([low, high]), 44100, 24000)
    assert down.shape == (2, 1, 24000)
    middle = slice(1000, 23000)
    assert torch.allclose(down[0, :, middle], torch.from_numpy(tone(1, 24000, frequency=1000))[:, middle], atol=1e-3)
    assert down[1, :, middle].abs().max() < 1e-3
    assert resample(low, 44100, 44100) is low
    assert resample(torch.zeros(1, 100), 44100, 24000).shape == (1, 55)  # ceil(100 * 24000 / 44100)


def test_mixing_follows_the_layout():
    one, two = torch.randn(1, 8), torch.randn(2, 8)
    assert torch.equal(mix_channels(one, 2), one.expand(2, 8))
    assert torch.allclose(mix_channels(two, 1), two.mean(dim=0, keepdim=True))
    assert mix_channels(two, 2) is two
    left_only, bass_only, rear_right = torch.zeros(3, 6, 8)
    left_only[0], bass_only[3], rear_right[5] = 1, 1, 1
    stereo = mix_channels(left_only, 2)
    assert (stereo[0] > 0).all() and not stereo[1].any()
    assert not mix_channels(bass_only, 1).any()
    assert not mix_channels(rear_right, 2)[0].any() and (mix_channels(rear_right, 2)[1] > 0).all()
    for channels in (3, 4, 6, 8):
        assert mix_channels(torch.ones(channels, 4), 2).max() <= 1 + 1e-6
    assert mix_channels(torch.randn(5, 6, 8), 1).shape == (5, 1, 8)
    with pytest.raises(ValueError, match="channels is 3; choose 1"):
        mix_channels(two, 3)


def test_crop_or_pad_has_the_length_asked_for():
    waveform = torch.arange(10.0)[None]
    assert crop_or_pad(waveform, 0.4, 10, start_s=0.2).tolist() == [[2, 3, 4, 5]]
    assert crop_or_pad(waveform, 0.4, 10, start_s=0.8).tolist() == [[8, 9, 0, 0]]
    assert crop_or_pad(waveform, 0.4, 10).data_ptr() == waveform.data_ptr()
    with pytest.raises(ValueError, match="duration_s is 0; it must be above 0"):
        crop_or_pad(waveform, 0, 10)
    with pytest.raises(ValueError, match="start_s is 1.5; the waveform has 1.000 s"):
        crop_or_pad(waveform, 1, 10, start_s=1.5)


def test_every_waveform_gets_the_same_peak_and_silence_stays():
    waveforms = torch.stack([torch.randn(2, 50) * 3, torch.randn(2, 50) * 1e-4, torch.zeros(2, 50)])
    scaled = scale_to_peak(waveforms)
    assert torch.allclose(scaled.abs().amax(dim=(1, 2)), torch.tensor([0.7, 0.7, 0.0]))
    assert torch.allclose(scaled[0] * waveforms[0].abs().max() / 0.7, waveforms[0], atol=1e-5)
    assert scale_to_peak(torch.ones(1, 4), 0.5).tolist() == [[0.5] * 4]


def test_flac_bytes_keep_the_samples_and_clip_what_is_too_loud():
    waveform = torch.from_numpy(noise(0.2, 24000, channels=2))
    data = encode_flac(waveform, 24000)
    decoded, rate = decode_flac(data)
    assert data[:4] == b"fLaC" and rate == 24000
    assert torch.allclose(decoded, waveform, atol=STEP)
    loud, _ = decode_flac(encode_flac(torch.tensor([[2.0, -2.0, 0.5]]), 8000))
    assert np.allclose(loud, [[1, -1, 0.5]], atol=STEP)
