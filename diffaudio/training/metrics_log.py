"""The log of a run: metrics.jsonl, a line for each logged step, and TensorBoard events with the same values."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from diffaudio.atomic_io import atomic_file

__all__ = ["MetricsLog", "loss_by_noise_level"]


class MetricsLog:
    """Scalars, sounds and pictures of a run.

    Args:
        folder: the run folder.
        done: how many steps the state has that the run goes on from. Lines of later steps, written before the run was
            stopped, are removed: these steps are done again.
        track, track_sound: send scalars of a step, and arguments of `audio`, to other trackers.
    """

    def __init__(
        self,
        folder: Path,
        done: int | None = None,
        *,
        track: Callable[[dict[str, Any], int], None] | None = None,
        track_sound: Callable[[int, str, Tensor, int, Figure], None] | None = None,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._track, self._track_sound = track, track_sound
        path = folder / "metrics.jsonl"
        self._lowest: dict[str, float] = {}
        if path.is_file():
            lines = [line for line in map(_parse, path.read_text("utf-8", errors="replace").splitlines()) if line]
            lines = [line for line in lines if done is None or line["step"] <= done]
            with atomic_file(path) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            for line in lines:
                self._remember(line)
        self._lines = path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(folder), purge_step=None if done is None else done + 1)

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        """One line in metrics.jsonl, where what is not finite is null, and one point a value in TensorBoard."""
        line = {"step": step} | {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._lines.write(json.dumps(line, allow_nan=False) + "\n")
        self._lines.flush()
        self._remember(line)
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        if self._track:
            self._track(values, step)

    def lowest(self, name: str) -> float:
        """The lowest value of a scalar so far, infinity where there is none."""
        return self._lowest.get(name, math.inf)

    def audio(self, step: int, name: str, waveform: Tensor, sample_rate: int, spectrogram: Figure) -> None:
        """A sound [channels, samples] and its spectrogram in TensorBoard."""
        self.board.add_audio(name, waveform.mean(dim=0), step, sample_rate=sample_rate)
        self.board.add_figure(name, spectrogram, step)
        if self._track_sound:
            self._track_sound(step, name, waveform, sample_rate, spectrogram)

    def sync(self) -> None:
        """Have the lines on the disk, before the state that says that their steps are done."""
        os.fsync(self._lines.fileno())

    def close(self) -> None:
        self._lines.close()
        self.board.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _remember(self, line: dict[str, Any]) -> None:
        for name, value in line.items():
            if isinstance(value, (int, float)):
                self._lowest[name] = min(value, self.lowest(name))


def loss_by_noise_level(losses_and_levels: Tensor) -> dict[str, float]:
    """The mean loss, and that of each quarter of the noise levels.

    Args:
        losses_and_levels: [items, 2], loss and noise level (0 is clean, 1 is noise) of each item.
    """
    losses, levels = losses_and_levels.unbind(dim=1)
    values = {"loss": losses.mean().item()}
    quarters = (levels * 4).long().clamp(0, 3)
    for quarter in quarters.unique().tolist():
        values[f"loss_level_{quarter * 25}_{quarter * 25 + 25}"] = losses[quarters == quarter].mean().item()
    return values


def _parse(text: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None where the process was killed while it wrote it."""
    try:
        line = json.loads(text, parse_constant=lambda _: None)  # NaN and Infinity, which are no JSON, become null
    except json.JSONDecodeError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None
