"""Fine-tuning: the U-Net of a finished model as the beginning of a run."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from diffaudio.checkpoint import bundled_model, find_model, load_parts
from diffaudio.diffusion.loss import prediction_type
from diffaudio.errors import UserError
from diffaudio.models.autoencoders import Autoencoder
from diffaudio.models.clip import Clip

__all__ = ["BUNDLED", "load_start"]

BUNDLED = "bundled"
MAY_DIFFER = {"dropout"}  # it changes no weights


def load_start(
    model: str, unet_settings: Mapping[str, Any], *, scheduler: Any, autoencoder: Autoencoder, clip: Clip
) -> dict[str, Any]:
    """Load the model that a run starts from.

    Args:
        model: folder or hub id; `bundled` is the model that comes with diffaudio.
        unet_settings: of the run, by the names of `UNet1D`'s arguments.
        scheduler: of the run, see `training_scheduler`.
        autoencoder, clip: of the run.

    Returns:
        The model's parts; the U-Net is float32, with the run's dropout.

    Raises:
        UserError: it cannot be loaded, or differs from the run in what its weights depend on: the shape of the U-Net,
            autoencoder, CLIP, objective or noise schedule.
    """
    parts = load_parts(bundled_model() if model == BUNDLED else find_model(model), torch.float32)
    for name, own, setting in (("autoencoder", autoencoder, "--autoencoder"), ("clip", clip, "--clip")):
        if not _same_weights(own, parts[name]):
            raise UserError(
                f"start_from {model}: its {name} is '{parts[name].name}', the run's is '{own.name}', and their weights "
                f"differ; give {setting} of that model, and a corpus encoded with it"
            )
    unet = parts["unet"]
    differing = [
        f"unet.{name} is {_plain(unet.config[name])} there, {_plain(value)} here"
        for name, value in unet_settings.items()
        if name not in MAY_DIFFER and _plain(unet.config[name]) != _plain(value)
    ]
    if differing:
        raise UserError(f"start_from {model}: {'; '.join(differing)}; give the run the settings of that model")
    for what, before, now in (
        ("objective", prediction_type(parts["scheduler"].config), prediction_type(scheduler.config)),
        ("noise schedule", _noise_schedule(parts["scheduler"]), _noise_schedule(scheduler)),
        ("shift", parts["scheduler"].config.get("shift"), scheduler.config.get("shift")),
    ):
        if before != now:
            names = f", {before} there and {now} here" if not isinstance(before, list) else ""
            raise UserError(f"start_from {model}: its {what} is another{names}; give the run that of the model")
    dropout = unet_settings.get("dropout", unet.config["dropout"])
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    unet.register_to_config(dropout=dropout)
    return parts


def _same_weights(one: nn.Module, other: nn.Module) -> bool:
    """In half precision, in which a model folder may hold what was float32."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(_half(a[name]), _half(b[name])) for name in a)


def _half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


def _noise_schedule(scheduler: Any) -> list[float]:
    """alpha^2 by timestep; empty for flow matching."""
    return getattr(scheduler, "alphas_cumprod", torch.empty(0)).tolist()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
