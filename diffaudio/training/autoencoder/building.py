"""Building the autoencoder that is trained, from settings or from another one."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from diffaudio.atomic_io import atomic_folder
from diffaudio.config import Count, NonNegative, NonNegativeCount, Positive
from diffaudio.corpus.datasets.clip_order import ClipOrder
from diffaudio.corpus.datasets.waveforms import WaveformDataset, draw_crops
from diffaudio.errors import UserError
from diffaudio.models.autoencoders import Autoencoder, SpectralAutoencoder, load_autoencoder
from diffaudio.models.autoencoders.adapters.base import AdaptedAutoencoder, settings_of
from diffaudio.models.autoencoders.adapters.oobleck import OobleckAutoencoder
from diffaudio.seeding import seeded_generator

__all__ = [
    "OobleckSettings",
    "SpectralSettings",
    "build_autoencoder",
    "copied",
    "learned_parameters",
    "save_autoencoder",
]

FITTED_CLIPS = 256  # to which the latents' mean and scale are fitted
# Settings of the spectral autoencoder that its code, and so its latents, depend on.
CODE = {
    "sample_rate", "n_fft", "hop_length", "num_mels", "patch_steps", "latent_channels", "log_floor", "audio_channels",
}  # fmt: skip


@dataclass
class InversionChoice:
    """See `InversionSettings`."""

    iterations: NonNegativeCount | None = None
    momentum: NonNegative | None = None
    seed: NonNegativeCount | None = None
    joint: bool | None = None


@dataclass
class DetailChoice:
    """See `DetailSettings`; without `channels` there is no such network, unless `start_from` has one."""

    channels: Count | None = None
    blocks: Count | None = None
    temperature: NonNegative | None = None


@dataclass
class VocoderChoice:
    """See `VocoderSettings`; without `channels` there is no such network, unless `start_from` has one."""

    channels: Count | None = None
    blocks: Count | None = None


@dataclass
class SpectralSettings:
    """See `SpectralAutoencoder`; null is the value of `start_from`, or else the default of that class.

    Attributes:
        learn: which of the learned parts are trained, detail and vocoder; null is all that there are.
    """

    sample_rate: Count | None = None
    n_fft: Count | None = None
    hop_length: Count | None = None
    num_mels: Count | None = None
    patch_steps: Count | None = None
    latent_channels: Count | None = None
    log_floor: Positive | None = None
    audio_channels: Count | None = None
    inversion: InversionChoice = field(default_factory=InversionChoice)
    detail: DetailChoice = field(default_factory=DetailChoice)
    vocoder: VocoderChoice = field(default_factory=VocoderChoice)
    learn: list[Literal["detail", "vocoder"]] | None = None


@dataclass
class OobleckSettings:
    """See diffusers' `AutoencoderOobleck`; null is the value of `start_from`, or else the default of that class.

    Attributes:
        encoder_hidden_size: twice `decoder_input_channels`, for the mean and scale of each.
        downsampling_ratios: even; their product is the number of samples in a latent frame.
        decoder_input_channels: number of latent channels.
        sampling_rate: in Hz.
    """

    encoder_hidden_size: Count | None = None
    downsampling_ratios: list[Count] | None = None
    channel_multiples: list[Count] | None = None
    decoder_channels: Count | None = None
    decoder_input_channels: Count | None = None
    audio_channels: Count | None = None
    sampling_rate: Count | None = None


def build_autoencoder(
    model: Literal["spectral", "oobleck"],
    spectral: SpectralSettings,
    oobleck: OobleckSettings,
    start_from: str | None = None,
) -> Autoencoder:
    """Build the autoencoder; the parameters that are to be trained require gradients.

    Random weights are drawn from torch's global generator.

    Args:
        start_from: folder or hub id of one to go on from: its code, its weights, and its settings where none are given.

    Raises:
        ValueError: settings of the other kind are given, or settings contradict `start_from`.
    """
    chosen, other = _chosen(asdict(spectral)), _chosen(asdict(oobleck))
    if model == "oobleck":
        chosen, other = other, chosen
    if other:
        name = f"{'oobleck' if model == 'spectral' else 'spectral'}.{next(iter(other))}"
        raise UserError(f"{name} has no effect with model {model}; leave it out")
    start = load_autoencoder(start_from) if start_from else None
    kind = SpectralAutoencoder if model == "spectral" else OobleckAutoencoder
    if start is not None and not isinstance(start, kind):
        raise UserError(f"start_from {start_from}: is '{start.name}', but model is {model}")
    if model == "spectral":
        assert start is None or isinstance(start, SpectralAutoencoder)
        return _build_spectral(start, chosen)
    assert start is None or isinstance(start, OobleckAutoencoder)
    return _build_oobleck(start, chosen)


def _build_spectral(start: SpectralAutoencoder | None, chosen: dict[str, Any]) -> SpectralAutoencoder:
    """A new one, or another one with the code and weights of `start`, and with new parts beside it."""
    trained = chosen.pop("learn", None)
    settings = settings_of(start.config) if start else {}
    _check_equal(settings, chosen, CODE if start else set(), "spectral")
    for part in ("inversion", "detail", "vocoder"):
        if part in chosen:
            settings[part] = (settings.get(part) or {}) | chosen.pop(part)
    for part in ("detail", "vocoder"):
        if settings.get(part) and "channels" not in settings[part]:
            name = next(iter(settings[part]))
            raise UserError(f"spectral.{part}.{name} has no effect without spectral.{part}.channels; set that too")
    autoencoder = SpectralAutoencoder(**(settings | chosen))
    if start:
        _copy_weights(start, autoencoder)
    existing = [part for part in ("detail", "vocoder") if getattr(autoencoder, part)]
    autoencoder.learn(existing if trained is None else trained)
    return autoencoder


def _copy_weights(start: SpectralAutoencoder, autoencoder: SpectralAutoencoder) -> None:
    weights, own = start.state_dict(), autoencoder.state_dict()
    for name, tensor in weights.items():
        if name not in own or own[name].shape != tensor.shape:
            raise UserError(f"start_from has {name} of another size than these settings; leave theirs out")
    autoencoder.load_state_dict(own | weights)


def _build_oobleck(start: OobleckAutoencoder | None, chosen: dict[str, Any]) -> OobleckAutoencoder:
    if start is not None:
        _check_equal(start.network.config, chosen, set(chosen), "oobleck")
        start.network.requires_grad_(True)
        return start
    if odd := [ratio for ratio in chosen.get("downsampling_ratios", []) if ratio % 2]:
        raise UserError(f"oobleck.downsampling_ratios has {odd[0]}; only even ones keep the number of samples")
    autoencoder = OobleckAutoencoder(chosen)
    size, required = autoencoder.network.config["encoder_hidden_size"], 2 * autoencoder.latent_channels
    if size != required:
        raise UserError(
            f"oobleck.encoder_hidden_size is {size}; it holds mean and scale of oobleck.decoder_input_channels "
            f"{autoencoder.latent_channels}, so choose {required}"
        )
    autoencoder.network.requires_grad_(True)
    return autoencoder


def learned_parameters(autoencoder: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained."""
    return [parameter for parameter in autoencoder.parameters() if parameter.requires_grad]


def copied(autoencoder: Autoencoder) -> Autoencoder:
    """A copy with the same weights, on the same device, that is not trained.

    `copy.deepcopy` fails on the tensors that torch's former `weight_norm`, used by Oobleck, keeps between two passes.
    """
    copy = type(autoencoder)(**settings_of(autoencoder.config))
    copy.load_state_dict(autoencoder.state_dict())
    nn.Module.to(copy, next(autoencoder.parameters()).device)
    return copy.eval().requires_grad_(False)


def save_autoencoder(autoencoder: Autoencoder, folder: Path, dataset: WaveformDataset | None, num_samples: int) -> None:
    """Write the folder, whole; mean and scale of an adapted library's latents are fitted to clips first.

    Args:
        dataset: the clips; None where nothing has to be fitted.
        num_samples: length of the crops that are drawn from them.
    """
    if isinstance(autoencoder, AdaptedAutoencoder) and dataset is not None:
        autoencoder = copied(autoencoder)  # the autoencoder in training is left as it is
        clips = ClipOrder((len(dataset),)).clips(0, min(FITTED_CLIPS, len(dataset)))
        generator = seeded_generator(0)
        crops = (draw_crops(dataset, [clip], num_samples=num_samples, generator=generator) for clip in clips)
        autoencoder.fit_latents(crops)
    with atomic_folder(folder) as temporary:
        autoencoder.save_pretrained(temporary)


def _chosen(settings: dict[str, Any]) -> dict[str, Any]:
    """What is not null, in sections too; sections without anything are left out."""
    values = {name: _chosen(value) if isinstance(value, dict) else value for name, value in settings.items()}
    return {name: value for name, value in values.items() if value is not None and value != {}}


def _check_equal(settings: Any, chosen: dict[str, Any], names: set[str], section: str) -> None:
    for name in sorted(names & chosen.keys()):
        if json.dumps(chosen[name]) != json.dumps(settings[name]):
            raise UserError(
                f"{section}.{name} is {chosen[name]}, that of start_from {settings[name]}, whose latents are kept; "
                "leave the setting out"
            )
