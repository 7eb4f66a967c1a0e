"""`diffaudio prepare`: videos -> a corpus of clips, by any number of processes on any number of machines."""

import argparse
import re
import sys
from dataclasses import MISSING, Field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from diffaudio.cli.options import Parser, between
from diffaudio.errors import UserError, printable

__all__ = ["run"]


def run(arguments: list[str]) -> None:
    from diffaudio import distributed
    from diffaudio.corpus.prepare.run import prepare
    from diffaudio.corpus.prepare.settings import PrepareSettings
    from diffaudio.corpus.prepare.worker import WorkerLimits

    given = vars(_parser().parse_args(arguments))
    sources, output = given.pop("sources"), given.pop("output")
    num_workers = given.pop("workers") or distributed.share_of_cores()
    limits = WorkerLimits(**{field.name: given.pop(field.name) for field in fields(WorkerLimits)})
    settings, state = PrepareSettings(**given), None
    if distributed.is_launched_as_several():
        distributed.end_with_launcher()
        state = distributed.join_processes(
            patience=timedelta(days=7), on_cpu=True
        )  # one may be done hours before others
    is_main = state is None or state.is_main_process
    progress = sys.stderr.isatty() and is_main
    try:
        report = prepare(
            sources, output, settings, num_workers=num_workers, limits=limits, state=state, progress=progress
        )
    except (UserError, OSError):
        if is_main:
            raise
        sys.exit(2)  # the main process tells the error
    if state:
        state.destroy_process_group()
    if not is_main:
        return
    clips, looked_at = _duration(report.seconds), _duration(report.media_seconds)
    print(f"{printable(str(output))}: {report.clips} clips, {clips}, from {report.sources} files, {looked_at}")
    if report.dropped:
        reasons = ", ".join(f"{reason} {count}" for reason, count in report.reasons.items())
        kept = f", {report.rejected} of them kept" if report.rejected else ""
        print(f"left out {report.dropped}{kept} ({reasons}); see {printable(str(output / 'dropped.csv'))}")
    if report.not_looked_at:
        listed = printable(str(output / "not_looked_at.csv"))
        print(f"not looked at: {report.not_looked_at} files with other suffixes; see {listed}")


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 7200 else f"{seconds / 60:.1f} minutes"


def _parser() -> Parser:
    from diffaudio.corpus.prepare.filters import FilterSettings
    from diffaudio.corpus.prepare.manifests import LIST_SUFFIXES
    from diffaudio.corpus.prepare.settings import PrepareSettings
    from diffaudio.corpus.prepare.worker import WorkerLimits

    parser = Parser(
        prog="diffaudio prepare",
        description="Cut videos into clips of sound with a few pictures. Running it again continues.",
        epilog="Under `accelerate launch -m diffaudio prepare …` all processes share the work; the corpus is the same.",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="media files and folders of them, addresses such as s3://bucket/folder, and lists of files "
        f"({', '.join(LIST_SUFFIXES)}): a path a line, or columns path, start, end (seconds) and caption",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the corpus")
    parser.add_argument(
        "--workers",
        type=between(int, 1),
        metavar="N",
        help="child processes that cut (default: one a core, shared out among the processes on a machine)",
    )
    for group, kind in (("clips and filters", PrepareSettings), ("what a file may cost", WorkerLimits)):
        inherited = FilterSettings.__doc__ if kind is PrepareSettings else ""
        described = _described(f"{inherited}{kind.__doc__}")
        options = parser.add_argument_group(group)
        for field in fields(kind):
            _add_option(options, field, described[field.name])
    return parser


def _described(documented: str) -> dict[str, str]:
    """What the docstring of a dataclass says of each attribute."""
    attributes = re.findall(r"^ {8}(\w+): (.+(?:\n {12}.+)*)", documented, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text) for name, text in attributes}


def _add_option(options: "argparse._ArgumentGroup", field: "Field[Any]", described: str) -> None:
    name, kind, described = f"--{field.name.replace('_', '-')}", str(field.type), described.replace("%", "%%")
    assert field.default is not MISSING
    if field.type is bool:
        options.add_argument(name, action="store_true", help=described)
        return
    number = float if "float" in kind else int
    may_be_none = "None" in kind and field.default is not None
    options.add_argument(
        name,
        type=_number_or_none(number) if may_be_none else number,
        default=field.default,
        metavar="NUMBER|none" if may_be_none else field.name.upper(),
        help=f"{described} (default: %(default)s)",
    )


def _number_or_none(number: type) -> Any:
    def parse(text: str) -> Any:
        return None if text.lower() == "none" else number(text)

    parse.__name__ = "number or none"
    return parse
