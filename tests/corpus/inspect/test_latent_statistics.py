"""Statistics of latents by channel, and `diffaudio latents`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeClip, write_clips
from media import noise
from tiny_autoencoders import write_encodec, write_oobleck

from diffaudio.cli.main import main
from diffaudio.corpus.encode.run import encode
from diffaudio.corpus.inspect.latent_statistics import LatentStatistics, encoded_latents, latent_warnings
from diffaudio.media.audio import write_audio
from diffaudio.models.autoencoders import SpectralAutoencoder, load_autoencoder


def gathered(*latents: np.ndarray) -> LatentStatistics:
    statistics = LatentStatistics(len(latents[0]))
    for each in latents:
        statistics.add(each)
    return statistics


def gaussian(channels: int, frames: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((channels, frames))


def test_statistics_gathered_sound_by_sound_are_those_of_all_frames():
    values = gaussian(3, 1000) ** 3 + 2
    found = gathered(values[:, :1].astype(np.float16), *np.split(values[:, 1:], [10, 500], axis=1))
    assert (found.num_sounds, found.num_frames) == (4, 1000)
    np.testing.assert_allclose(found.mean, values.mean(axis=1), rtol=1e-3)
    np.testing.assert_allclose(found.std, values.std(axis=1), rtol=1e-3)
    centred = values - values.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(found.kurtosis, (centred**4).mean(axis=1) / values.var(axis=1) ** 2 - 3, rtol=1e-2)
    np.testing.assert_allclose([found.minimum, found.maximum], [values.min(axis=1), values.max(axis=1)], rtol=1e-3)
    assert found.overall_std == pytest.approx(np.sqrt(values.var(axis=1).mean()), rel=1e-3)


def test_latents_as_a_diffusion_model_wants_them_bring_no_warning():
    found = gathered(gaussian(4, 5000))
    np.testing.assert_allclose(found.kurtosis, 0, atol=0.2)
    assert latent_warnings(found) == []


def test_every_fault_is_reported_with_its_channel():
    values = gaussian(8, 2000)
    values[1] = 0.5
    values[2] *= 40
    values[3, 5] = 500
    values[4, :3] = np.nan, np.inf, -np.inf
    values[5] += 20
    found = gathered(values)
    assert (found.dead(), found.exploding(), found.off_centre()) == ([1], [2, 3, 4], [5])
    warnings = latent_warnings(found)
    assert warnings[0].startswith("the standard deviation over all channels is 1") and len(warnings) == 6
    assert warnings[1].startswith("channel 2 explodes: the standard deviation is ")
    assert warnings[2].startswith("channel 3 explodes: a value lies 4")
    assert warnings[3] == "channel 4 explodes: 3 of 2000 values are not finite"
    assert warnings[4].startswith("channel 1 is dead: its standard deviation is 0, the median 1")
    assert warnings[5].startswith("channel 5 is off centre: its mean is 20, it should be near 0")
    assert np.isfinite(found.mean).all() and np.isnan(found.kurtosis[1])


def test_latents_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"latents are \(3, 5\); expected \[4, frames\]"):
        LatentStatistics(4).add(np.zeros((3, 5)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Sounds, an encoded corpus of them, and autoencoders."""
    root = tmp_path_factory.mktemp("latents")
    (root / "sounds").mkdir()
    sounds = [torch.from_numpy(noise(seconds, 8000, seed=index)) for index, seconds in enumerate((0.5, 1.0, 0.7))]
    for index, sound in enumerate(sounds):
        write_audio(root / f"sounds/{index}.wav", sound, 8000)
    clips = write_clips(root / "clips", sounds, [[(250, 0, 0)]] * 3)
    spectral = SpectralAutoencoder(8000, n_fft=256, hop_length=80, num_mels=32, latent_channels=32)
    spectral.save_pretrained(root / "spectral")
    encode(clips, root / "encoded", autoencoder=spectral, clip=FakeClip(), progress=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        write_encodec(root / "encodec")
        write_oobleck(root / "oobleck")
    return root


@pytest.fixture
def latents(folders, tmp_path, monkeypatch, capsys):
    """Run `diffaudio latents` in an empty folder; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return main(["latents", *map(str, arguments)]), *capsys.readouterr()

    return run


def test_the_latents_of_a_corpus_and_of_its_sounds_have_the_same_statistics(latents, folders):
    rows = list(encoded_latents(folders / "encoded"))
    assert [row.shape for row in rows] == [(32, 13), (32, 25), (32, 18)]
    code, of_corpus, errors = latents(folders / "encoded", "--all", "-o", "picture.png")
    assert (code, errors) == (0, "")
    assert Path("picture.png").read_bytes().startswith(b"\x89PNG")
    code, of_sounds, _ = latents(folders / "sounds", "--all", "--autoencoder", folders / "spectral", "--device", "cpu")
    assert code == 0
    table, other = (
        np.array([line.split() for line in text.splitlines()[1:33]], float) for text in (of_corpus, of_sounds)
    )
    np.testing.assert_allclose(table, other, rtol=0.02, atol=0.02)
    np.testing.assert_allclose(table[:, 1], np.concatenate(rows, axis=1).mean(axis=1, dtype=np.float64), rtol=0.01)
    assert "encoded: 3 sounds, 56 frames of spectral_8khz_32x25hz; standard deviation over all channels" in of_corpus
    assert "is off centre: its mean is" in of_corpus  # a log-mel that nobody fitted


def test_the_table_is_short_unless_all_is_wanted(latents, folders):
    _, printed, _ = latents(folders / "encoded")
    lines = printed.splitlines()
    assert lines[0].split() == ["channel", "mean", "std", "minimum", "maximum", "kurtosis"]
    assert lines[9] == "    … and 24 more; --all tells of every one"


def test_a_fitted_autoencoder_has_latents_of_mean_0_and_deviation_1(latents, folders):
    given = [folders / "sounds", "--autoencoder", folders / "oobleck", "--device", "cpu"]
    _, before, _ = latents(*given)
    code, after, errors = latents(*given, "--fit", "fitted", "--all")
    assert (code, errors) == (0, "")
    table = np.array([line.split() for line in after.splitlines()[1:9]], float)
    np.testing.assert_allclose(table[:, 1], 0, atol=0.01)
    np.testing.assert_allclose(table[:, 2], 1, atol=0.01)
    assert "warning" not in after and before != after
    assert load_autoencoder("fitted").name == "oobleck_8khz_8x125hz"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: there is no such file or folder"),
        (["sounds", "-o", "picture.txt"], "picture.txt: name a .png file"),
        (["encoded", "--fit", "new"], "is an encoded corpus; --autoencoder, --device and --fit have no effect on it"),
        (["clips"], "is a corpus of format 'diffaudio-clips', wanted is 'diffaudio-latents'"),
        (
            ["sounds", "--autoencoder", "spectral", "--fit", "new"],
            "--fit is for autoencoders of other libraries; spectral",
        ),
        (
            ["sounds", "--autoencoder", "encodec", "--fit", "sounds"],
            "sounds: already exists; name a new or empty folder",
        ),
    ],
)
def test_errors_are_one_line_messages(latents, folders, arguments, message):
    given = [folders / a if (folders / a).exists() else a for a in arguments]
    code, printed, errors = latents(*given)
    assert code == 2 and printed == "" and errors.count("\n") == 1
    assert message in errors
