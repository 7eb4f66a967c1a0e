"""Compare runs of train/diffusion.py by their loss on the clips that all of them held out.

    python train/compare.py runs/none runs/filter runs/speed

Clips, crops, frames and noise are the same for all runs, so that the difference to the first run has a narrow interval
(95 %, bootstrap over the clips). It does not say how far the same run with another seed would lie away: make one, and
name it too.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from diffaudio.config import Count, parse_command
from diffaudio.errors import UserError, report_errors

if TYPE_CHECKING:
    from diffusion import Config

RESAMPLES = 2000


@dataclass(kw_only=True)
class Options:
    """The options of the script.

    Attributes:
        runs: run folders; the first is compared with.
        clips: how many at most, 2 or more.
    """

    runs: list[Path]
    clips: Count = 1000


def main(arguments: list[str] | None = None) -> None:
    given = parse_command(
        Options,
        sys.argv[1:] if arguments is None else arguments,
        program="train/compare.py",
        description="Compare runs of train/diffusion.py by their loss on held-out clips.",
        flags={"runs": ("run",)},
    )
    if given.clips < 2:
        raise UserError(f"--clips is {given.clips}; at least 2 are needed for an interval")

    from diffusion import held_out_losses, open_data

    from diffaudio.metrics.confidence import bootstrap_mean
    from diffaudio.pipeline import DiffAudioPipeline
    from diffaudio.seeding import seeded_generator

    configs = read_configs(given.runs)
    settings, held_out = configs[0].train, open_data(configs[0])[1]
    assert held_out is not None
    first = None
    for run in given.runs:
        pipe = DiffAudioPipeline.from_pretrained(run / "model")
        losses = held_out_losses(pipe, held_out, settings, given.clips)[:, 0]
        told = f"{run}: {losses.mean():.4f} on {len(losses)} held-out clips"
        if first is None:
            first = losses
        elif interval := bootstrap_mean(losses - first, generator=seeded_generator(0), resamples=RESAMPLES):
            told += f", {(losses - first).mean():+.4f} ({interval.low:+.4f} to {interval.high:+.4f})"
        print(told, flush=True)


def read_configs(runs: list[Path]) -> "list[Config]":
    """The settings of the runs.

    Raises:
        ValueError: a folder holds no run, or the runs cannot be compared on the same clips.
    """
    from diffusion import Config

    from diffaudio.config import parse

    for run in runs:
        if not (run / "config.yaml").is_file() or not (run / "model").is_dir():
            raise UserError(f"{run}: is no run of train/diffusion.py, or one that has not saved a model yet")
    configs = [parse(Config, ["--config", str(run / "config.yaml")]) for run in runs]
    if not configs[0].held_out:
        raise UserError(f"{runs[0]}: held out no clips; train with --held_out 0.05 or so")
    for run, config in zip(runs, configs, strict=True):
        for name, of_run, of_first in (
            ("held_out", config.held_out, configs[0].held_out),
            ("train.objective", config.train.objective, configs[0].train.objective),
        ):
            if of_run != of_first:
                raise UserError(f"{run}: {name} is {of_run}, of {runs[0]} it is {of_first}; they must be the same")
    return configs


if __name__ == "__main__":
    sys.exit(report_errors(main))
