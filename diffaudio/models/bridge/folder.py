"""Bridges on disk: the one in a model's bridge/, and others beside it to choose from at query time.

bridge/                    the model's own bridge: config.json, diffusion_pytorch_model.safetensors
bridge/spread/ prior/ …    others for the same model, by the names that --bridge accepts

A pretrained diffusion prior in diffusers' format is a bridge too, also beside the model's own; see
`diffaudio.models.bridge.pretrained_prior`.
"""

from pathlib import Path

from diffaudio.errors import UserError
from diffaudio.hub import fetch, is_hub_id
from diffaudio.models.bridge.bridges import BRIDGES, Bridge, IdentityBridge
from diffaudio.safe_loading import load_network, read_json

# What is fetched from a hub: not the decoders beside a pretrained prior, which are many times its size.
PRIOR_FILES = (
    "config.json", "diffusion_pytorch_model.safetensors", "prior/*.safetensors", "*/config.json",
    "*/scheduler_config.json",
)  # fmt: skip

__all__ = ["check_clip", "choose_bridge", "kind_of_bridge", "load_bridge"]


def _classes() -> dict[str, type[Bridge]]:
    # diffusers' transformer is slow to import
    from diffaudio.models.bridge.pretrained_prior import PretrainedPriorBridge
    from diffaudio.models.bridge.prior import PriorBridge

    return {**BRIDGES, "prior": PriorBridge, "pretrained": PretrainedPriorBridge}


def kind_of_bridge(bridge: Bridge) -> str:
    """The bridge's name for `--bridge`."""
    of_class = {cls: kind for kind, cls in BRIDGES.items()}
    if type(bridge) not in of_class:  # one of those that are slow to import
        of_class = {cls: kind for kind, cls in _classes().items()}
    return of_class[type(bridge)]


def load_bridge(folder: str | Path) -> Bridge:
    """Load the bridge in a folder, of any kind, or the diffusion prior in diffusers' format.

    Raises:
        ValueError: config.json is missing or names a class that is not a bridge.
    """
    config_file = Path(folder) / "config.json"
    name = read_json(config_file).get("_class_name") if config_file.is_file() else None
    if name == "PriorTransformer" or ((Path(folder) / "prior" / "config.json").is_file() and name is None):
        from diffaudio.models.bridge.pretrained_prior import load_pretrained_prior

        return load_pretrained_prior(Path(folder))
    if not config_file.is_file():
        raise UserError(f"{folder}: not a bridge folder, config.json is missing")
    known = {bridge.__name__: bridge for bridge in BRIDGES.values()}
    priors = ("PriorBridge", "PretrainedPriorBridge")
    if name in priors:
        known = {bridge.__name__: bridge for bridge in _classes().values()}
    if name not in known:
        raise UserError(f"{config_file}: bridge '{name}' is unknown; choose from {', '.join([*known, *priors])}")
    bridge = load_network(known[name], Path(folder))
    bridge.alternatives = {
        place.name: place
        for place in sorted(Path(folder).iterdir())
        if (place / "config.json").is_file() or (place / "prior" / "config.json").is_file()
    }
    return bridge


def choose_bridge(choice: str, own: Bridge, clip_name: str) -> Bridge:
    """The bridge that the user selected.

    Args:
        choice: 'none'; the kind of the model's own bridge, or the name of an alternative; a folder or a hub id.
        own: the model's own bridge.
        clip_name: of the model's CLIP.

    Raises:
        ValueError: the model has no such bridge, or the bridge belongs to another CLIP.
    """
    if choice == kind_of_bridge(own):
        return own
    alternative = own.alternatives.get(choice)
    if isinstance(alternative, Bridge):
        return alternative
    if alternative is None and choice == "none":
        return IdentityBridge(own.config["embedding_dim"])
    if alternative is not None:
        folder = alternative
    elif Path(choice).is_dir():
        folder = Path(choice)
    elif is_hub_id(choice):
        folder = fetch(choice, PRIOR_FILES)
    else:
        names = ", ".join(dict.fromkeys(["none", kind_of_bridge(own), *own.alternatives]))
        raise UserError(f"bridge '{choice}' is not one of this model's ({names}), nor a folder, nor a hub id")
    bridge = load_bridge(folder)
    check_clip(bridge, clip_name, own.config["embedding_dim"], folder)
    return bridge


def check_clip(bridge: Bridge, clip_name: str, embedding_dim: int, where: Path) -> None:
    """Reject a bridge that was fitted to a different CLIP from the model's.

    Raises:
        ValueError: the CLIPs differ, by the bridge's recorded name or by the size of its embeddings.
    """
    made_for, dim = bridge.config.get("clip_name"), bridge.config["embedding_dim"]
    if made_for is not None and made_for != clip_name:
        raise UserError(f"{where}: this bridge was made for CLIP '{made_for}', the model's is '{clip_name}'")
    if dim != embedding_dim:
        raise UserError(
            f"{where}: this bridge is for embeddings of {dim} values (CLIP '{made_for or 'unknown'}'), "
            f"those of the model's CLIP '{clip_name}' have {embedding_dim}"
        )
