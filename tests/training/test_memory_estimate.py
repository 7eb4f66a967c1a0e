"""What a training step takes, computed on the meta device, against what it takes."""

from dataclasses import asdict

import pytest
import torch
from scripts import REPO, load_script

from diffaudio.config import parse
from diffaudio.models.unet import UNet1D
from diffaudio.training.memory_estimate import estimate_training
from diffaudio.training.run_folder import local_batch_size

script = load_script("train/diffusion.py")

SETTINGS = {
    "in_channels": 8, "embedding_dim": 16, "channels": (32, 64), "blocks_per_level": 1, "middle_blocks": 2,
    "attention_levels": (0,), "attention_head_dim": 16, "condition_dim": 32,
}  # fmt: skip


def kept_bytes(unet: UNet1D) -> int:
    """What a real forward pass keeps, weights aside."""
    weights = {parameter.data_ptr() for parameter in unet.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        unet(torch.randn(4, 8, 30), torch.rand(4), torch.randn(4, 16))
    return sum(kept.values())


def test_activations_are_those_that_a_real_forward_pass_keeps():
    estimate = estimate_training(SETTINGS, batch_size=4, num_frames=30)
    assert estimate.activation_bytes == pytest.approx(kept_bytes(UNet1D(**SETTINGS).train()), rel=0.1)


def test_fixed_memory_is_weights_gradients_moments_and_averages():
    estimate = estimate_training(SETTINGS, batch_size=1, num_frames=30, averages=3)
    unet = UNet1D(**SETTINGS)
    optimizer = torch.optim.AdamW(unet.parameters())
    for parameter in unet.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    weights = sum(parameter.nbytes for parameter in unet.parameters())
    gradients = sum(parameter.grad.nbytes for parameter in unet.parameters())
    assert estimate.num_parameters == weights / 4
    assert estimate.fixed_bytes == weights + gradients + sum(m.nbytes for m in moments) + 3 * weights
    in_half = estimate_training(SETTINGS, batch_size=1, num_frames=30, averages=3, half_precision=True)
    assert in_half.fixed_bytes == estimate.fixed_bytes + weights / 2


def test_memory_and_work_grow_with_the_batch_and_checkpointing_trades_one_for_the_other():
    one, four = (estimate_training(SETTINGS, batch_size=each, num_frames=32) for each in (8, 32))
    assert four.activation_bytes == pytest.approx(4 * one.activation_bytes, rel=0.1)
    assert four.flops == pytest.approx(4 * one.flops, rel=0.1)
    saved = estimate_training(SETTINGS, batch_size=32, num_frames=32, gradient_checkpointing=True)
    assert saved.activation_bytes < four.activation_bytes / 2 and saved.fixed_bytes == four.fixed_bytes
    assert saved.flops == pytest.approx(4 / 3 * four.flops)
    half = estimate_training(SETTINGS, batch_size=32, num_frames=32, half_precision=True)
    assert half.activation_bytes < 0.6 * four.activation_bytes


def test_checkpointing_keeps_less_and_gives_the_same_gradients():
    torch.manual_seed(0)
    unet = UNet1D(**SETTINGS).train()
    for parameter in unet.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    latents, timestep, embedding = torch.randn(4, 8, 30), torch.rand(4), torch.randn(4, 16)
    before, gradients = kept_bytes(unet), []
    for checkpointing in (False, True):
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet.zero_grad()
        torch.manual_seed(1)  # of dropout, whose mask has to be the same in both passes
        unet(latents, timestep, embedding).square().mean().backward()
        gradients.append([p.grad.clone() for p in unet.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)
    assert kept_bytes(unet) < before / 2


@pytest.mark.parametrize(
    ("name", "processes", "millions", "memory_gb"),
    [("one_cpu", 1, 19, 0.9), ("one_gpu", 1, 152, 8.4), ("eight_gpus", 8, 152, 8.4), ("two_nodes", 16, 152, 8.4)],
)
def test_configs_take_the_memory_that_they_say(name, processes, millions, memory_gb):
    """Dry run on the meta device: each process' share of the batch, in bf16, with the averages of the config."""
    path = REPO / f"configs/{name}/diffusion.yaml"
    config = parse(script.Config, ["--config", str(path), "--data", "a", "--out", "b"])
    shapes = {"in_channels": 128, "embedding_dim": 512}
    estimate = estimate_training(
        asdict(config.unet) | shapes,
        batch_size=local_batch_size(config.train.batch_size, processes, config.train.accumulation_steps),
        num_frames=round(25 * config.train.duration_s),
        averages=1 + len(config.averages.sigma_rel),
        half_precision=True,
    )
    assert estimate.num_parameters / 1e6 == pytest.approx(millions, rel=0.01)
    assert estimate.total_bytes / 1e9 == pytest.approx(memory_gb, rel=0.2)
    if name == "one_gpu":
        text = path.read_text()
        assert f"{memory_gb} GB (computed" in text
        assert f"{estimate.flops / 128 / 1e12:.3f} TFLOP an example" in text
        checkpointed = estimate_training(
            asdict(config.unet) | shapes,
            batch_size=128,
            num_frames=125,
            half_precision=True,
            gradient_checkpointing=True,
        )
        assert f"activations take {checkpointed.activation_bytes / 1e9:.1f} GB" in text
