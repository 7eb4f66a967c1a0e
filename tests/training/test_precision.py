import pytest
import torch

from diffaudio.training.precision import resolve_precision


def test_precision_is_what_the_device_can_do():
    cpu = torch.device("cpu")
    assert resolve_precision("auto", cpu) in ("no", "bf16")
    assert resolve_precision("auto", torch.device("mps")) == "no"
    assert resolve_precision("bf16", cpu) == "bf16"
    with pytest.raises(ValueError, match="'fp16' needs a GPU; choose auto, no or bf16"):
        resolve_precision("fp16", cpu)
