"""The autoencoder that is trained, from settings or from another one."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from diffaudio.atomic_io import atomic_folder
from diffaudio.config import Count, NonNegative, NonNegativeCount, Positive
from diffaudio.corpus.datasets.sampler import ClipOrder
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

FITTED_CLIPS = 256  # to which latents' mean and scale are fitted
# Settings of the spectral autoencoder that make its latents what they are.
CODE = {
    "sample_rate", "n_fft", "hop_length", "num_mels", "patch_steps", "latent_channels", "log_floor", "audio_channels",
}  # fmt: skip


@dataclass
class SpectralSettings:
    """See `SpectralAutoencoder`; what is null is as in `start_from`, or else as that class has it.

    Attributes:
        learn: which of its learned parts learn, detail and vocoder; null is all that it has.
    """

    sample_rate: Count | None = None
    n_fft: Count | None = None
    hop_length: Count | None = None
    num_mels: Count | None = None
    patch_steps: Count | None = None
    latent_channels: Count | None = None
    log_floor: Positive | None = None
    phase_iterations: NonNegativeCount | None = None
    phase_momentum: NonNegative | None = None
    phase_seed: NonNegativeCount | None = None
    audio_channels: Count | None = None
    joint_inversion: bool | None = None
    detail_channels: NonNegativeCount | None = None
    detail_blocks: Count | None = None
    detail_temperature: NonNegative | None = None
    vocoder_channels: NonNegativeCount | None = None
    vocoder_blocks: Count | None = None
    learn: list[Literal["detail", "vocoder"]] | None = None


@dataclass
class OobleckSettings:
    """See diffusers' `AutoencoderOobleck`; what is null is as in `start_from`, or else as that class has it.

    Attributes:
        encoder_hidden_size: twice `decoder_input_channels`, for mean and scale of each.
        downsampling_ratios: even; their product is the number of samples in a latent frame.
        decoder_input_channels: width of the latents.
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
    """Make the autoencoder; what it learns by gradient, if anything, requires gradients.

    Random weights are drawn from torch's global generator.

    Args:
        start_from: folder or hub id of one to go on from: its code, its weights, and settings that are not given.

    Raises:
        ValueError: settings of the other kind are given, or such as contradict `start_from`.
    """
    given, other = _given(spectral), _given(oobleck)
    if model == "oobleck":
        given, other = other, given
    if other:
        name = f"{'oobleck' if model == 'spectral' else 'spectral'}.{next(iter(other))}"
        raise UserError(f"{name} has no effect with model {model}; leave it out")
    start = load_autoencoder(start_from) if start_from else None
    kind = SpectralAutoencoder if model == "spectral" else OobleckAutoencoder
    if start is not None and not isinstance(start, kind):
        raise UserError(f"start_from {start_from}: is '{start.name}', wanted is a {model} one")
    if model == "spectral":
        parts = given.pop("learn", None)
        autoencoder = _go_on(start, given) if isinstance(start, SpectralAutoencoder) else SpectralAutoencoder(**given)
        autoencoder.learn(
            [part for part in ("detail", "vocoder") if getattr(autoencoder, part)] if parts is None else parts
        )
        return autoencoder
    if isinstance(start, OobleckAutoencoder):
        _check_equal(start.network.config, given, set(given), "oobleck")
        start.network.requires_grad_(True)
        return start
    if odd := [ratio for ratio in given.get("downsampling_ratios", []) if ratio % 2]:
        raise UserError(f"oobleck.downsampling_ratios has {odd[0]}; only even ones give back as many samples")
    autoencoder = OobleckAutoencoder(given)
    made, wanted = autoencoder.network.config["encoder_hidden_size"], 2 * autoencoder.latent_channels
    if made != wanted:
        raise UserError(
            f"oobleck.encoder_hidden_size is {made}; it holds mean and scale of oobleck.decoder_input_channels "
            f"{autoencoder.latent_channels}, so choose {wanted}"
        )
    autoencoder.network.requires_grad_(True)
    return autoencoder


def learned_parameters(autoencoder: nn.Module) -> list[nn.Parameter]:
    """What gradients reach."""
    return [parameter for parameter in autoencoder.parameters() if parameter.requires_grad]


def copied(autoencoder: Autoencoder) -> Autoencoder:
    """Another one with the same weights, on the same device, that learns nothing.

    `copy.deepcopy` refuses what torch's former `weight_norm`, which Oobleck is made of, keeps between two passes.
    """
    copy = type(autoencoder)(**settings_of(autoencoder.config))
    copy.load_state_dict(autoencoder.state_dict())
    nn.Module.to(copy, next(autoencoder.parameters()).device)
    return copy.eval().requires_grad_(False)


def save_autoencoder(autoencoder: Autoencoder, folder: Path, dataset: WaveformDataset | None, num_samples: int) -> None:
    """Write the folder, whole; of what is not ours, latents' mean and scale are fitted to clips first.

    Args:
        dataset: of the clips; None where nothing has to be fitted.
        num_samples: length of the crops that are taken of them.
    """
    if isinstance(autoencoder, AdaptedAutoencoder) and dataset is not None:
        autoencoder = copied(autoencoder)  # what training goes on with stays as it is
        clips = ClipOrder((len(dataset),)).clips(0, min(FITTED_CLIPS, len(dataset)))
        generator = seeded_generator(0)
        crops = (draw_crops(dataset, [clip], num_samples=num_samples, generator=generator) for clip in clips)
        autoencoder.fit_latents(crops)
    with atomic_folder(folder) as temporary:
        autoencoder.save_pretrained(temporary)


def _given(settings: SpectralSettings | OobleckSettings) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if value is not None}


def _go_on(start: SpectralAutoencoder, given: dict[str, Any]) -> SpectralAutoencoder:
    """Another one with the same code and weights, and with parts beside that are new."""
    held = settings_of(start.config)
    _check_equal(held, given, CODE, "spectral")
    autoencoder = SpectralAutoencoder(**(held | given))
    weights, own = start.state_dict(), autoencoder.state_dict()
    for name, tensor in weights.items():
        if name not in own or own[name].shape != tensor.shape:
            raise UserError(f"start_from has {name} of another size than these settings; leave theirs out")
    autoencoder.load_state_dict(own | weights)
    return autoencoder


def _check_equal(held: Any, given: dict[str, Any], names: set[str], section: str) -> None:
    for name in sorted(names & given.keys()):
        if json.dumps(given[name]) != json.dumps(held[name]):
            raise UserError(
                f"{section}.{name} is {given[name]}, that of start_from {held[name]}, whose latents are kept; "
                "leave the setting out"
            )
