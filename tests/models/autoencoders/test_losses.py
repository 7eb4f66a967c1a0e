"""Losses, discriminator and balancer that autoencoders are trained by, and the watch over training."""

import math

import pytest
import torch
from torch import nn

from diffaudio.media.audio import resample
from diffaudio.metrics.reconstruction import log_mel_distance_db
from diffaudio.models.autoencoders import Autoencoder, SpectralAutoencoder, TrainingPass
from diffaudio.models.autoencoders.discriminator import (
    MultiScaleSTFTDiscriminator,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
)
from diffaudio.models.autoencoders.losses import Balancer, LogMels, MelResolution, mel_loss
from diffaudio.training.autoencoder.objective import AdversarySettings, LossSettings, Objective

RESOLUTIONS = [MelResolution(256, 64, 20), MelResolution(128, 32, 10, 2000.0, 0.5)]


def sounds(batch: int = 2, samples: int = 4000, channels: int = 1, seed: int = 0) -> torch.Tensor:
    return 0.2 * torch.randn(batch, channels, samples, generator=torch.Generator().manual_seed(seed))


def test_the_mel_loss_of_a_sound_and_a_softer_one_is_the_gain_in_db():
    x = sounds()
    mels = LogMels(RESOLUTIONS, 8000)
    assert [tuple(mel.shape) for mel in mels(x)] == [(2, 20, 59), (2, 10, 122)]
    loss = mel_loss(mels(x), mels(0.5 * x), RESOLUTIONS)
    assert loss.item() == pytest.approx(1.5 * 20 * math.log10(2), rel=1e-5)
    assert mel_loss(mels(x), mels(x), RESOLUTIONS) == 0
    assert mel_loss(mels(torch.zeros(1, 2, 999)), mels(1e-6 * sounds(1, 999, 2)), RESOLUTIONS) == 0  # below the floor


def test_the_first_default_resolution_at_24_khz_is_the_metric():
    x, y = (resample(sounds(1, 16000, seed=seed)[0, 0], 16000, 24000) for seed in (0, 1))
    y = 0.3 * x + 0.02 * y
    x, y = (0.7 * wave / wave.abs().max() for wave in (x, y))
    first = LossSettings().mel_resolutions[:1]
    mels = LogMels(first, 24000)
    loss = mel_loss(mels(x[None, None]), mels(y[None, None]), first)
    assert loss.item() == pytest.approx(
        log_mel_distance_db(resample(x, 24000, 16000), resample(y, 24000, 16000)), rel=0.02
    )


def test_bands_above_half_the_sample_rate_are_refused():
    with pytest.raises(
        ValueError, match=r"f_max of a mel resolution is 8000 Hz; at 8000 Hz it lies .* at 4000 or below"
    ):
        LogMels([MelResolution(256, 64, 20, 8000.0)], 8000)
    with pytest.raises(ValueError, match="hop_length of a mel resolution is 0; it must be above 0"):
        MelResolution(256, 0, 20)


@pytest.mark.parametrize("channels", [1, 2])
def test_the_discriminator_judges_each_scale_and_knows_its_layers(channels):
    torch.manual_seed(0)
    judge = MultiScaleSTFTDiscriminator([256, 128], filters=4, audio_channels=channels)
    judged = judge(sounds(3, 2000, channels))
    steps = [(2000 - n_fft) // (n_fft // 4) + 1 for n_fft in (256, 128)]
    assert [logits.shape[:3] for logits in judged.logits] == [(3, 1, count) for count in steps]
    bins = [129, 65, 33, 17, 17]  # the first layer keeps the bins, three halve them
    assert [tuple(f.shape) for f in judged.features[0]] == [(3, 4, steps[0], count) for count in bins]
    swapped = judge(sounds(3, 2000, channels).flip(1))
    assert torch.equal(swapped.logits[0], judged.logits[0]) == (channels == 1)


def test_adversarial_losses_are_hinges_and_features_relative():
    real, made = [torch.tensor([2.0, 0.0]), torch.tensor([0.5])], [torch.tensor([-3.0, 0.5]), torch.tensor([-0.5])]
    assert discriminator_loss(real, made) == ((0 + 1) / 2 + (0 + 1.5) / 2 + 0.5 + 0.5) / 2
    assert adversarial_loss(made) == ((4 + 0.5) / 2 + 1.5) / 2
    x, y = [[torch.tensor([1.0, -3.0]), torch.tensor([2.0])]], [[torch.tensor([2.0, -3.0]), torch.tensor([0.0])]]
    assert feature_loss(x, y) == (0.5 / 2 + 2 / 2) / 2
    assert feature_loss(x, x) == 0


def test_the_balancer_gives_each_loss_its_share_whatever_its_scale():
    y = sounds(4, 10).requires_grad_()
    target = sounds(4, 10, seed=1)
    balancer = Balancer({"a": 1.0, "b": 3.0}, decay=0.9)
    losses = {"a": 1e4 * (y * target).mean(), "b": 1e-3 * y.mean()}
    gradient = balancer.gradient(losses, y)
    of_a = target / target.flatten(1).norm(dim=1).mean()
    of_b = torch.ones_like(target) / 10**0.5
    torch.testing.assert_close(gradient, (0.25 * of_a + 0.75 * of_b) / 4)


def test_the_balancer_averages_norms_over_steps_and_processes_and_can_be_resumed():
    y = sounds(1, 10).requires_grad_()
    balancer = Balancer({"a": 1.0, "b": 1.0}, decay=0.5)
    unit = torch.ones(1, 1, 10) / 10**0.5
    steps = []
    for scale in (1.0, 3.0):
        steps.append(balancer.gradient({"b": scale * (y * unit).sum()}, y, lambda norms: 2 * norms))
    torch.testing.assert_close(steps[0], unit / 2)
    torch.testing.assert_close(steps[1], 3 * unit / (2 * (0.25 * 1 + 0.5 * 3) / 0.75))
    other = Balancer({"a": 1.0, "b": 1.0}, decay=0.5)
    other.load_state_dict(balancer.state_dict())
    both = [kept.gradient({"a": y.sum(), "b": (y**2).sum()}, y) for kept in (balancer, other)]
    assert torch.equal(*both)


class Scaled(Autoencoder):
    """Learns how loud to be."""

    sample_rate, audio_channels, name, keeps_phase = 8000, 1, "scaled", True

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def passed(self, x: torch.Tensor, with_waveform: bool = True) -> TrainingPass:
        return TrainingPass(self.gain * x if with_waveform else x, {"size": self.gain**2})


def objective(losses: dict, **adversary) -> Objective:
    settings = LossSettings(**({"mel": 0.0, "mel_resolutions": RESOLUTIONS} | losses))
    torch.manual_seed(0)
    return Objective(settings, AdversarySettings(windows=[256], filters=2, **adversary), Scaled(), 4000)


def test_gradients_of_all_losses_reach_the_parameters_once_with_their_weights():
    x, scaled = sounds(), Scaled()
    values = objective({"waveform": 2.0, "own": {"size": 0.1}}).backward(scaled.passed(x), x, 0)
    mean = x.abs().mean().item()
    assert values["waveform"].item() == pytest.approx(0.5 * mean)
    assert values["loss"].item() == pytest.approx(2 * 0.5 * mean + 0.1 * 0.25)
    assert scaled.gain.grad.item() == pytest.approx(-2 * mean + 0.1 * 2 * 0.5)
    alone = Scaled()
    objective({"own": {"size": 3.0}}).backward(alone.passed(x, with_waveform=False), x, 0)
    assert alone.gain.grad.item() == pytest.approx(3.0)


def test_the_adversary_teaches_and_learns_from_its_step_on():
    x = sounds()
    of = objective({"waveform": 1.0, "own": {"size": 0.0}}, weight=1.0, feature_weight=1.0, from_step=3)
    assert of.discriminator is not None
    before = [p.clone() for p in of.discriminator.parameters()]
    for step in (2, 3):
        passed = Scaled().passed(x)
        values = of.backward(passed, x, step) | of.backward_adversary(
            of.discriminator, x, passed, step, torch.Generator()
        )
        assert ({"adversarial", "feature", "discriminator"} <= values.keys()) == (step == 3)
        assert values["loss"] == values["waveform"]
        of.step_adversary()
        unchanged = all(torch.equal(p, q) for p, q in zip(before, of.discriminator.parameters(), strict=True))
        assert unchanged == (step == 2)
    assert of.parts().keys() == {"discriminator", "discriminator_optimizer"}


def test_the_adversary_learns_to_tell_noise_from_a_tone():
    x, tone = sounds(4, 1000), 0.2 * torch.sin(torch.arange(1000.0)).expand(4, 1, -1)
    of = objective({"waveform": 1.0, "own": {}}, weight=1.0, lr=1e-2)
    for _ in range(60):
        values = of.backward_adversary(of.discriminator, x, TrainingPass(tone), 0, torch.Generator())
        of.step_adversary()
    assert values["discriminator"] < 0.5
    assert of.discriminator is not None
    assert adversarial_loss(of.discriminator(tone).logits) > 1.5 > 0.5 > adversarial_loss(of.discriminator(x).logits)


def test_the_adversary_learns_as_often_as_it_is_said():
    x = sounds(1, 1000)
    of = objective({"waveform": 1.0, "own": {"size": 0.0}}, weight=1.0, update_probability=0.3)
    generator = torch.Generator().manual_seed(0)
    passed = Scaled().passed(x)
    learned = sum(bool(of.backward_adversary(of.discriminator, x, passed, 0, generator)) for _ in range(100))
    assert 20 <= learned <= 40


@pytest.mark.parametrize(
    ("losses", "adversary", "message"),
    [
        ({}, {}, "no loss has a weight; set losses.mel, for example"),
        ({"mel": 1.0, "balance": True}, {}, "losses.balance has no effect with 1 losses of the reconstruction"),
        (
            {"mel": 1.0, "mel_resolutions": []},
            {},
            "losses.mel_resolutions are empty; give some, or set losses.mel to 0",
        ),
        ({}, {"weight": 1.0, "from_step": 5}, "nothing is learned before adversary.from_step 5; set losses.mel"),
        (
            {"mel": 1.0, "mel_resolutions": [MelResolution(2048, 64, 20)]},
            {},
            "train.duration_s gives 4000 samples, but a loss has windows of 2048; take 0.51 s at least",
        ),
    ],
)
def test_losses_without_effect_are_refused(losses, adversary, message):
    with pytest.raises(ValueError, match=message):
        objective(losses, **adversary)


def test_losses_that_do_not_go_with_the_autoencoder_are_refused():
    spectral = SpectralAutoencoder(n_fft=256, hop_length=64, num_mels=8, patch_steps=2, latent_channels=4)
    with pytest.raises(ValueError, match="losses.waveform is 1, but 'spectral_24khz.*' does not keep the phase"):
        Objective(LossSettings(waveform=1.0), AdversarySettings(), spectral, 24000)
    with pytest.raises(ValueError, match="SpectralAutoencoder|learn"):
        Autoencoder.forward(spectral, sounds())
    x, scaled = sounds(), Scaled()
    with pytest.raises(ValueError, match=r"do not reach the parts .* trained; set waveform to 0, and give its own"):
        objective({"waveform": 1.0, "own": {"size": 1.0}}).backward(scaled.passed(x, with_waveform=False), x, 0)
    with pytest.raises(ValueError, match="losses.own.kl has no effect: the autoencoder's own losses are size"):
        objective({"own": {"kl": 1.0}}).backward(scaled.passed(x), x, 0)
    with pytest.raises(ValueError, match=r"own loss 'size' has no weight; set losses.own.size"):
        objective({"waveform": 1.0}).backward(scaled.passed(x), x, 0)
