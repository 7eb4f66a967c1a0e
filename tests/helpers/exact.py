"""What a perfectly trained U-Net predicts for Gaussian latents, and a sampler's noise without drawing any.

For latents of mean M and deviation S in every entry, the best prediction is known in closed form, and with it the flow
from noise u to latents: at alpha, sigma it passes through alpha M + sqrt(alpha^2 S^2 + sigma^2) u, and ends at M + S u.

Samplers are linear in noise and mean. Where each draw of noise is a new axis (`NoiseAxes`), what comes out on the first
axis times M is the exact mean, and the length of the others the exact deviation.
"""

import math

import numpy as np
import torch
from diffusers import DDIMScheduler
from diffusers.schedulers import (
    scheduling_dpmsolver_multistep,
    scheduling_flow_match_lcm,
    scheduling_lcm,
    scheduling_sasolver,
    scheduling_tcd,
)
from diffusers.utils import torch_utils

from diffaudio.diffusion.loss import prediction_type
from diffaudio.diffusion.sampling import make_sampler, sample
from diffaudio.diffusion.training_scheduler import training_scheduler

M, S = 0.7, 0.5
MODELS = {
    "flow": training_scheduler("flow"),
    "v": training_scheduler("v"),
    "epsilon": DDIMScheduler(prediction_type="epsilon", timestep_spacing="trailing", clip_sample=False),
    "sample": DDIMScheduler(prediction_type="sample", timestep_spacing="trailing", clip_sample=False),
}


def alpha_sigma(scheduler, timestep):
    """Of the latents at a timestep, which may lie between two that were trained."""
    t = float(timestep)
    if prediction_type(scheduler.config) == "flow_prediction":
        return 1 - t / 1000, t / 1000
    alphas = np.sqrt(scheduler.alphas_cumprod.double().numpy())
    if scheduler.config.get("rescale_betas_zero_snr"):
        alphas[-1] = 0
    sigmas = np.sqrt(1 - alphas**2)
    s = float(np.interp(t, np.arange(1000), sigmas / (alphas + sigmas)))
    return (1 - s) / math.hypot(1 - s, s), s / math.hypot(1 - s, s)


class BestGuess:
    """The prediction that a perfect U-Net makes; counts its passes.

    Args:
        jumps: predict as a model distilled for consistency: the end of the flow, not the mean of what may be there.
        mean: in place of M, for noise on axes.
    """

    def __init__(self, scheduler, *, jumps=False, mean=M, deviation=S):
        self.scheduler, self.jumps, self.mean, self.deviation, self.passes = scheduler, jumps, mean, deviation, 0

    def __call__(self, latents, timestep, embedding, condition_mask=None):
        self.passes += 1
        alpha, sigma = alpha_sigma(self.scheduler, timestep)
        mean, variance = self.mean, alpha**2 * self.deviation**2 + sigma**2
        away = latents - alpha * mean
        if self.jumps:
            x = mean + self.deviation / math.sqrt(variance) * away
            noise = (latents - alpha * x) / sigma
        else:
            x, noise = mean + alpha * self.deviation**2 / variance * away, sigma / variance * away
        return {
            "flow_prediction": noise - x,
            "v_prediction": alpha * noise - sigma * x,
            "epsilon": noise,
            "sample": x,
        }[prediction_type(self.scheduler.config)]


class Autoregressive:
    """The best prediction for frames of variance 1, correlated by RHO per frame, from the frames that it is shown."""

    RHO = 0.9

    def __call__(self, latents, timestep, embedding, condition_mask=None):
        alpha, sigma = alpha_sigma(MODELS["flow"], timestep)
        frame = torch.arange(latents.shape[-1])
        covariance = self.RHO ** (frame[:, None] - frame).abs()
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(len(frame)))
        x = latents @ gain.T
        return (latents - alpha * x) / sigma - x


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def run(name, model, steps, noise, *, spacing=None, eta=None, **settings):
    """Sample with the best guess; returns the latents, and the number of passes."""
    guess = BestGuess(MODELS[model])
    scheduler = make_sampler(name, MODELS[model].config, spacing=spacing, eta=eta)
    return sample(guess, scheduler, noise, torch.zeros(len(noise), 2), **plain(steps), **settings), guess.passes


def plain(steps):
    return {"num_inference_steps": steps, "guidance_scale": 1}


class NoiseAxes:
    """Stands for `randn_tensor`: each draw is a new axis of [1, axes, 1]; axis 0 is the mean's, 1 the first noise's."""

    def __init__(self, monkeypatch):
        for module in (
            torch_utils,
            scheduling_dpmsolver_multistep,
            scheduling_flow_match_lcm,
            scheduling_lcm,
            scheduling_sasolver,
            scheduling_tcd,
        ):
            monkeypatch.setattr(module, "randn_tensor", self)

    def __call__(self, shape, **settings):
        drawn = torch.zeros(shape)
        if shape[1] > 1:  # not where a sampler only counts its passes
            self.count += 1
            drawn[:, self.count] = 1
        return drawn

    def mean_and_deviation(self, scheduler, model, steps, **guess):
        """Of what comes out, exactly; and of the latents after each pass."""
        self.count = 1
        noise, mean = torch.zeros(1, 2 * steps + 3, 1), torch.zeros(1, 2 * steps + 3, 1)
        noise[0, 1], mean[0, 0] = 1, M
        seen = []

        def on_step(index, timestep, latents):
            seen.append((float(latents[0, 0, 0]), float(latents[0, 1:].norm())))

        guess = BestGuess(model, mean=mean, **guess)
        sample(guess, scheduler, noise, torch.zeros(1, 2), generators=generators(0), on_step=on_step, **plain(steps))
        return seen[-1], seen
