"""What comes back from an autoencoder: distances by hand, rows, and `diffaudio evaluate reconstruction`."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torchaudio.functional as AF
from fake_backbone import SAMPLE_RATE, BandBackbone, tones
from torch import nn

from diffaudio.cli.main import main
from diffaudio.evaluation.embed import Embedder, Sound
from diffaudio.evaluation.reconstruction import measure_speed, recordings_row, round_trip, round_trip_row, worst_kind
from diffaudio.evaluation.report import read_report
from diffaudio.media.audio import write_audio
from diffaudio.metrics.reconstruction import (
    log_mel_distance_db,
    log_mel_distance_of_streams_db,
    multi_resolution_stft_distance,
    si_sdr_db,
)
from diffaudio.models.autoencoders import SpectralAutoencoder
from diffaudio.models.autoencoders.base import Reach
from diffaudio.models.tagger import Tagger

DRAWS: dict[str, Any] = {"seed": 0, "resamples": 20}


def noise(samples: int, *, seed: int = 0, gain: float = 0.1) -> torch.Tensor:
    return gain * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


class Lossless(nn.Module):
    """Latents are the samples themselves, or where `deaf` nothing of them."""

    name, sample_rate, audio_channels, latent_channels, latent_rate = "lossless", SAMPLE_RATE, 1, 100, 80.0
    keeps_phase, reach = True, Reach(0, 0)

    def __init__(self, *, deaf: bool = False) -> None:
        super().__init__()
        self.deaf, self.largest = deaf, 0.0
        self.weight = nn.Parameter(torch.ones(()))

    def encode(self, waveform):
        self.largest = max(self.largest, waveform.abs().max().item())
        padded = nn.functional.pad(waveform, (0, -waveform.shape[-1] % 100))
        return padded.unflatten(-1, (-1, 100))[:, 0].transpose(1, 2)

    def decode(self, latents, *, num_samples=None):
        waveform = latents.transpose(1, 2).flatten(1)[:, None]
        if self.deaf:
            waveform = 0.1 * torch.randn(waveform.shape, generator=torch.Generator().manual_seed(1))
        return waveform[..., :num_samples]

    def decode_window_bounded(self, latents, *, first_frame):
        return self.decode(latents), torch.zeros(len(latents))


def test_the_log_mel_distance_is_the_one_that_is_written_down():
    x, y = noise(20000), 0.3 * noise(20000, seed=1) + torch.sin(torch.arange(20000) * 0.2)

    def level_db(waveform):
        scaled = waveform / x.abs().max() * 0.7
        mirrored = torch.cat([scaled[1:513].flip(0), scaled, scaled[-513:-1].flip(0)])
        frames = mirrored.unfold(0, 1024, 256) * torch.hann_window(1024)
        power = torch.fft.rfft(frames).abs().square()
        mel = power @ AF.melscale_fbanks(513, 0.0, 8000.0, 80, 16000)
        return 10 * torch.log10(mel.clamp(min=1e-6))

    expected = (level_db(x) - level_db(y)).abs().mean().item()
    assert log_mel_distance_db(x, y) == pytest.approx(expected, rel=1e-4)
    assert log_mel_distance_db(0.3 * x, 0.3 * y) == pytest.approx(expected, rel=1e-4)
    assert log_mel_distance_db(x, 0.9 * x) == pytest.approx(-20 * math.log10(0.9), abs=1e-3)
    with pytest.raises(ValueError, match=r"0\.032 s of sound are too short; give 0\.032 s|are too short"):
        log_mel_distance_db(x[:512], y[:512])


@pytest.mark.parametrize("samples", [600, 131_072, 300_000])
def test_the_log_mel_distance_of_streams_is_that_of_the_whole(samples):
    x, y = ((each / each.abs().max() * 0.7) for each in (noise(samples), noise(samples, seed=1)))
    streamed = log_mel_distance_of_streams_db(x.split(7777), y.split(40_001))
    assert streamed == pytest.approx(log_mel_distance_db(x, y), rel=1e-5)


def test_half_as_loud_is_half_a_convergence_and_the_logarithm_of_two_apart():
    x = noise(24000, gain=0.3)
    assert multi_resolution_stft_distance(x, 0.5 * x) == pytest.approx(0.5 + math.log(2), rel=1e-3)
    assert multi_resolution_stft_distance(x, x) == 0
    assert multi_resolution_stft_distance(torch.zeros(24000), x) > 10


def test_si_sdr_is_that_of_torchmetrics_and_independent_of_the_level():
    x, y = torch.tensor([3.0, -0.5, 2.0, 7.0]), torch.tensor([2.5, 0.0, 2.0, 8.0])
    assert si_sdr_db(x, y) == pytest.approx(18.4030, abs=1e-4)  # the example of torchmetrics' documentation
    assert si_sdr_db(x, 7 * y) == pytest.approx(18.4030, abs=1e-4)
    assert si_sdr_db(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.1])) == pytest.approx(20)
    assert si_sdr_db(x, x) == 100 and si_sdr_db(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) == -100
    with pytest.raises(ValueError, match="the original is silent; an SI-SDR needs sound"):
        si_sdr_db(torch.zeros(4), x)


@pytest.fixture(scope="module")
def embedder():
    return Embedder([BandBackbone()])


@pytest.fixture(scope="module")
def recordings():
    return tones(16, 0)


@pytest.fixture(scope="module")
def embedded(embedder, recordings):
    return embedder.embed(recordings)


def lossless(**settings) -> Any:
    return Lossless(**settings)


def row_of(autoencoder, recordings, embedded, embedder):
    return round_trip_row(autoencoder, recordings, embedded, embedder, name="model", bytes_on_disk=2_500_000, **DRAWS)


def test_what_loses_nothing_is_at_no_distance_and_recognised_as_the_recordings_are(recordings, embedded, embedder):
    row = row_of(lossless(), recordings, embedded, embedder)
    assert row["accuracy_bands"].value == recordings_row(embedded, name="real", **DRAWS)["accuracy_bands"].value > 0.9
    assert row["agreement_bands"].value == 1 and row["agreement_bands"].method == "wilson"
    assert row["log_mel_distance_db"].value < 0.01 and row["multi_resolution_stft_distance"].value < 0.01
    assert row["si_sdr_db"].value > 80
    costs = {metric.name: metric.value for metric in row.metrics if metric.low is None}
    expected = {"latent_rate_hz": 80, "latent_channels": 100, "latent_values_per_s": 8000, "megabytes_on_disk": 2.5}
    assert costs.items() >= expected.items()
    assert (row.kind, row.name, row.sounds) == ("reconstructed", "model", 16)


def test_noise_instead_of_the_sound_is_far_away_and_recognised_by_chance(recordings, embedded, embedder):
    row = row_of(lossless(deaf=True), recordings, embedded, embedder)
    assert row["accuracy_bands"].value < 0.4 and row["agreement_bands"].value < 0.4
    assert row["log_mel_distance_db"].value > 5 and row["si_sdr_db"].value < -20
    distance = row["log_mel_distance_db"]
    assert (distance.low or 0) < distance.value < (distance.high or 0) and distance.method == "bootstrap"


def test_the_worst_kind_is_found_among_all(recordings, embedded, embedder):
    row = row_of(lossless(deaf=True), recordings, embedded, embedder)
    kinds = {m.name: m for m in row.metrics if m.name.startswith("log_mel_distance_db_of_band_")}
    assert len(kinds) == 8 and all(metric.n == 2 for metric in kinds.values())
    mean = sum(metric.value for metric in kinds.values()) / 8
    assert row["log_mel_distance_db"].value == pytest.approx(mean)
    found = worst_kind(row)
    assert found is not None and found[1].value == max(metric.value for metric in kinds.values())
    assert f"log_mel_distance_db_of_{found[0]}" == found[1].name
    assert worst_kind(recordings_row(embedded, name="real", **DRAWS)) is None


def test_without_phase_there_is_no_si_sdr_and_without_labels_only_agreement(recordings, embedder):
    unlabelled = [Sound(sound.waveform, sound.sample_rate, sound.name) for sound in recordings[:3]]
    autoencoder = SpectralAutoencoder(8000, n_fft=256, hop_length=80, num_mels=32, latent_channels=128)
    row = row_of(autoencoder, unlabelled, embedder.embed(unlabelled), embedder)
    assert row.left_out["si_sdr_db"] == "the autoencoder does not keep the phase"
    assert row.left_out["accuracy_bands"].startswith("no sound has a label")
    assert row["agreement_bands"].value == 1 and worst_kind(row) is None


def test_the_autoencoder_receives_a_peak_of_0_7_and_the_level_is_restored():
    autoencoder = lossless()
    waveform = noise(8000, gain=0.01)[None]
    given, made = round_trip(autoencoder, waveform, SAMPLE_RATE)
    assert autoencoder.largest == pytest.approx(0.7)
    torch.testing.assert_close(made, waveform)
    assert torch.equal(given, waveform)
    _, silence = round_trip(autoencoder, torch.zeros(2, 8000), SAMPLE_RATE)
    assert silence.shape == (1, 8000) and not silence.any()


def test_speed_is_the_median_of_several_runs_after_one_that_does_not_count():
    # start, between, end of each run: encoding takes 50, 1, 3, 2 s, decoding 70, 4, 40, 6 s
    ticks = iter([0, 50, 120, 200, 201, 205, 300, 303, 343, 400, 402, 408])
    assert measure_speed(lossless(), duration_s=2.0, repeats=3, clock=lambda: next(ticks)) == (1.0, 3.0)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        labels = [f"band {index}" for index in range(8)]
        Tagger(labels, width=2, embedding_dim=8, name="tagger_tiny").eval().save_pretrained(folder / "tagger")
    for channels in (16, 128):
        autoencoder = SpectralAutoencoder(8000, n_fft=256, hop_length=80, num_mels=32, latent_channels=channels)
        autoencoder.save_pretrained(folder / f"spectral{channels}")
    return folder


@pytest.fixture
def evaluate(models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("sounds").mkdir()
    rows = ["file,label"]
    for index, sound in enumerate(tones(4, 1)):
        write_audio(Path(f"sounds/{index}.wav"), sound.waveform, sound.sample_rate)
        rows.append(f"{index}.wav,{sound.label}")
    Path("labels.csv").write_text("\n".join(rows))
    Path("other.csv").write_text("file,label\nelsewhere.wav,dog\n")

    def run(*arguments):
        given = ["--backbone", models / "tagger", "--device", "cpu", "--resamples", "20"]
        code = main(["evaluate", "reconstruction", *map(str, [*arguments, *given])])
        return code, *capsys.readouterr()

    return run


def test_the_command_tells_of_the_recordings_and_of_each_autoencoder(evaluate, models):
    both = [models / "spectral16", models / "spectral128"]
    code, printed, errors = evaluate("sounds", "--labels", "labels.csv", "--autoencoder", *both, "-o", "numbers.json")
    assert (code, errors) == (0, "")
    report = read_report(Path("numbers.json"))
    assert [(row.kind, row.sounds) for row in report.rows] == [("real", 4), ("reconstructed", 4), ("reconstructed", 4)]
    assert [row.name for row in report.rows] == ["sounds", *map(str, both)]
    assert report.rows[1]["log_mel_distance_db"].value > report.rows[2]["log_mel_distance_db"].value
    on_disk = sum(file.stat().st_size for file in (models / "spectral128").glob("*.safetensors")) / 1e6
    assert report.rows[2]["megabytes_on_disk"].value == on_disk
    assert (report.reference, report.labels) == ("sounds", "labels.csv")
    lines = printed.splitlines()
    assert "right by tagger_tiny" in lines[0] and "worst kind" in lines[0]
    for path, line in zip(both, lines[2:4], strict=True):
        assert line.startswith(str(path)) and "(n=1)" in line and "25 Hz" in line
    assert lines[-1] == "numbers.json: 4 recordings"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: there is no such file or folder"),
        (["sounds", "--autoencoder", "nowhere"], "nowhere: not an autoencoder folder, config.json is missing"),
        (["sounds", "--labels", "other.csv"], "other.csv: names none of the sounds"),
        (["sounds", "-o", "report.txt"], "report.txt: name a .json file"),
    ],
)
def test_errors_are_one_line_messages(evaluate, arguments, message):
    code, printed, errors = evaluate(*arguments)
    assert code == 2 and printed == "" and errors.count("\n") == 1
    assert message in errors
