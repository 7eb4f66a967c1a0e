"""Sound design on the command line: every feature, the same sound again from its JSON, and one line for bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_model import SAMPLE_RATE, write_tiny_model

from diffaudio.cli.main import main
from diffaudio.generation import design_checks
from diffaudio.metrics.audio_checks import loudness_lufs

QUICK = ["--steps", "2", "--guidance-scale", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def generate(model, tmp_path, monkeypatch, capsys):
    """Run `diffaudio generate` in a folder with a recording, in.wav of a second; gives (exit code, stderr)."""
    monkeypatch.chdir(tmp_path)
    noise = torch.randn(SAMPLE_RATE, generator=torch.Generator().manual_seed(7)) * 0.1
    soundfile.write("in.wav", noise.numpy(), SAMPLE_RATE, subtype="FLOAT")

    def run(*arguments, quick=True, expected=0):
        own = ["--model", str(model)] if quick else []
        code = main(["generate", *(QUICK if quick else []), *own, *map(str, arguments)])
        error = capsys.readouterr().err
        assert code == expected, error
        return error

    return run


def read(path):
    samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
    return samples


def described(path):
    return json.loads(Path(path).read_text())


FEATURES = {
    "plain": "rain --duration 1",
    "batch": "rain --duration 0.5 --takes 3",
    "init": "rain --init-audio in.wav --strength 0.5",
    "inpainting": "rain --init-audio in.wav --mask 0.2:0.4 --mask 0.6:0.7 --resamples 2",
    "continuation": "rain --continue in.wav --duration 1.5",
    "lead-in": "rain --lead-in in.wav --duration 1.5",
    "loop": "rain --loop --duration 0.8",
    "timeline": "rain@0-0.6 dog@0.4-1 --duration 1",
    "layers": "rain --layer thunder::-6dB --layer wind --duration 0.5",
    "variation": "rain --variation-seed 3 --amount 0.3 --duration 0.5",
    "file": "rain --duration 1 --sample-rate 11025 --bit-depth 24 --fade-in 0.1 --fade-out 0.2 --loudness -30",
    "guidance": "rain --duration 0.5 --cfg-zero --guidance-interval 0.1:0.9 --negative-prompt dog",
    "projection": "rain --duration 0.5 --apg-parallel 0.5 --sampler ddim --eta 0.5 --spacing linear",
}


@pytest.mark.parametrize("feature", FEATURES)
def test_a_sound_is_made_again_from_its_json_bit_for_bit(generate, feature):
    generate(*FEATURES[feature].split(), "--seed", 5, "-o", "a.wav")
    sidecar = "a-2.json" if feature == "batch" else "a.json"
    generate("--from", sidecar, "-o", "again.wav", quick=False)
    assert np.array_equal(read(Path(sidecar).with_suffix(".wav")), read("again.wav"))
    before, after = described(sidecar), described("again.json")
    for each in (before, after):
        del each["timing"]["batch_seconds"]
    assert before == after


def test_something_changed_on_top_changes_that_and_no_more(generate):
    generate("rain", "--init-audio", "in.wav", "--mask", "0.2:0.4", "--seed", 5, "-o", "a.wav")
    generate("--from", "a.json", "--steps", 3, "-o", "finer.wav", quick=False)
    generate("--from", "a.json", "--mask", "0.5:0.6", "--seed", 6, "-o", "moved.wav", quick=False)
    first, finer, moved = (described(f"{name}.json") for name in ("a", "finer", "moved"))
    assert (finer["steps"], finer["edit"], finer["seed"]) == (3, first["edit"], 5)
    assert (moved["steps"], moved["edit"]["mask"], moved["seed"]) == (2, ["0.5:0.6"], 6)
    assert not np.array_equal(read("a.wav"), read("finer.wav"))
    generate("a dog", "--from", "a.json", "-o", "dog.wav", quick=False)
    assert described("dog.json")["prompt"] == "a dog"


def test_another_recording_on_top_brings_its_own_duration(generate):
    generate("rain", "--init-audio", "in.wav", "-o", "a.wav")
    soundfile.write("short.wav", read("in.wav")[:4000], SAMPLE_RATE)
    generate("--from", "a.json", "--init-audio", "short.wav", "-o", "b.wav", quick=False)
    assert len(read("b.wav")) == 4000


def test_a_recording_that_has_changed_is_noticed(generate):
    generate("rain", "--init-audio", "in.wav", "-o", "a.wav")
    soundfile.write("in.wav", read("in.wav")[::-1], SAMPLE_RATE, subtype="FLOAT")
    error = generate("--from", "a.json", "-o", "b.wav", quick=False, expected=2)
    assert "in.wav: has changed since a.json was made from it; restore it, or name another recording" in error
    Path("in.wav").unlink()
    error = generate("--from", "a.json", "-o", "b.wav", quick=False, expected=2)
    assert "in.wav" in error and len(error.splitlines()) == 1


def test_variations_move_away_with_the_amount(generate):
    generate("rain", "--duration", 1, "--seed", 5, "--loudness", "none", "-o", "a.wav")
    for amount in (0.05, 0.3, 1):
        generate("--variation-of", "a.json", "--amount", amount, "--seed", 9, "-o", f"{amount}.wav", quick=False)
    assert described("0.3.json")["edit"]["variation_seed"] == 5

    def spectrum(name):
        return np.abs(np.fft.rfft(read(f"{name}.wav")[:, 0]))

    distances = [np.abs(spectrum(amount) - spectrum("a")).mean() for amount in (0.05, 0.3, 1)]
    assert 0 < distances[0] < distances[1] < distances[2]
    error = generate("--variation-of", "0.3.json", "--amount", 0.1, "-o", "b.wav", quick=False, expected=2)
    assert "0.3.json: is a variation itself; vary the sound that it is made of, of seed 5" in error


def test_masked_recordings_come_back_sample_for_sample_in_the_file(generate):
    generate("rain", "--init-audio", "in.wav", "--mask", "0.4:0.6", "--bit-depth", 32, "-o", "a.wav")
    found, recording = read("a.wav"), read("in.wav")
    assert np.array_equal(found[: 3200 - 160], recording[: 3200 - 160])
    assert np.array_equal(found[4800 + 160 :], recording[4800 + 160 :])
    assert described("a.json")["loudness"] is None
    assert described("a.json")["duration_s"] == 1
    assert list(described("a.json")["inputs"]) == ["in.wav"]


@pytest.mark.parametrize("features", ["--init-audio stereo.wav --mask 0.4:0.6", "--continue stereo.wav --duration 1.5",
                                      "--lead-in stereo.wav --duration 1.5"])  # fmt: skip
def test_a_recording_keeps_its_own_rate_and_channels(generate, features):
    recording = np.random.default_rng(0).uniform(-1, 1, (22050, 2)).astype(np.float32)
    soundfile.write("stereo.wav", recording, 22050, subtype="FLOAT")
    generate("rain", *features.split(), "--seed", 5, "--bit-depth", 32, "-o", "a.wav")
    found = read("a.wav")
    assert soundfile.info("a.wav").samplerate == described("a.json")["sample_rate"] == 22050
    assert found.shape == ((22050 if "mask" in features else 33075), 2)
    seam = round(0.02 * 22050)
    if "mask" in features:
        assert np.array_equal(found[: 8820 - seam], recording[: 8820 - seam])
        assert np.array_equal(found[13230 + seam :], recording[13230 + seam :])
        gap = found[8820:13230]
    elif "continue" in features:
        assert np.array_equal(found[: 22050 - seam], recording[:-seam])
        gap = found[22050:]
    else:
        assert np.array_equal(found[-22050 + seam :], recording[seam:])
        gap = found[:-22050]
    assert np.array_equal(gap[:, 0], gap[:, 1]) and np.abs(gap).max() > 0.001  # mono, and not pretended to be more
    generate("--from", "a.json", "-o", "b.wav", quick=False)
    assert np.array_equal(found, read("b.wav"))


def test_the_prompt_may_follow_masks(generate):
    generate("--init-audio", "in.wav", "--mask", "0.2:0.3", "--mask=0.5:0.6", "rain", "-o", "a.wav")
    assert described("a.json")["prompt"] == "rain"
    assert described("a.json")["edit"]["mask"] == ["0.2:0.3", "0.5:0.6"]


def test_a_loudness_that_was_asked_for_applies_to_recordings_too(generate):
    generate("rain", "--init-audio", "in.wav", "--strength", 0.3, "--loudness", -30, "-o", "a.wav")
    assert loudness_lufs(torch.from_numpy(read("a.wav").T), SAMPLE_RATE) == pytest.approx(-30, abs=0.1)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".mp3"])
def test_the_suffix_decides_the_format(generate, suffix):
    generate("rain", "--duration", 1, "-o", f"a{suffix}")
    info = soundfile.info(f"a{suffix}")
    expected = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".opus": "OGG", ".mp3": "MP3"}
    assert (info.format, info.channels) == (expected[suffix], 1)
    assert abs(info.frames / info.samplerate - 1) < 0.2


def test_a_long_sound_is_streamed_and_has_its_loudness(generate, monkeypatch):
    monkeypatch.setattr(design_checks, "STREAMED_S", 1)
    generate("rain", "--duration", 12, "--seed", 5, "-o", "a.flac")
    found = torch.from_numpy(read("a.flac").T)
    assert found.shape == (1, 12 * SAMPLE_RATE)
    assert loudness_lufs(found, SAMPLE_RATE) == pytest.approx(-23, abs=0.1)
    assert described("a.json")["passes"] == 4
    generate("--from", "a.json", "-o", "b.flac", quick=False)
    assert np.array_equal(read("a.flac"), read("b.flac"))
    assert sorted(path.name for path in Path().iterdir()) == ["a.flac", "a.json", "b.flac", "b.json", "in.wav"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("rain --mask 1:2", "a mask has no effect without init audio"),
        ("rain --init-audio in.wav --mask 0.5:2", "mask 0.5:2 lies outside of the sound, which has 1 s"),
        ("rain --init-audio in.wav --mask -1:0.5", "mask -1:0.5 lies outside of the sound"),
        ("rain --init-audio in.wav --mask 0.5:0.5", "mask 0.5:0.5 is empty"),
        ("rain --init-audio in.wav --mask 0.1:0.5 --mask 0.4:0.6", "masks 0.1:0.5 and 0.4:0.6 overlap; join them"),
        ("rain --init-audio in.wav --mask half", "mask 'half' is not a time range; write START:END"),
        ("rain --init-audio in.wav --mask", "--mask needs a value"),
        ("rain --init-audio in.wav --strength 1.5", "strength is 1.5; choose 0"),
        ("rain --init-audio in.wav --strength nan", "--strength: expected a number or none, got 'nan'"),
        ("rain --init-audio no.wav", "no.wav: there is no such file"),
        ("rain --init-audio in.wav --duration 0.5", "the init audio has 1.00 s where the duration is 0.5 s; cut it"),
        ("rain --init-audio nan.wav", "nan.wav: holds samples that are NaN or infinite"),
        ("rain --init-audio tiny.wav", "tiny.wav: has 0.013 s of sound; 0.04 s, a frame of the model, are needed"),
        ("rain --init-audio text.wav", "text.wav: cannot be read as a sound file"),
        ("rain --continue in.wav --duration 0.9", "nothing is left to generate; give a longer duration"),
        ("rain --continue in.wav --strength 0.5", "strength has no effect without init audio"),
        ("rain --loop --duration 0.5", "a loop of 0.5 s is not a whole number of the model's frames"),
        ("rain --loop --duration 700", "a loop is made in memory, up to 600 s"),
        ("rain --amount 0.5", "a variation needs both"),
        ("rain --variation-seed 3 --amount 2", "amount is 2.0; choose above 0"),
        ("rain@0-3 dog --duration 3", "'dog' has no time range and another prompt has"),
        ("rain@0-3 dog@4-5", "no prompt is active at 3.26 s; let the time ranges cover the whole sound"),
        ("rain@0-9", "'rain' ends at 9 s and the sound at 5 s; give a longer --duration"),
        ("rain --layer wind::loud", "'wind::loud': the gain 'loud' is not a number from -60 to 60 dB"),
        ("rain --bit-depth 12", "bit depth is 12; choose from 16, 24, 32"),
        ("rain --bit-depth 16 -o a.mp3", "a.mp3: a bit depth of 16 does not suit .mp3"),
        ("rain --sample-rate 44100 -o a.opus", ".opus cannot hold 44100 Hz; choose a sample rate from 8000"),
        ("rain --fade-in 3 --fade-out 3", "a fade-in of 3 s and a fade-out of 3 s do not fit into 5 s"),
        ("rain --duration 100 --plot", "spectrograms are drawn of up to 60 s; leave --plot out"),
        ("--from no.json", "no.json: there is no such file; name the .json file beside a sound"),
        ("--from in.wav", "in.wav: is no .json file; name the one beside the sound"),
        ("--from a.json --variation-of a.json", "--from and --variation-of contradict each other"),
    ],
)
def test_bad_input_is_one_clear_line(generate, arguments, message):
    soundfile.write("nan.wav", np.full(SAMPLE_RATE, np.nan, np.float32), SAMPLE_RATE, subtype="FLOAT")
    soundfile.write("tiny.wav", np.zeros(100, np.float32), SAMPLE_RATE)
    Path("text.wav").write_text("rain")
    error = generate(*arguments.split(), expected=2)
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(Path().glob("rain*"))
