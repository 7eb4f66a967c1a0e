"""`diffaudio evaluate ranking`: do two backbones put systems in the same order?"""

from dataclasses import dataclass
from pathlib import Path

from diffaudio.cli.options import check_exists
from diffaudio.config import parse_command
from diffaudio.errors import UserError

__all__ = ["run"]


@dataclass(kw_only=True)
class Options:
    """The options of `diffaudio evaluate ranking`.

    Attributes:
        reports: three or more reports (.json) of `diffaudio evaluate`, or one or more of `diffaudio evaluate
            reconstruction`, each by the same two or more backbones.
        output: .md file for both tables (default: they are only printed).
    """

    reports: list[Path]
    output: Path | None = None


def run(arguments: list[str]) -> None:
    given = parse_command(
        Options,
        arguments,
        program="diffaudio evaluate ranking",
        description="Compare the order in which backbones put systems, such as checkpoints of a training run: rank "
        "correlations, which say whether a conclusion depends on the backbone.",
        flags={"reports": ("report",), "output": ("-o", "--output")},
    )
    check_exists(*given.reports)
    if given.output is not None and (given.output.suffix != ".md" or not given.output.parent.is_dir()):
        raise UserError(f"{given.output}: name a .md file in a folder that is there")

    from diffaudio.atomic_io import atomic_file
    from diffaudio.evaluation.ranking import markdown, rank_systems
    from diffaudio.evaluation.report import read_report

    table = markdown(rank_systems([read_report(path) for path in given.reports]))
    print(table, end="")
    if given.output is not None:
        with atomic_file(given.output) as temporary:
            temporary.write_text(table, encoding="utf-8")
