"""`diffaudio prepare`: videos -> a corpus of clips."""

import re
import sys
from dataclasses import fields
from pathlib import Path

from diffaudio.commandline import Parser

__all__ = ["run"]


def run(arguments: list[str]) -> None:
    from diffaudio.corpus.filters import FilterSettings
    from diffaudio.corpus.prepare import PrepareSettings, prepare

    parser = Parser(
        prog="diffaudio prepare",
        description="Cut videos into clips of sound with a few pictures. Running it again continues.",
    )
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="media files, and folders of them")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the corpus")
    documented = f"{FilterSettings.__doc__}{PrepareSettings.__doc__}"
    described = dict(re.findall(r"^ +(\w+): (.+)$", documented, re.MULTILINE))
    for field in fields(PrepareSettings):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=float if "float" in str(field.type) else int,
            default=field.default,
            help=f"{described[field.name].replace('%', '%%')} (default: %(default)s)",
        )
    given = vars(parser.parse_args(arguments))
    sources, output = given.pop("sources"), given.pop("output")
    report = prepare(sources, output, PrepareSettings(**given), progress=sys.stderr.isatty())
    print(f"{output}: {report.clips} clips, {report.seconds / 60:.1f} minutes, from {report.sources} files")
    if report.dropped:
        reasons = ", ".join(f"{reason} {count}" for reason, count in report.reasons.items())
        print(f"left out {report.dropped} ({reasons}); see {output / 'dropped.csv'}")
