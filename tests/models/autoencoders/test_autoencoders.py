import json
from pathlib import Path

import pytest
import torch
from tiny_spectral import RATE, fitted, sounds, tiny

from diffaudio.models.autoencoders import load_autoencoder


def stereo_sounds() -> torch.Tensor:
    """[4, 2, samples]: tones on the left, on the right, in the middle, and between"""
    levels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.3]])
    return sounds() * levels[:, :, None]


def test_the_length_is_kept_and_latents_have_the_rate_they_say():
    autoencoder = tiny()
    for samples in (1, 319, 320, 321, 5000):
        latents = autoencoder.encode(torch.zeros(2, 1, samples))
        assert latents.shape == (2, 32, autoencoder.num_latent_frames(samples / RATE))
        assert autoencoder.decode(latents, num_samples=samples).shape == (2, 1, samples)
    assert autoencoder.latent_rate == 25


def test_latents_of_the_corpus_it_was_fitted_to_have_mean_0_and_deviation_1():
    waveforms = sounds()
    autoencoder, _ = fitted(waveforms)
    latents = autoencoder.encode(waveforms)
    assert latents.mean(dim=(0, 2)).abs().max() < 1e-3
    assert latents.square().mean().sqrt() == pytest.approx(1, abs=1e-3)


def test_a_channel_is_divided_by_the_square_root_of_its_deviation():
    waveforms = sounds()
    autoencoder, variances = fitted(waveforms)
    deviations = autoencoder.encode(waveforms).square().mean(dim=(0, 2)).sqrt()
    expected = variances[:32].float() ** 0.25
    torch.testing.assert_close(deviations / deviations[0], expected / expected[0], rtol=0.02, atol=1e-3)


def test_components_are_orthonormal_and_the_variance_they_leave_out_is_the_error():
    waveforms = sounds()
    autoencoder, variances = fitted(waveforms)
    components = autoencoder.components
    torch.testing.assert_close(components.T @ components, torch.eye(32), rtol=0, atol=1e-5)
    patches = autoencoder.patches(waveforms)
    restored = components @ (autoencoder.encode(waveforms) * autoencoder.scale[:, None]) + autoencoder.mean[:, None]
    error = (patches - restored).square().sum(dim=1).mean().item()
    assert error == pytest.approx(variances[32:].sum().item(), rel=1e-3)


def test_a_crop_of_the_latents_is_the_latents_of_the_crop():
    autoencoder, _ = fitted(sounds())
    waveform = sounds(1)
    whole = autoencoder.encode(waveform)
    crop = autoencoder.encode(waveform[..., 8 * 320 : 16 * 320])
    torch.testing.assert_close(crop[..., 1:-1], whole[..., 9:15])


def test_a_tone_keeps_its_pitch_and_its_level():
    autoencoder, _ = fitted(sounds(), latent_channels=128, inversion={"iterations": 8})
    waveform = sounds(2)[1:]
    restored = autoencoder.decode(autoencoder.encode(waveform), num_samples=waveform.shape[-1])
    spectra = torch.fft.rfft(torch.cat([waveform, restored])[:, 0]).abs()
    before, after = spectra.argmax(dim=1).tolist()
    assert abs(before - after) * RATE / waveform.shape[-1] < 15
    assert restored.square().mean().sqrt() == pytest.approx(waveform.square().mean().sqrt().item(), rel=0.15)


def test_more_iterations_bring_the_spectrogram_nearer_to_the_one_asked_for():
    waveform = sounds(1)

    def distance(iterations: int) -> float:
        autoencoder = tiny(inversion={"iterations": iterations})
        wanted = autoencoder.log_mel(waveform[:, 0])
        return (autoencoder.log_mel(autoencoder.inversion(wanted)) - wanted).abs().mean().item()

    assert distance(8) < 0.75 * distance(0)


def test_magnitudes_sought_beside_phases_come_nearer_to_the_log_mel_than_those_of_its_pseudo_inverse():
    waveform = sounds(1)

    def distance(joint: bool) -> float:
        autoencoder = tiny(inversion={"iterations": 8, "joint": joint})
        wanted = autoencoder.log_mel(waveform[:, 0])
        return (autoencoder.log_mel(autoencoder.inversion(wanted)) - wanted).abs().mean().item()

    assert distance(joint=True) < 0.8 * distance(joint=False)


def test_in_stereo_each_side_keeps_its_level_and_what_is_the_same_on_both_stays_so():
    waveforms = stereo_sounds()
    autoencoder, _ = fitted(waveforms, audio_channels=2, latent_channels=64)
    assert (autoencoder.name, autoencoder.audio_channels) == ("spectral_stereo_8khz_64x25hz", 2)
    latents = autoencoder.encode(waveforms)
    restored = autoencoder.decode(latents, num_samples=waveforms.shape[-1])
    assert latents.shape == (4, 64, 20) and restored.shape == waveforms.shape
    levels, before = restored.square().mean(dim=2).sqrt(), waveforms.square().mean(dim=2).sqrt()
    torch.testing.assert_close(levels, before, rtol=0.2, atol=0.01)
    every, _ = fitted(waveforms, audio_channels=2, latent_channels=256)
    left, right = every.decode(every.encode(waveforms[2:3]))[0]
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-3)


def test_one_channel_of_a_stereo_code_is_what_mono_makes_of_it():
    mono, stereo = tiny(latent_channels=128), tiny(audio_channels=2, latent_channels=256)
    left, right = sounds(2)
    both = stereo.encode(torch.stack([left[0], right[0]])[None])
    torch.testing.assert_close(both[:, :128], mono.encode(left[None]))
    torch.testing.assert_close(both[:, 128:], mono.encode(right[None]))
    torch.testing.assert_close(stereo.decode(both)[:, 1:], mono.decode(mono.encode(right[None])), rtol=1e-3, atol=1e-4)


def test_a_folder_from_before_stereo_is_mono(tmp_path: Path):
    autoencoder, _ = fitted(sounds())
    autoencoder.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["audio_channels"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_autoencoder(tmp_path)
    assert loaded.audio_channels == 1 and loaded.name == "spectral_8khz_32x25hz"
    assert torch.equal(loaded.encode(sounds(1)), autoencoder.encode(sounds(1)))


def test_silence_stays_silence():
    autoencoder = tiny(latent_channels=128)
    silence = torch.zeros(1, 1, 4000)
    assert autoencoder.decode(autoencoder.encode(silence)).abs().max() < 1e-4


def test_decoding_depends_on_the_latents_alone():
    autoencoder, _ = fitted(sounds())
    latents = autoencoder.encode(sounds(2))
    torch.manual_seed(1)
    first = autoencoder.decode(latents)
    torch.manual_seed(2)
    assert torch.equal(first, autoencoder.decode(latents))
    torch.testing.assert_close(first[1:], autoencoder.decode(latents[1:]), rtol=1e-3, atol=1e-4)


def test_a_saved_autoencoder_decodes_the_same(tmp_path: Path):
    autoencoder, _ = fitted(sounds())
    autoencoder.save_pretrained(tmp_path / "autoencoder")
    loaded = load_autoencoder(tmp_path / "autoencoder")
    latents = autoencoder.encode(sounds(1))
    assert loaded.name == autoencoder.name == "spectral_8khz_32x25hz"
    assert torch.equal(loaded.encode(sounds(1)), latents)
    assert torch.equal(loaded.decode(latents), autoencoder.decode(latents))
    assert {path.suffix for path in (tmp_path / "autoencoder").iterdir()} == {".json", ".safetensors"}


def test_errors_say_what_was_given(tmp_path: Path):
    autoencoder = tiny()
    with pytest.raises(ValueError, match=r"waveform is \(1, 2, 100\); expected \[batch, 1, samples\]"):
        autoencoder.encode(torch.zeros(1, 2, 100))
    with pytest.raises(ValueError, match=r"latents are \(1, 7, 3\); expected \[batch, 32, frames\]"):
        autoencoder.decode(torch.zeros(1, 7, 3))
    with pytest.raises(ValueError, match=r"latent_channels is 129; num_mels \* patch_steps allow 1 to 128"):
        tiny(latent_channels=129)
    with pytest.raises(ValueError, match=r"latent_channels is 257; 2 \* num_mels \* patch_steps allow 1 to 256"):
        tiny(latent_channels=257, audio_channels=2)
    with pytest.raises(ValueError, match=r"audio_channels is 3; choose 1 \(mono\) or 2 \(stereo\)"):
        tiny(audio_channels=3)
    with pytest.raises(ValueError, match=r"not an autoencoder folder, config.json is missing"):
        load_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "Other"}))
    with pytest.raises(ValueError, match=r"autoencoder 'Other' is unknown; choose from SpectralAutoencoder"):
        load_autoencoder(tmp_path)
