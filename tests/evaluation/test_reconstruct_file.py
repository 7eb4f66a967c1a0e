"""`diffaudio reconstruct`: any sound there and back, of any length, at its own level."""

from pathlib import Path

import pytest
import torch
from media import noise, numbered_pictures, tone, write_media
from tiny_autoencoders import write_encodec

from diffaudio.cli.main import main
from diffaudio.cli.reconstruct import _speed
from diffaudio.evaluation.reconstruct_file import reconstruct_file
from diffaudio.evaluation.reconstruction import round_trip
from diffaudio.media.audio import read_audio, resample, write_audio
from diffaudio.metrics.reconstruction import LOG_MEL_RATE, log_mel_distance_db
from diffaudio.models.autoencoders import SpectralAutoencoder, load_autoencoder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("autoencoders")
    for name, channels in (("mono", 1), ("stereo", 2)):
        SpectralAutoencoder(
            8000, n_fft=256, hop_length=80, num_mels=32, latent_channels=128 * channels, audio_channels=channels
        ).save_pretrained(root / name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        write_encodec(root / "encodec")
    return root


@pytest.fixture
def reconstruct(folders, tmp_path, monkeypatch, capsys):
    """Run `diffaudio reconstruct` in an empty folder; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, autoencoder="mono"):
        code = main(
            ["reconstruct", *map(str, arguments), "--autoencoder", str(folders / autoencoder), "--device", "cpu"]
        )
        return code, *capsys.readouterr()

    return run


def sweep(duration_s: float, *, gain: float = 0.3, channels: int = 1) -> torch.Tensor:
    sound = tone(duration_s, 8000, gain=gain, channels=channels) + noise(duration_s, 8000, gain=gain / 10)
    return torch.from_numpy(sound)


def test_a_sound_comes_back_at_the_autoencoders_rate_and_its_own_level(reconstruct):
    write_audio("in.wav", sweep(1.3, gain=0.05, channels=2), 8000)
    code, printed, errors = reconstruct("in.wav", "-o", "out.flac")
    assert (code, errors) == (0, "")
    made, rate = read_audio("out.flac")
    assert (rate, made.shape) == (8000, (1, 10400))
    original, _ = read_audio("in.wav", sample_rate=8000, channels=1)
    assert made.square().mean().sqrt() == pytest.approx(original.square().mean().sqrt().item(), rel=0.3)
    assert printed.startswith("out.flac: 1.3 s at 8000 Hz, log-mel distance ")
    assert 0 < float(printed.split("log-mel distance ")[1].split()[0]) < 6
    assert "times faster than real time" in printed and "clipped" not in printed and "e+" not in printed


def test_its_log_mel_distance_is_that_of_evaluate_reconstruction(folders, tmp_path):
    """Clicks, whose peak the autoencoder changes most: scaling the result by its own peak would give another number."""
    waveform = sweep(2.0, gain=0.02)
    waveform[0, ::4000] = 0.9
    write_audio(tmp_path / "in.wav", waveform, 8000)
    autoencoder = load_autoencoder(folders / "mono")
    result = reconstruct_file(tmp_path / "in.wav", tmp_path / "out.wav", autoencoder)
    read, _ = read_audio(tmp_path / "in.wav")
    original, reconstruction = round_trip(autoencoder, read, 8000)
    at_16k = [resample(each[0], 8000, LOG_MEL_RATE) for each in (original, reconstruction)]
    expected = log_mel_distance_db(*at_16k)
    assert result.log_mel_distance_db == pytest.approx(expected, rel=0.02)  # the file has 16 bits
    written, _ = read_audio(tmp_path / "out.wav", sample_rate=LOG_MEL_RATE)
    own_peak = written[0] * float(at_16k[0].abs().max() / written.abs().max())
    assert log_mel_distance_db(at_16k[0], own_peak) != pytest.approx(expected, rel=0.1)


def test_a_video_a_part_of_it_and_stereo(reconstruct):
    write_media(Path("in.mp4"), sound=tone(2.0, 44100, channels=2), pictures=numbered_pictures(2.0))
    part = ["--start", "0.5", "--duration", "0.75"]
    code, _, errors = reconstruct("in.mp4", "-o", "out.wav", *part, autoencoder="stereo")
    assert (code, errors) == (0, "")
    made, rate = read_audio("out.wav")
    assert (rate, made.shape) == (8000, (2, 6000))


def test_a_long_sound_goes_in_windows_and_is_the_same_as_in_one(reconstruct):
    write_audio("in.wav", sweep(6.0), 8000)
    reconstruct("in.wav", "-o", "whole.wav")
    code, _, _ = reconstruct("in.wav", "-o", "windows.wav", "--window", "1")
    assert code == 0
    (whole, _), (windows, _) = read_audio("whole.wav"), read_audio("windows.wav")
    torch.testing.assert_close(windows, whole, rtol=0, atol=1e-3)


def test_both_spectrograms_are_drawn(reconstruct):
    write_audio("in.wav", sweep(0.5), 8000)
    assert reconstruct("in.wav", "-o", "out.wav", "--plot")[0] == 0
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_of_sounds_comes_back_as_a_folder(reconstruct):
    Path("in/inner").mkdir(parents=True)
    for name in ("a.wav", "inner/b.flac"):
        write_audio(Path("in") / name, sweep(0.3), 8000)
    code, printed, _ = reconstruct("in", "-o", "out")
    assert code == 0 and len(printed.splitlines()) == 2
    assert sorted(path.as_posix() for path in Path("out").rglob("*.wav")) == ["out/a.wav", "out/inner/b.wav"]


def test_encodec_quantises_at_the_bandwidth_asked_for(reconstruct, folders):
    write_audio("in.wav", sweep(0.5), 8000)
    assert reconstruct("in.wav", "-o", "continuous.wav", autoencoder="encodec")[0] == 0
    assert reconstruct("in.wav", "-o", "coarse.wav", "--bandwidth", "0.4", autoencoder="encodec")[0] == 0
    autoencoder = load_autoencoder(folders / "encodec")
    autoencoder.set_bandwidth(0.4)
    given, _ = read_audio("in.wav", sample_rate=8000)
    level = given.abs().max() / 0.7
    expected = autoencoder.decode(autoencoder.encode(given[None] / level), num_samples=given.shape[1])[0] * level
    (coarse, _), (continuous, _) = read_audio("coarse.wav"), read_audio("continuous.wav")
    torch.testing.assert_close(coarse, expected.clamp(-1, 1), rtol=0, atol=1e-4)
    assert not torch.allclose(coarse, continuous, atol=1e-3)


def test_samples_that_a_file_cannot_store_are_reported(reconstruct):
    write_audio("in.wav", sweep(1.0, gain=4.0), 8000)
    _, printed, _ = reconstruct("in.wav", "-o", "out.wav")
    assert "samples above full scale were clipped" in printed


def test_the_folder_of_the_output_is_created(reconstruct):
    write_audio("in.wav", sweep(0.2), 8000)
    code, _, _ = reconstruct("in.wav", "-o", "new/folder/out.wav")
    assert code == 0 and Path("new/folder/out.wav").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.wav", "-o", "out.wav"], "nowhere.wav: there is no such file"),
        (["in.wav", "-o", "out.aac"], "out.aac: cannot write .aac; choose .wav, .flac, .ogg, .opus or .mp3"),
        (["in.wav", "-o", "in.wav"], "in.wav: is the input itself; name another file"),
        (["in.wav", "-o", "out.wav", "--start", "5"], "in.wav: 0.000 s of sound from 5 s on; 0.032 s are needed"),
        (["in.wav", "-o", "out.wav", "--bandwidth", "6"], "bandwidth 6 has no effect: spectral_8khz_128x25hz does not"),
        (["in.wav", "-o", "out.wav", "--window", "0.1"], "--window is 0.1; 0.5 s or more is needed"),
        (["folder", "-o", "out.wav"], "out.wav: folder is a folder; name a folder for the reconstructions"),
        (["broken.wav", "-o", "out.wav"], "broken.wav: cannot be read as a sound file"),
    ],
)
def test_errors_are_one_line_messages(reconstruct, arguments, message):
    write_audio("in.wav", sweep(0.2), 8000)
    Path("folder").mkdir()
    Path("broken.wav").write_bytes(b"nothing")
    code, printed, errors = reconstruct(*arguments)
    assert code == 2 and printed == "" and errors.count("\n") == 1
    assert message in errors
    assert not Path("out.wav").exists()


@pytest.mark.parametrize(
    ("ratio", "text"), [(1640.3, "1,640"), (38.4, "38"), (9.96, "10"), (1.23, "1.2"), (0.75, "0.75")]
)
def test_a_speed_is_written_out(ratio, text):
    assert _speed(ratio) == text
