"""`diffaudio prepare`: videos -> a corpus of clips, in any number of processes on any number of machines."""

import sys
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from diffaudio.config import Count, parse_command
from diffaudio.corpus.prepare.manifests import LIST_SUFFIXES
from diffaudio.corpus.prepare.settings import PrepareSettings
from diffaudio.corpus.prepare.worker import WorkerLimits
from diffaudio.errors import UserError, printable

__all__ = ["run"]


@dataclass(kw_only=True)
class Options:
    """The options of `diffaudio prepare`.

    Attributes:
        sources: media files, folders of them, URLs such as s3://bucket/folder, and lists of files, with one path per
            line or with the columns path, start, end (in seconds) and caption.
        output: folder for the corpus.
        workers: number of child processes that cut clips (default: one per core, divided among the processes on a
            machine).
    """

    sources: list[str]
    output: Path
    workers: Count | None = None
    settings: PrepareSettings = field(default_factory=PrepareSettings)
    limits: WorkerLimits = field(default_factory=WorkerLimits)


def run(arguments: list[str]) -> None:
    given = parse_command(
        Options,
        arguments,
        program="diffaudio prepare",
        description="Cut videos into clips of sound with a few pictures. Running it again continues.",
        epilog=f"Lists end in {', '.join(LIST_SUFFIXES)}. Under `accelerate launch -m diffaudio prepare …` all "
        "processes share the work; the corpus is the same.",
        flags={"sources": ("source",), "output": ("-o", "--output")},
        groups={"settings.": "clips and filters", "limits.": "what a file may cost"},
    )
    from diffaudio import distributed
    from diffaudio.corpus.prepare.run import prepare

    state, output = None, given.output
    if distributed.is_launched_as_several():
        distributed.end_with_launcher()
        state = distributed.join_processes(
            patience=timedelta(days=7), on_cpu=True
        )  # one may finish hours before the others
    is_main = state is None or state.is_main_process
    progress = sys.stderr.isatty() and is_main
    try:
        report = prepare(
            given.sources,
            output,
            given.settings,
            num_workers=given.workers or distributed.share_of_cores(),
            limits=given.limits,
            state=state,
            progress=progress,
        )
    except (UserError, OSError):
        if is_main:
            raise
        sys.exit(2)  # the main process reports the error
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
