"""Training LoRA adapters with peft."""

import copy
import sys

import pytest
import torch
from small_unet import small_unet

from diffaudio.errors import UserError
from diffaudio.models.lora import Conditions, apply_adapter, read_adapter
from diffaudio.training.lora import LAYERS, LoraSettings, add_lora, save_lora, without_lora

INPUTS = (torch.randn(2, 4, 10), torch.tensor([300.0, 700.0]), torch.randn(2, 6))
ALL = LoraSettings(rank=3, alpha=5, layers=tuple(LAYERS))


def trained(settings: LoraSettings = ALL):
    """A U-Net whose adapter is not zero any more, as after training."""
    unet = small_unet()
    add_lora(unet, settings, seed=0)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.5)
    return unet


def test_an_untrained_adapter_changes_nothing_and_only_its_weights_learn():
    unet, before = small_unet(), small_unet()
    names = add_lora(unet, ALL, seed=0)
    torch.testing.assert_close(unet(*INPUTS), before(*INPUTS), rtol=0, atol=0)
    learning = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert len(learning) == 2 * len(names)
    assert all(".lora_A." in name or ".lora_B." in name for name in learning)
    linear = {name for name, module in before.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(names) == linear  # all groups of layers together are all layers


@pytest.mark.parametrize("group", LAYERS)
def test_each_group_of_layers_can_be_adapted_alone(group):
    names = add_lora(small_unet(), LoraSettings(layers=(group,)), seed=0)
    assert names
    others = [
        name for other in LAYERS if other != group for name in add_lora(small_unet(), LoraSettings(layers=(other,)), 0)
    ]
    assert not set(names) & set(others)


def test_what_is_saved_and_applied_predicts_what_was_trained(tmp_path):
    """With peft's layers in training, and with sums of weights afterwards."""
    unet = trained()
    save_lora(tmp_path / "adapter", unet, trained_on={"clip": "tiny"})
    applied = small_unet()
    adapter = read_adapter(tmp_path / "adapter")
    apply_adapter(applied, adapter)
    assert adapter.trained_on == {"clip": "tiny"}
    assert adapter.scale == pytest.approx(5 / 3)
    assert (unet(*INPUTS) - small_unet()(*INPUTS)).abs().max() > 0.1
    torch.testing.assert_close(applied(*INPUTS), unet(*INPUTS), rtol=1e-4, atol=1e-4)


def test_peft_reads_what_is_saved_and_merges_it_to_the_same_weights(tmp_path):
    """Without the convolutions, which peft does not know by itself."""
    from peft import PeftModel

    settings = LoraSettings(rank=2, layers=("attention", "conditioning", "resampling"))
    save_lora(tmp_path / "adapter", trained(settings), trained_on={})
    merged = PeftModel.from_pretrained(small_unet(), tmp_path / "adapter").merge_and_unload()
    applied = small_unet()
    apply_adapter(applied, read_adapter(tmp_path / "adapter"))
    torch.testing.assert_close(merged.state_dict(), applied.state_dict())


def test_without_its_adapter_the_network_predicts_what_it_did_and_with_it_again_what_it_learned():
    unet = trained()
    adapted = unet(*INPUTS)
    with without_lora(unet):
        torch.testing.assert_close(unet(*INPUTS), small_unet()(*INPUTS), rtol=0, atol=0)
    torch.testing.assert_close(unet(*INPUTS), adapted, rtol=0, atol=0)
    assert any(parameter.requires_grad for parameter in unet.parameters())


def test_a_step_of_training_leaves_the_weights_of_the_model_as_they_were():
    unet = trained()
    own = {name: x.clone() for name, x in unet.named_parameters() if not x.requires_grad}
    optimizer = torch.optim.AdamW([x for x in unet.parameters() if x.requires_grad], lr=0.1)
    unet(*INPUTS).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(x, own[name]) for name, x in unet.named_parameters() if name in own)


def test_the_seed_alone_decides_the_initial_weights_and_torchs_own_is_left_alone():
    state = torch.get_rng_state()
    one, same, other = (small_unet() for _ in range(3))
    for unet, seed in ((one, 1), (same, 1), (other, 2)):
        add_lora(unet, ALL, seed=seed)
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(one.state_dict(), same.state_dict(), rtol=0, atol=0)
    name = next(name for name in one.state_dict() if ".lora_A." in name)
    assert not torch.equal(one.state_dict()[name], other.state_dict()[name])


def test_a_copy_of_an_adapted_network_can_be_saved(tmp_path):
    save_lora(tmp_path / "adapter", copy.deepcopy(trained()), trained_on={}, conditions=None)
    assert read_adapter(tmp_path / "adapter").conditions is None


def test_what_the_bridge_needs_is_saved_with_it(tmp_path):
    conditions = Conditions(torch.randn(3, 6), torch.randn(3, 6), torch.randn(1, 6))
    save_lora(tmp_path / "adapter", trained(), trained_on={}, conditions=conditions)
    torch.testing.assert_close(read_adapter(tmp_path / "adapter").conditions.texts, conditions.texts, rtol=0, atol=1e-3)


def test_without_peft_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"needs the package peft.*pip install"):
        add_lora(small_unet(), ALL, seed=0)


def test_no_layers_are_refused():
    with pytest.raises(UserError, match=r"lora\.layers is empty; choose from attention"):
        add_lora(small_unet(), LoraSettings(layers=()), seed=0)
