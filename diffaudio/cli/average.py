"""`diffaudio average`: a model from the averages of a training run, with a length chosen after training."""

from dataclasses import dataclass
from pathlib import Path

from diffaudio.cli.options import check_exists
from diffaudio.config import Count, Positive, parse_command
from diffaudio.errors import UserError

__all__ = ["run"]


@dataclass(kw_only=True)
class Options:
    """The options of `diffaudio average`.

    Attributes:
        run: folder of a run of train/diffusion.py.
        output: folder for the model; it must not exist, or be empty.
        sigma_rel: length of the average: the standard deviation of its weights over the steps, relative to the steps
            done, 0.005 to 0.28. Lengths between those that the run kept are built most exactly.
        step: at which the average ends (default: the latest snapshot).
    """

    run: Path
    output: Path
    sigma_rel: Positive
    step: Count | None = None


def run(arguments: list[str]) -> None:
    given = parse_command(
        Options,
        arguments,
        program="diffaudio average",
        description="Build a model from the averages of a training run: post-hoc EMA (Karras et al. 2023, "
        "arXiv:2312.02696). Runs keep snapshots of a few averages; any other length is a linear combination of them.",
        epilog="Compare several lengths by `python train/compare.py` or `diffaudio sweep`. All but the U-Net's weights "
        "are those of RUN/model.",
        flags={"run": ("run",), "output": ("-o", "--output")},
    )
    check_exists(given.run)
    if given.output.exists() and (not given.output.is_dir() or any(given.output.iterdir())):
        raise UserError(f"{given.output}: already exists; name a new or empty folder")

    import torch

    from diffaudio.pipeline import DiffAudioPipeline
    from diffaudio.training.post_hoc_ema import combine_snapshots, snapshot_files

    files = snapshot_files(given.run / "averages")
    if not files:
        raise UserError(
            f"{given.run / 'averages'}: holds no snapshots; train with averages.sigma_rel, which keeps some"
        )
    weights, error = combine_snapshots(files.values(), given.sigma_rel, step=given.step)
    pipe = DiffAudioPipeline.from_pretrained(given.run / "model")
    try:
        pipe.unet.load_state_dict(weights)
    except RuntimeError as mismatch:
        raise UserError(
            f"{given.run}: averages and model are of different U-Nets; is one of them damaged?"
        ) from mismatch
    pipe.save_pretrained(given.output, dtype=torch.float16)
    print(
        f"{given.output}: average of relative length {given.sigma_rel:g} at step {given.step or max(files)}, from "
        f"snapshots of {len(files)} steps; its weights over the steps are off by {100 * error:.2g} % of their norm"
    )
