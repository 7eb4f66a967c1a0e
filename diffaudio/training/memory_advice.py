"""What to turn down when a training step does not fit into memory."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from diffaudio.errors import UserError, is_out_of_memory

__all__ = ["explain_out_of_memory"]


@contextmanager
def explain_out_of_memory(device: torch.device, settings: Mapping[str, object], advice: str) -> Iterator[None]:
    """Turn an out-of-memory error into a `UserError` that names the settings that decide how much is needed.

    Args:
        settings: by their names on the command line, with their values.
        advice: what to change, in the order of what costs least.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        named = ", ".join(f"{name} {value}" for name, value in settings.items())
        size = ""
        if device.type == "cuda":
            size = f" of {torch.cuda.get_device_properties(device).total_memory / 1e9:.3g} GB"
        raise UserError(f"not enough memory{size} on {device} for a step with {named}; {advice}") from error
