"""The U-Net: shapes, conditions, size."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from diffaudio.models import unet as unet_module
from diffaudio.models.unet import UNet1D, _Attention, _Conv, _rotate


@pytest.fixture
def unet():
    """A tiny U-Net in which no path is still at zero."""
    torch.manual_seed(0)
    unet = UNet1D(
        in_channels=6,
        embedding_dim=10,
        channels=(8, 16, 16),
        blocks_per_level=1,
        middle_blocks=1,
        attention_head_dim=8,
        condition_dim=12,
    )
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return unet.eval()


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 13, 300])
def test_any_number_of_frames_comes_back(unet, num_frames):
    prediction = unet(torch.randn(2, 6, num_frames), 500.0, unit(2, 10))
    assert prediction.shape == (2, 6, num_frames)
    assert prediction.isfinite().all()


def test_a_new_unet_predicts_nothing():
    unet = UNet1D(in_channels=4, embedding_dim=6, channels=(8, 8), attention_levels=(), attention_head_dim=8)
    assert not unet(torch.randn(1, 4, 5), 500.0, unit(1, 6)).any()


def test_the_default_is_small_and_lean():
    with torch.device("meta"):
        unet = UNet1D(in_channels=128, embedding_dim=384)
        with FlopCounterMode(display=False) as counter:
            unet(torch.randn(1, 128, 128), torch.ones(1), torch.randn(1, 384))
    assert sum(parameter.numel() for parameter in unet.parameters()) <= 20e6
    assert counter.get_total_flops() / 2 / 128 <= 8e6  # multiplications a latent frame


def test_no_embedding_is_the_null_embedding_in_every_row(unet):
    latents, embedding = torch.randn(3, 6, 7), unit(3, 10)
    without = unet(latents, 300.0)
    dropped = unet(latents, 300.0, embedding, torch.zeros(3, dtype=torch.bool))
    torch.testing.assert_close(dropped, without)
    assert not torch.allclose(unet(latents, 300.0, embedding), without, atol=1e-3)


def test_keep_drops_the_condition_row_by_row(unet):
    latents, embedding = torch.randn(2, 6, 7), unit(2, 10)
    mixed = unet(latents, 300.0, embedding, torch.tensor([True, False]))
    torch.testing.assert_close(mixed[0], unet(latents, 300.0, embedding)[0])
    torch.testing.assert_close(mixed[1], unet(latents, 300.0)[1])


def test_the_null_embedding_learns_from_dropped_rows_alone(unet):
    latents, embedding = torch.randn(2, 6, 7), unit(2, 10)
    unet(latents, 300.0, embedding, torch.tensor([True, True])).square().sum().backward()
    assert not unet.null_embedding.grad.any()
    unet(latents, 300.0, embedding, torch.tensor([True, False])).square().sum().backward()
    assert unet.null_embedding.grad.any()


def test_the_timestep_is_one_for_all_or_one_an_item(unet):
    latents, embedding = torch.randn(2, 6, 7), unit(2, 10)
    each = unet(latents, torch.tensor([100.0, 900.0]), embedding)
    torch.testing.assert_close(each[0], unet(latents, 100, embedding)[0])
    torch.testing.assert_close(each[1], unet(latents, torch.tensor(900), embedding)[1])
    assert not torch.allclose(each[0], unet(latents, 101.0, embedding)[0])


def test_an_item_does_not_depend_on_its_neighbours(unet):
    latents, embedding = torch.randn(3, 6, 9), unit(3, 10)
    alone = unet(latents[1:2], 300.0, embedding[1:2])
    torch.testing.assert_close(unet(latents, 300.0, embedding)[1:2], alone)


def test_latents_keep_their_dtype_whatever_the_weights(unet):
    latents, embedding = torch.randn(1, 6, 7), unit(1, 10)
    expected = unet(latents, 300.0, embedding)
    actual = unet.double()(latents, 300.0, embedding)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_saved_and_loaded_it_is_the_same(unet, tmp_path):
    unet.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    loaded = UNet1D.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.state_dict(), unet.state_dict(), atol=0, rtol=0)
    latents, embedding = torch.randn(1, 6, 7), unit(1, 10)
    torch.testing.assert_close(loaded(latents, 300.0, embedding), unet(latents, 300.0, embedding))


def test_its_convolution_is_the_usual_one():
    conv, x = _Conv(5, 7), torch.randn(2, 9, 5)
    kernel = conv.weight.unflatten(1, (3, 5)).transpose(1, 2)  # [out, in, 3]
    usual = F.conv1d(x.transpose(1, 2), kernel, conv.bias, padding=1).transpose(1, 2)
    torch.testing.assert_close(conv(x), usual)


def test_rotary_products_depend_on_the_distance_alone():
    q, k = torch.randn(8), torch.randn(8)
    rotated_q, rotated_k = _rotate(q.expand(12, 8)), _rotate(k.expand(12, 8))
    products = rotated_q @ rotated_k.T  # [frames, frames]
    torch.testing.assert_close(products[1:, 1:], products[:-1, :-1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(products[0, 0], products[0, 3], atol=1e-3)


def test_attention_reaches_no_further_than_its_window():
    torch.manual_seed(0)
    attention = _Attention(8, 4, 16)
    torch.nn.init.normal_(attention.out.weight)
    x, condition = torch.randn(1, 12, 16), torch.zeros(1, 1)
    changed = x.clone()
    changed[:, 9] = torch.randn(16)
    difference = (attention(changed, condition) - attention(x, condition)).abs().amax(dim=(0, 2))
    assert not difference[:6].any()
    assert difference[6:].all()


def test_widths_that_no_head_fits_are_refused():
    with pytest.raises(ValueError, match="attention_head_dim 24 must be even and divide .* level 1 is 64 wide"):
        UNet1D(channels=(48, 64), attention_levels=(0,), attention_head_dim=24)


def test_levels_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"there is no level 2 above the lowest.*choose from \[0, 1\]"):
        UNet1D(channels=(64, 64, 64), attention_levels=(2,))


@pytest.fixture
def told_of_noise():
    """A tiny U-Net that is conditioned on the noise level of its embedding."""
    torch.manual_seed(0)
    unet = UNet1D(
        in_channels=6, embedding_dim=10, channels=(8, 16), attention_levels=(), attention_head_dim=8, condition_dim=12,
        embedding_noise_level=0.6,
    )  # fmt: skip
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return unet.eval()


def with_level(embedding, level):
    return F.pad(embedding, (0, 1), value=level)


def test_the_noise_level_of_an_embedding_changes_the_prediction_and_is_0_when_left_out(told_of_noise):
    latents, embedding = torch.randn(2, 6, 8), unit(2, 10)
    plain = told_of_noise(latents, 300.0, embedding)
    torch.testing.assert_close(told_of_noise(latents, 300.0, with_level(embedding, 0.0)), plain)
    assert not torch.allclose(told_of_noise(latents, 300.0, with_level(embedding, 0.5)), plain, atol=1e-3)


def test_a_dropped_embedding_takes_its_noise_level_with_it(told_of_noise):
    latents, embedding = torch.randn(2, 6, 8), with_level(unit(2, 10), 0.5)
    dropped = told_of_noise(latents, 300.0, embedding, torch.zeros(2, dtype=torch.bool))
    torch.testing.assert_close(dropped, told_of_noise(latents, 300.0))


def test_a_unet_without_noise_levels_has_no_weights_for_them(unet):
    assert not any("noise_level" in name for name in unet.state_dict())


def test_the_backward_passes_in_closed_form_are_those_of_autograd():
    """Windows of convolutions, and the normalised and rotated queries and keys, against numerical derivatives."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(unet_module._Windows.apply, (x,))
    windows = unet_module._Windows.apply(x)
    padded = torch.nn.functional.pad(x, (0, 0, 1, 1))
    assert torch.equal(windows, torch.cat([padded[:, :-2], x, padded[:, 2:]], dim=2))
    one = unet_module._Windows.apply(x[:, :1])
    assert not one[..., :3].any() and not one[..., 6:].any() and torch.equal(one[..., 3:6], x[:, :1])

    y = torch.randn(2, 3, 6, 8, generator=generator, requires_grad=True)
    weights = torch.randn(y.shape, generator=generator)
    (unet_module._NormaliseAndRotate.apply(y) * weights).sum().backward()
    ours, y.grad = y.grad, None
    (unet_module._rotate(torch.nn.functional.rms_norm(y, (8,))) * weights).sum().backward()
    torch.testing.assert_close(ours, y.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_dropout_drops_the_share_it_is_asked_to_and_keeps_the_mean(share):
    torch.manual_seed(0)
    dropout = unet_module._Dropout(share)
    x = torch.ones(300, 1001, requires_grad=True)
    y = dropout(x)
    kept = y != 0
    assert (~kept).float().mean().item() == pytest.approx(share, abs=0.005)
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / max(1 - share, 1e-9)), rtol=1e-6, atol=0)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    torch.manual_seed(0)
    assert torch.equal(dropout(x), y)  # a function of the seed
    assert torch.equal(dropout.eval()(x), x)


def test_gradients_in_bf16_on_a_cpu_are_those_of_float32_within_its_precision():
    torch.manual_seed(0)
    unet = UNet1D(
        4,
        8,
        channels=(32, 64),
        blocks_per_level=1,
        middle_blocks=1,
        attention_head_dim=16,
        dropout=0.0,
        attention_levels=(0,),
    )
    for parameter in unet.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    latents, embedding = torch.randn(3, 4, 24), torch.nn.functional.normalize(torch.randn(3, 8), dim=1)
    gradients = []
    for enabled in (False, True):
        unet.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            unet(latents, torch.tensor([1.0, 500.0, 900.0]), embedding).float().square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in unet.parameters() if p.grad is not None]))
    assert (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()
