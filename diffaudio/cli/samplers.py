"""`diffaudio samplers`: the available samplers and their properties."""

from dataclasses import dataclass

from diffaudio.cli.options import check_model
from diffaudio.config import parse_command

__all__ = ["run"]


@dataclass(kw_only=True)
class Options:
    """The options of `diffaudio samplers`.

    Attributes:
        model: list only samplers that suit this model, a folder or hub id.
    """

    model: str | None = None


def run(arguments: list[str]) -> None:
    given = parse_command(
        Options,
        arguments,
        program="diffaudio samplers",
        description="List the samplers for --sampler of `diffaudio generate`: order of convergence, passes over the "
        "U-Net a step, whether each step draws fresh noise, the usual --eta, models and spacings (the first is usual).",
    )
    check_model(given.model)

    from diffaudio.diffusion.sampler_table import SAMPLERS
    from diffaudio.diffusion.sampling import why_unsuitable

    names = list(SAMPLERS)
    if given.model is not None:
        import torch

        from diffaudio.checkpoint import find_model, load_parts

        own = load_parts(find_model(given.model), torch.float32, only=("scheduler",))["scheduler"]
        names = [name for name in names if why_unsuitable(name, own.config) is None]
    head = ("name", "order", "passes", "noise", "eta", "models", "spacings", "")
    rows = [head, *(_row(name, SAMPLERS[name]) for name in names)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[-1]]).rstrip())


def _row(name, sampler) -> tuple[str, ...]:
    noise = "no" if not sampler.is_stochastic else "with eta" if sampler.eta is not None else "yes"
    return (
        name,
        str(sampler.order or "-"),
        str(sampler.passes),
        noise,
        "-" if sampler.eta is None else f"{sampler.eta:g}",
        " ".join(sampler.objectives),
        " ".join(sampler.spacings) or "its own",
        sampler.description,
    )
