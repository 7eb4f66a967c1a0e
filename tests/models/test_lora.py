"""LoRA adapters: reading, checking and applying them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_unet import small_unet
from tiny_adapter import LAYERS, write_adapter

from diffaudio.errors import UserError
from diffaudio.models.lora import apply_adapter, read_adapter


def test_an_applied_adapter_adds_strength_alpha_over_r_b_a_to_each_weight_and_to_nothing_else(tmp_path):
    unet, before = small_unet(), small_unet()
    folder = write_adapter(tmp_path / "adapter")
    apply_adapter(unet, read_adapter(folder), 0.5)
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, module in before.named_modules():
        if isinstance(module, torch.nn.Linear):
            expected = module.weight.detach()
            if name in LAYERS:
                a, b = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
                expected = expected + 0.5 * (4 / 2) * b @ a
            torch.testing.assert_close(unet.get_submodule(name).weight.detach(), expected)
    changed = [name for name, x in unet.state_dict().items() if not torch.equal(x, before.state_dict()[name])]
    assert sorted(changed) == sorted(f"{name}.weight" for name in LAYERS)


def test_several_adapters_add_up_in_any_order_and_the_opposite_strength_takes_one_away(tmp_path):
    adapters = [read_adapter(write_adapter(tmp_path / str(seed), seed=seed)) for seed in (0, 1)]
    one, other, before = small_unet(), small_unet(), small_unet()
    for adapter, strength in ((adapters[0], 0.7), (adapters[1], -0.4)):
        apply_adapter(one, adapter, strength)
    for adapter, strength in ((adapters[1], -0.4), (adapters[0], 0.7)):
        apply_adapter(other, adapter, strength)
    torch.testing.assert_close(one.state_dict(), other.state_dict())
    apply_adapter(one, adapters[0], -0.7)
    apply_adapter(one, adapters[1], 0.4)
    torch.testing.assert_close(one.state_dict(), before.state_dict(), atol=1e-6, rtol=1e-5)


def test_rank_stabilised_adapters_are_scaled_by_the_root_of_the_rank(tmp_path):
    adapter = read_adapter(write_adapter(tmp_path / "adapter", use_rslora=True))
    assert adapter.scale == pytest.approx(4 / 2**0.5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; only LORA is supported"),
        ({"r": 0}, "r is 0; it must be a whole number above 0"),
        ({"r": True}, "r is True"),
        ({"r": 3}, "r 3 asks for A [3, in]"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"use_dora": True}, "use_dora is True, which is not supported"),
        ({"rank_pattern": {"conv_in": 8}}, "rank_pattern is"),
        ({"modules_to_save": ["conv_out"]}, "modules_to_save is"),
        ({"auto_mapping": {"base_model_class": "X"}}, "auto_mapping is"),
        ({"auto_map": {"X": "code.py"}}, "auto_map is refused"),
        ({"something_new": 3}, "something_new is 3, which is not supported"),
    ],
)
def test_an_adapter_of_a_kind_that_is_not_supported_is_refused(tmp_path, config, message):
    folder = write_adapter(tmp_path / "adapter")
    written = json.loads((folder / "adapter_config.json").read_text()) | config
    (folder / "adapter_config.json").write_text(json.dumps(written))
    with pytest.raises(UserError) as raised:
        read_adapter(folder)
    assert message in str(raised.value)
    assert str(folder) in str(raised.value)


def test_what_peft_notes_beside_the_weights_is_read_over(tmp_path):
    write_adapter(
        tmp_path / "adapter", base_model_name_or_path="somebody/model", peft_version="0.21.2", init_lora_weights=True,
        layers_to_transform=None, loftq_config={}, fan_in_fan_out=False, lora_dropout=0.1, inference_mode=True,
    )  # fmt: skip
    assert read_adapter(tmp_path / "adapter").layers.keys() == LAYERS.keys()


def test_weights_that_are_not_finite_missing_or_of_other_layers_are_refused(tmp_path):
    file = write_adapter(tmp_path / "adapter") / "adapter_model.safetensors"
    good = load_file(file)

    def message(tensors) -> str:
        save_file(tensors, file)
        with pytest.raises(UserError) as raised:
            read_adapter(file.parent)
        return str(raised.value)

    name = "base_model.model.conv_in.lora_A.weight"
    assert "not finite" in message(good | {name: torch.full((2, 12), float("nan"))})
    assert "conv_in has B [16, 2]" in message({key: x for key, x in good.items() if key != name})
    assert "is not a LoRA weight" in message(good | {"base_model.model.conv_in.weight": torch.zeros(16, 12)})
    assert "holds no weights" in message({})
    file.unlink()
    with pytest.raises(UserError, match="missing; weights are read from safetensors only"):
        read_adapter(file.parent)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"conv_in": (24, 16)}, r"conv_in is \[16, 24\], in this model \[16, 12\]"),
        ({"conv_nowhere": (12, 16)}, "conv_nowhere, which is no linear layer of this model"),
        ({"norm_out": (16, 16)}, "norm_out, which is no linear layer of this model"),
        ({"conv_in": (12, 16), "middle": (8, 8)}, "middle, which is no linear layer"),
    ],
)
def test_an_adapter_of_another_model_is_refused_and_leaves_the_network_as_it_was(tmp_path, layers, message):
    unet, before = small_unet(), small_unet()
    with pytest.raises(UserError, match=message):
        apply_adapter(unet, read_adapter(write_adapter(tmp_path / "adapter", layers=layers)))
    torch.testing.assert_close(unet.state_dict(), before.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("strength", [0.0, float("nan"), float("inf")])
def test_a_strength_without_effect_or_sense_is_refused(tmp_path, strength):
    with pytest.raises(UserError, match="strength"):
        apply_adapter(small_unet(), read_adapter(write_adapter(tmp_path / "adapter")), strength)


def test_a_strength_that_half_precision_cannot_hold_is_refused_and_leaves_the_network_as_it_was(tmp_path):
    unet = torch.nn.Module.half(small_unet())
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    with pytest.raises(UserError, match="become infinite; lower it"):
        apply_adapter(unet, read_adapter(write_adapter(tmp_path / "adapter")), 1e6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())


def test_what_the_bridge_is_told_has_to_fit_together(tmp_path):
    folder = write_adapter(tmp_path / "adapter")
    good = {"memory": torch.randn(3, 6), "memory_keys": torch.randn(3, 6), "texts": torch.randn(1, 6)}
    save_file(good, folder / "conditions.safetensors")
    conditions = read_adapter(folder).conditions
    torch.testing.assert_close(conditions.memory, good["memory"])
    for bad in ({"texts": torch.randn(1, 5)}, {"memory": torch.randn(2, 6)}, {"more": torch.zeros(1)}):
        save_file(good | bad, folder / "conditions.safetensors")
        with pytest.raises(UserError, match=r"conditions\.safetensors"):
            read_adapter(folder)
