"""What a training script says: what it trains on what, how it goes, and where the model lies."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

__all__ = ["Progress", "describe_device", "is_due"]


def is_due(step: int, every: int, last: int | None = None) -> bool:
    """Whether something is due that is done every so many steps, and after the last one where that is given."""
    return step % every == 0 or step == last


def describe_device(device: torch.device, precision: str, num_processes: int) -> str:
    """Such as "cpu (2 threads), bf16" or "2 processes on cuda:0 (NVIDIA H100), bf16"."""
    name = f"{torch.get_num_threads()} threads" if device.type == "cpu" else device.type
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    text = f"{device} ({name}), {'float32' if precision == 'no' else precision}"
    return f"{num_processes} processes on {text}" if num_processes > 1 else text


class Progress:
    """The lines before the first step, the bar, and the line after the last; silent in all but the main process.

    Args:
        steps: of the whole run.
        done: how many are done already.
        model: where the model is written.
        visible: whether this is the main process.
    """

    def __init__(self, steps: int, done: int, model: Path, *, visible: bool) -> None:
        self._done, self._steps, self._model, self.visible = done, steps, model, visible
        self._bar: Any = None

    def describe(self, network: nn.Module, device: str, data: str) -> None:
        """Say what is about to happen."""
        size = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        self.say(f"device: {device}")
        self.say(f"network: {size / 1e6:.2f} million weights to train")
        self.say(f"data: {data}")
        if self._done >= self._steps:
            self.say(f"all {self._steps} steps are done already; raise train.steps to train longer")
        elif self._done:
            self.say(f"going on after step {self._done} of {self._steps}")
        self.say(f"model: {self._model}")

    def steps(self) -> Iterable[int]:
        """The steps to do, from 0 on, behind a bar with rate and time left."""
        steps = range(self._done, self._steps)
        self._bar = tqdm(steps, initial=self._done, total=self._steps, unit="step", disable=not self.visible)
        return self._bar

    def show(self, **values: float) -> None:
        """Put values, such as the loss, into the bar."""
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()})

    def say(self, line: str) -> None:
        """A line on stderr, above the bar."""
        if self.visible:
            tqdm.write(line, file=sys.stderr)

    def finish(self) -> None:
        """Say where the model lies."""
        if self._bar is not None:
            self._bar.close()
        self.say(f"done: the model is in {self._model}")
