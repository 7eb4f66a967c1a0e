"""The learned parts of the spectral autoencoder: detail and vocoder."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_autoencoders import randomised_ends
from tiny_spectral import RATE, fitted, sounds, tiny

from diffaudio.errors import UserError
from diffaudio.models.autoencoders import SpectralAutoencoder, load_autoencoder
from diffaudio.models.autoencoders.detail_and_vocoder import DetailSettings, energy_distance
from diffaudio.models.autoencoders.mel_inversion import InversionSettings

PARTS: dict[str, Any] = {"detail": {"channels": 16, "blocks": 1}, "vocoder": {"channels": 16, "blocks": 1}}


@pytest.fixture(scope="module")
def learned() -> SpectralAutoencoder:
    torch.manual_seed(0)
    autoencoder, _ = fitted(sounds(), **PARTS, inversion={"iterations": 2})
    randomised_ends(autoencoder)
    return autoencoder


def test_the_settings_of_the_parts_are_dataclasses_or_dictionaries_as_in_the_config(tmp_path: Path):
    inversion, detail = InversionSettings(iterations=3, seed=2), DetailSettings(16, temperature=0.5)
    autoencoder = tiny(inversion=inversion, detail=detail, vocoder={"channels": 8})
    assert autoencoder.config["inversion"] == {"iterations": 3, "momentum": 0.99, "seed": 2, "joint": True}
    assert autoencoder.config["detail"] == {"channels": 16, "blocks": 4, "temperature": 0.5}
    assert autoencoder.inversion.settings == inversion and autoencoder.detail_temperature == 0.5
    autoencoder.save_pretrained(tmp_path)
    loaded = load_autoencoder(tmp_path)
    assert loaded.config["vocoder"] == {"channels": 8, "blocks": 4} and loaded.inversion.settings == inversion
    assert tiny().config["detail"] is None
    for settings, message in (
        ({"inversion": {"rounds": 3}}, "inversion: unknown key 'rounds'; choose from iterations, momentum"),
        ({"detail": {"blocks": 3}}, "detail: channels is missing"),
    ):
        with pytest.raises(UserError, match=message):
            tiny(**settings)


def test_untrained_parts_change_nothing():
    plain, _ = fitted(sounds(), inversion={"iterations": 2})
    with_parts, _ = fitted(sounds(), **PARTS, inversion={"iterations": 2})
    latents = plain.encode(sounds())
    assert torch.equal(with_parts.encode(sounds()), latents)
    torch.testing.assert_close(with_parts.decode(latents), plain.decode(latents), rtol=0, atol=1e-5)


@pytest.mark.parametrize("part", ["detail", "vocoder"])
def test_each_part_changes_the_sound_and_none_the_latents(part, learned):
    plain, _ = fitted(sounds(), inversion={"iterations": 2})
    alone, _ = fitted(sounds(), **{part: PARTS[part]}, inversion={"iterations": 2})
    getattr(alone, part).load_state_dict(getattr(learned, part).state_dict())
    latents = plain.encode(sounds())
    assert torch.equal(alone.encode(sounds()), latents)
    assert (alone.decode(latents) - plain.decode(latents)).abs().max() > 0.01


def test_detail_draws_as_much_as_its_temperature_says_and_the_same_for_the_same_latents(learned):
    latents = learned.encode(sounds())
    even = learned.decode(latents)
    learned.detail_temperature = 1.0
    try:
        drawn = learned.decode(latents)
        assert torch.equal(learned.decode(latents[:1]), drawn[:1])
    finally:
        learned.detail_temperature = 0.0
    assert (drawn - even).abs().max() > 0.01
    assert torch.equal(learned.decode(latents), even)


def test_a_saved_folder_keeps_the_code_as_it_is_and_the_learned_parts_in_half_precision(learned, tmp_path: Path):
    learned.save_pretrained(tmp_path)
    loaded = load_autoencoder(tmp_path)
    latents = learned.encode(sounds())
    assert torch.equal(loaded.encode(sounds()), latents)
    torch.testing.assert_close(loaded.decode(latents), learned.decode(latents), rtol=0, atol=0.02)
    halves = sum(p.numel() for part in (learned.detail, learned.vocoder) for p in part.parameters())
    whole = sum(p.numel() for p in learned.parameters()) - halves
    assert (tmp_path / "diffusion_pytorch_model.safetensors").stat().st_size < 4 * whole + 2 * halves + 6000
    assert all(parameter.dtype == torch.float32 for parameter in learned.parameters())


def test_training_reaches_the_parts_that_are_to_learn_and_nothing_else(learned):
    for parts in (["detail"], ["vocoder"], ["detail", "vocoder"]):
        learned.learn(parts)
        learned.zero_grad()
        passed = learned(sounds(duration_s=0.4), torch.Generator().manual_seed(0))
        assert list(passed.losses) == parts
        assert passed.waveform.shape == sounds(duration_s=0.4).shape
        assert passed.waveform.requires_grad == ("vocoder" in parts)
        torch.stack(list(passed.losses.values())).sum().backward()
        reached = {name.split(".")[0] for name, p in learned.named_parameters() if p.grad is not None and p.grad.any()}
        assert reached == set(parts)


def test_autocast_reaches_the_networks_alone(learned):
    waveform = sounds(duration_s=0.4)
    with torch.autocast("cpu", torch.bfloat16):
        rough = learned.inversion(learned.log_mel(waveform[:, 0]))
    assert torch.equal(rough, learned.inversion(learned.log_mel(waveform[:, 0])))
    learned.learn(["detail", "vocoder"])
    exact = learned(waveform, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        rough = learned(waveform, torch.Generator().manual_seed(0))
    for name, loss in exact.losses.items():
        assert loss.item() != rough.losses[name].item() == pytest.approx(loss.item(), rel=0.05)


def test_draws_of_training_belong_to_the_generator(learned):
    learned.learn(["detail", "vocoder"])

    def losses(seed: int) -> list[float]:
        passed = learned(sounds(duration_s=0.4), torch.Generator().manual_seed(seed))
        return [loss.item() for loss in passed.losses.values()]

    assert losses(0) == losses(0)
    assert all(a != b for a, b in zip(losses(0), losses(1), strict=True))


def test_each_part_learns():
    torch.manual_seed(0)
    autoencoder, _ = fitted(sounds(), **PARTS, inversion={"iterations": 1}, latent_channels=8)
    optimizer = torch.optim.Adam([p for p in autoencoder.parameters() if p.requires_grad], lr=1e-2)
    seen = []
    for step in range(20):
        passed = autoencoder(sounds(duration_s=0.4), torch.Generator().manual_seed(step))
        seen.append([loss.item() for loss in passed.losses.values()])
        torch.stack(list(passed.losses.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    first, last = torch.tensor(seen[:5]).mean(dim=0), torch.tensor(seen[-5:]).mean(dim=0)
    assert (last < 0.9 * first).all(), (first, last)


def test_a_part_that_is_not_there_cannot_learn():
    with pytest.raises(ValueError, match="has no vocoder; add one with spectral.vocoder.channels"):
        tiny(detail={"channels": 8}).learn(["vocoder"])


def test_the_energy_distance_is_least_for_draws_from_what_is_given():
    generator = torch.Generator().manual_seed(0)

    def normal(deviation: float) -> torch.Tensor:
        return deviation * torch.randn(200_000, 1, generator=generator)

    def distance(deviation: float) -> float:
        return energy_distance(normal(deviation), normal(deviation), normal(1)).item()

    # of normal numbers x, x', y: E|x - y| - E|x - x'| / 2 = sqrt(2/pi) sqrt(1 + s^2) - s / sqrt(pi)
    for deviation in (0.0, 0.5, 1.0, 1.5):
        expected = math.sqrt(2 / math.pi * (1 + deviation**2)) - deviation / math.sqrt(math.pi)
        assert distance(deviation) == pytest.approx(expected, abs=0.01)
    assert distance(1.0) < min(distance(0.5), distance(1.5))


def test_distances_are_those_of_groups_by_the_root_of_their_size():
    x, y = torch.zeros(3, 4), torch.full((3, 4), 2.0)
    assert energy_distance(x, x, y).item() == pytest.approx(2.0, abs=1e-3)


def test_a_spectrum_that_has_the_right_log_mel_comes_from_the_log_mel_of_its_sound():
    """The inversion's own transform: back and forth loses nothing."""
    inversion = tiny().inversion
    waveform = sounds(1)[:, 0, : 80 * 40]
    restored = inversion.istft(inversion.stft(waveform))
    torch.testing.assert_close(restored[:, 200:-200], waveform[:, 200:-200], rtol=0, atol=1e-4)
    assert inversion.log_mel(waveform).shape == (1, 40, 32)
    assert restored.shape[1] / RATE == 0.4
