"""diffaudio: a folder of unlabelled videos becomes a text-to-audio model.

    from diffaudio import DiffAudioPipeline
    pipe = DiffAudioPipeline.from_pretrained("checkpoints/mini")
    audio = pipe("a dog barking").audios        # [1, channels, samples]

What this module names is imported when it is first asked for, so `import diffaudio` itself loads nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffaudio.models.autoencoders import Autoencoder, SpectralAutoencoder, load_autoencoder
    from diffaudio.models.bridge.bridges import (
        IdentityBridge,
        NoiseBridge,
        RetrievalBridge,
        ShiftBridge,
        SpreadBridge,
        fit_bridge,
    )
    from diffaudio.models.bridge.folder import load_bridge
    from diffaudio.models.clip import Clip
    from diffaudio.models.unet import UNet1D
    from diffaudio.pipeline import DiffAudioPipeline, bundled_model

__version__ = "0.1.0"

__all__ = [
    "Autoencoder",
    "Clip",
    "DiffAudioPipeline",
    "IdentityBridge",
    "NoiseBridge",
    "RetrievalBridge",
    "ShiftBridge",
    "SpectralAutoencoder",
    "SpreadBridge",
    "UNet1D",
    "bundled_model",
    "fit_bridge",
    "load_autoencoder",
    "load_bridge",
]

_MODULES = {
    "diffaudio.pipeline": ("DiffAudioPipeline", "bundled_model"),
    "diffaudio.models.autoencoders": ("Autoencoder", "SpectralAutoencoder", "load_autoencoder"),
    "diffaudio.models.bridge.bridges": (
        "IdentityBridge",
        "NoiseBridge",
        "RetrievalBridge",
        "ShiftBridge",
        "SpreadBridge",
        "fit_bridge",
    ),
    "diffaudio.models.bridge.folder": ("load_bridge",),
    "diffaudio.models.clip": ("Clip",),
    "diffaudio.models.unet": ("UNet1D",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'diffaudio' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
