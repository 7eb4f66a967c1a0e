"""What an autoencoder minimises: losses of its reconstructions, and losses of its own.

    x, y    originals and reconstructions [batch, audio_channels, samples]

The gradients of all losses of y are added up, or balanced, at y, and are propagated through the autoencoder once. Its
own losses, such as a KL divergence, are added with their weights.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffaudio.config import Count, NonNegative, NonNegativeCount, Positive, Share
from diffaudio.errors import UserError
from diffaudio.models.autoencoders import Autoencoder, TrainingPass
from diffaudio.models.autoencoders.discriminator import (
    MultiScaleSTFTDiscriminator,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
)
from diffaudio.models.autoencoders.losses import Balancer, LogMels, MelResolution, mel_loss

__all__ = ["AdversarySettings", "LossSettings", "Objective"]


@dataclass
class LossSettings:
    """What the autoencoder minimises, each with its weight; 0 leaves a loss out.

    Attributes:
        mel: of the differences of log-mel spectrograms, in dB.
        mel_resolutions: of these spectrograms, each with n_fft, hop_length, num_mels, f_max and weight.
        waveform: of the mean absolute difference of the samples; only where the autoencoder keeps the phase.
        own: of the autoencoder's own losses, by name, such as kl. All that it has must be named.
        balance: whether weights are shares of the gradient at the reconstruction, whatever the losses' scales;
            applies to losses of the reconstruction only, not to `own`.
    """

    mel: NonNegative = 1.0
    mel_resolutions: list[MelResolution] = field(
        default_factory=lambda: [
            MelResolution(1536, 384, 80, 8000.0),
            MelResolution(2048, 512, 128, None, 0.5),
            MelResolution(512, 128, 64, None, 0.5),
        ]
    )
    waveform: NonNegative = 0.0
    own: dict[str, float] = field(default_factory=dict)
    balance: bool = False


@dataclass
class AdversarySettings:
    """A discriminator that learns to tell recordings from reconstructions, while the autoencoder learns to fool it.

    Attributes:
        weight: of the adversarial loss; 0 leaves it out.
        feature_weight: of feature matching, the difference of the discriminator's activations.
        windows: STFT windows of its networks, in samples.
        filters: width of their layers.
        lr: learning rate, which does not change.
        from_step: before this step it is neither used nor trained.
        update_probability: share of the steps in which it is trained; Défossez et al. 2022 use 2/3 at 24 kHz.
    """

    weight: NonNegative = 0.0
    feature_weight: NonNegative = 0.0
    windows: list[Count] = field(default_factory=lambda: [2048, 1024, 512])
    filters: Count = 32
    lr: Positive = 3e-4
    betas: tuple[float, float] = (0.5, 0.9)
    from_step: NonNegativeCount = 0
    update_probability: Share = 1.0


class Objective:
    """The losses, with the networks that some of them need.

    Args:
        num_samples: length of the training crops.

    Attributes:
        weights: of the losses of y, by name.
        balancer: None where they are not balanced.
        discriminator: None where there is no adversary.
        optimizer: of the discriminator.

    Raises:
        ValueError: settings have no effect, contradict each other, or do not suit the autoencoder.
    """

    def __init__(
        self, losses: LossSettings, adversary: AdversarySettings, autoencoder: Autoencoder, num_samples: int
    ) -> None:
        self._losses, self._adversary = losses, adversary
        weights = {
            "mel": losses.mel, "waveform": losses.waveform,
            "adversarial": adversary.weight, "feature": adversary.feature_weight,
        }  # fmt: skip
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self._check(autoencoder, num_samples)
        self.log_mels = LogMels(losses.mel_resolutions if losses.mel else (), autoencoder.sample_rate)
        self.balancer = Balancer(self.weights) if losses.balance else None
        self.discriminator = self.optimizer = None
        if adversary.weight or adversary.feature_weight:
            channels = autoencoder.audio_channels
            self.discriminator = MultiScaleSTFTDiscriminator(adversary.windows, adversary.filters, channels)
            parameters = self.discriminator.parameters()
            self.optimizer = torch.optim.AdamW(parameters, lr=adversary.lr, betas=adversary.betas)

    def _check(self, autoencoder: Autoencoder, num_samples: int) -> None:
        losses, adversary = self._losses, self._adversary
        if not self.weights and not any(losses.own.values()):
            raise UserError("no loss has a weight; set losses.mel, for example")
        alone = self.weights.keys() <= {"adversarial", "feature"} and not any(losses.own.values())
        if alone and adversary.from_step:
            raise UserError(
                f"nothing is learned before adversary.from_step {adversary.from_step}; set losses.mel, for example"
            )
        if losses.waveform and not autoencoder.keeps_phase:
            raise UserError(
                f"losses.waveform is {losses.waveform:g}, but '{autoencoder.name}' does not keep the phase; set it to 0"
            )
        if losses.balance and len(self.weights) < 2:
            raise UserError(
                f"losses.balance has no effect with {len(self.weights)} losses of the reconstruction; it shares out "
                "the gradient among mel, waveform, adversary.weight and adversary.feature_weight"
            )
        if losses.mel and not losses.mel_resolutions:
            raise UserError("losses.mel_resolutions are empty; give some, or set losses.mel to 0")
        longest = max([r.n_fft for r in losses.mel_resolutions] if losses.mel else [0])
        longest = max([longest, *adversary.windows] if adversary.weight or adversary.feature_weight else [longest])
        if num_samples < 2 * longest:
            raise UserError(
                f"train.duration_s gives {num_samples} samples, but a loss has windows of {longest}; "
                f"take {2 * longest / autoencoder.sample_rate:.2f} s at least"
            )

    def to(self, device: torch.device) -> "Objective":
        """Move everything there."""
        for module in (self.log_mels, self.balancer, self.discriminator):
            if module is not None:
                module.to(device)
        return self

    def backward(
        self, output: TrainingPass, x: Tensor, step: int, reduce: Callable[[Tensor], Tensor] = lambda value: value
    ) -> dict[str, Tensor]:
        """Compute the losses, and add their gradient to the autoencoder's parameters.

        Args:
            output: of the autoencoder for `x`.
            step: number of the step, from 0 on.
            reduce: computes the mean of a tensor over the processes.

        Returns:
            The losses by name, and as "loss" the weighted sum of all but the adversary's.

        Raises:
            ValueError: losses of the waveform have no effect, or its own losses are not those of the settings.
        """
        self._check_output(output)
        own = [weight * output.losses[name] for name, weight in self._losses.own.items() if weight]
        values = dict(output.losses)
        outputs, gradients = list(own), [None] * len(own)
        if self.weights:
            y = output.waveform.detach().float().requires_grad_()
            losses = self._of_waveform(x, y, step)
            if self.balancer:
                gradient = self.balancer.gradient(losses, y, reduce)
            else:
                total = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
                gradient = torch.autograd.grad(total, y)[0]
            values |= losses
            outputs, gradients = [*outputs, output.waveform], [*gradients, gradient.to(output.waveform.dtype)]
        torch.autograd.backward(outputs, gradients)  # pyright: ignore[reportArgumentType]
        not_adversarial = [
            *own,
            *(self.weights[name] * values[name] for name in ("mel", "waveform") if name in self.weights),
        ]
        reported = not_adversarial or [self.weights[name] * values[name] for name in self.weights if name in values]
        values["loss"] = torch.stack(reported).sum() if reported else x.new_zeros(())
        return {name: value.detach() for name, value in values.items()}

    def _check_output(self, output: TrainingPass) -> None:
        if self.weights and not output.waveform.requires_grad:
            raise UserError(
                "losses of the waveform do not reach the parts of the autoencoder that are trained; "
                f"set {', '.join(self.weights)} to 0, and give its own losses weights as losses.own"
            )
        unknown = sorted(self._losses.own.keys() - output.losses.keys())
        if unknown:
            known = ", ".join(output.losses) or "none"
            raise UserError(f"losses.own.{unknown[0]} has no effect: the autoencoder's own losses are {known}")
        left_out = sorted(output.losses.keys() - self._losses.own.keys())
        if left_out:
            raise UserError(f"the autoencoder's own loss '{left_out[0]}' has no weight; set losses.own.{left_out[0]}")

    def _of_waveform(self, x: Tensor, y: Tensor, step: int) -> dict[str, Tensor]:
        losses = {}
        if "mel" in self.weights:
            with torch.no_grad():
                log_mels = self.log_mels(x)
            losses["mel"] = mel_loss(log_mels, self.log_mels(y), self.log_mels.resolutions)
        if "waveform" in self.weights:
            losses["waveform"] = (x - y).abs().mean()
        if self.discriminator is not None and step >= self._adversary.from_step:
            fake = self.discriminator(y)
            if "adversarial" in self.weights:
                losses["adversarial"] = adversarial_loss(fake.logits)
            if "feature" in self.weights:
                with torch.no_grad():
                    real = self.discriminator(x)
                losses["feature"] = feature_loss(real.features, fake.features)
        return losses

    def backward_adversary(
        self, network: Any, x: Tensor, output: TrainingPass, step: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Compute the discriminator's loss and gradient, at steps in which it is trained.

        Args:
            network: the discriminator, or its wrapper for several processes.
            generator: the same in all processes.

        Returns:
            Its loss as "discriminator", and the norm of its gradient; nothing in other steps.
        """
        drawn = float(torch.rand((), generator=generator))
        if (
            self.discriminator is None
            or step < self._adversary.from_step
            or drawn >= self._adversary.update_probability
        ):
            return {}
        logits = network(torch.cat([x, output.waveform.detach().float()])).logits
        loss = discriminator_loss([both[: len(x)] for both in logits], [both[len(x) :] for both in logits])
        loss.backward()
        gradients = [parameter.grad for parameter in self.discriminator.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        return {"discriminator": loss.detach(), "discriminator_grad_norm": norm}

    def step_adversary(self) -> None:
        """One step with the gradient that `backward_adversary` computed, if any."""
        if self.optimizer is not None:
            self.optimizer.step()  # leaves alone what has no gradient
            self.optimizer.zero_grad()

    def parts(self) -> dict[str, torch.nn.Module | torch.optim.Optimizer]:
        """What a state has to hold for resuming, by name."""
        parts = {
            "balancer": self.balancer, "discriminator": self.discriminator, "discriminator_optimizer": self.optimizer
        }  # fmt: skip
        return {name: part for name, part in parts.items() if part is not None}
