"""`diffaudio doctor`: what is missing or slow on this machine."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffaudio.cli.options import check_model as check_model_name
from diffaudio.config import parse_command
from diffaudio.errors import UserError

if TYPE_CHECKING:
    from diffaudio.doctor.findings import Finding

__all__ = ["run"]


@dataclass(kw_only=True)
class Options:
    """The options of `diffaudio doctor`.

    Attributes:
        folder: where corpora, runs or sounds are to be written.
        generate: load the model and generate a second of sound, which takes some seconds; --no-generate leaves it out.
        model: model folder to try (default: the bundled model).
        json: print the findings as JSON.
    """

    folder: Path = Path(".")
    generate: bool = True
    model: Path | None = None
    json: bool = False


def run(arguments: list[str]) -> None:
    given = parse_command(
        Options,
        arguments,
        program="diffaudio doctor",
        description="Name what is missing or slow on this machine. Nothing is changed, and nothing is downloaded.",
        epilog="Lines that begin with 'missing' name what will not work; if there are any, the exit status is 2. "
        "'slow' works, but slowly; 'note' is worth knowing.",
    )
    check_model_name(str(given.model) if given.model else None)
    findings = list(_findings(given))
    if given.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        width = max(len(finding.topic) for finding in findings)
        for finding in findings:
            print(f"{finding.status:7}  {finding.topic:{width}}  {finding.text}")
            if finding.advice:
                print(f"{'':7}  {'':{width}}  -> {finding.advice}")
    missing = [finding.topic for finding in findings if finding.status == "missing"]
    if missing:
        raise UserError(f"something is missing: {', '.join(dict.fromkeys(missing))}; see above")


def _findings(given: Options) -> "Iterator[Finding]":
    from diffaudio.doctor import compute, libraries, storage

    checks: list[Callable[[], Iterator[Finding]]] = [
        libraries.check_versions, compute.check_gpus, compute.check_threads, compute.check_matrix_products,
        compute.check_memory, libraries.check_codecs, libraries.check_optional,
        lambda: storage.check_folder(given.folder), storage.check_open_files, storage.check_hub,
    ]  # fmt: skip
    if given.generate:
        from diffaudio.doctor.model import check_model

        checks.append(lambda: check_model(given.model))
    for check in checks:
        yield from check()
        sys.stdout.flush()
