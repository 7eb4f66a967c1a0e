import os
import sys
from collections.abc import Iterator

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that asks a hub for something fails at once; subprocesses inherit it
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests share the cores; so do those that start processes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in on_gpu:
                item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(autouse=True)
def forget_accelerate() -> Iterator[None]:
    """Accelerate keeps the precision of the first `Accelerator` of a process, and refuses another one."""
    yield
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
