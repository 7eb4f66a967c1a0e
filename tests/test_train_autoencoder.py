import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from diffaudio.audio import decode_flac, scale_to_peak
from diffaudio.corpus.prepare import PrepareSettings, prepare
from diffaudio.corpus.store import part_files, read_groups
from diffaudio.models.autoencoders import SpectralAutoencoder, load_autoencoder
from tests.media import noise, numbered_pictures, tone, write_media
from tests.scripts import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("train/autoencoder.py")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train-autoencoder")
    (folder / "videos").mkdir()
    for index in range(3):
        sound = tone(1.0, 44100, frequency=300.0 * (index + 1)) + noise(1.0, 44100, gain=0.02, seed=index)
        write_media(folder / "videos" / f"{index}.mp4", sound=sound, pictures=numbered_pictures(1.0))
    prepare([folder / "videos"], folder / "corpus", PrepareSettings(sample_rate=8000), progress=False)
    return folder / "corpus"


def test_the_fitted_autoencoder_is_the_principal_components_of_the_corpus(
    script: ModuleType, corpus: Path, tmp_path: Path
):
    settings = {"sample_rate": 8000, "n_fft": 256, "hop_length": 80, "num_mels": 32, "latent_channels": 16}
    script.main(script.Config(data=corpus, out=tmp_path / "run", spectral=script.SpectralSettings(**settings)))
    autoencoder = load_autoencoder(tmp_path / "run" / "model")
    assert isinstance(autoencoder, SpectralAutoencoder)
    clips = [row for part in part_files(corpus, "clips") for rows in read_groups(part) for row in rows]
    assert len(clips) == 3
    waveforms = [scale_to_peak(decode_flac(row["audio"])[0], 0.7) for row in clips]
    patches = torch.cat([autoencoder.patches(waveform[None])[0] for waveform in waveforms], dim=1)
    latents = torch.cat([autoencoder.encode(waveform[None])[0] for waveform in waveforms], dim=1)
    assert latents.square().mean().sqrt() == pytest.approx(1, abs=0.01)
    directions = torch.linalg.svd(patches - patches.mean(dim=1, keepdim=True), full_matrices=False).U[:, :4]
    overlap = (directions.T @ autoencoder.components[:, :4]).abs()
    torch.testing.assert_close(overlap, torch.eye(4), rtol=0, atol=0.02)
    report = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert report["patches"] == patches.shape[1]
    assert 0.5 < report["variance_kept"] < 1


def test_in_stereo_the_code_is_of_both_channels(script: ModuleType, corpus: Path, tmp_path: Path):
    settings = {"sample_rate": 8000, "n_fft": 256, "hop_length": 80, "num_mels": 32, "latent_channels": 16}
    spectral = script.SpectralSettings(audio_channels=2, **settings)
    script.main(script.Config(data=corpus, out=tmp_path / "run", spectral=spectral))
    autoencoder = load_autoencoder(tmp_path / "run" / "model")
    assert isinstance(autoencoder, SpectralAutoencoder) and autoencoder.audio_channels == 2
    left, right = autoencoder.components.split(128)  # of clips that are the same on both sides
    torch.testing.assert_close(left[:, :4], right[:, :4], rtol=0, atol=1e-3)


def test_a_folder_that_is_no_corpus_is_refused(script: ModuleType, tmp_path: Path):
    with pytest.raises(ValueError, match=r"is no corpus, manifest.json is missing"):
        script.main(script.Config(data=tmp_path, out=tmp_path / "run"))
