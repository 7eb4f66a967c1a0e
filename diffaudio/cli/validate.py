"""`diffaudio validate`: check every row of a corpus for errors."""

import sys
from dataclasses import dataclass
from pathlib import Path

from diffaudio.cli.options import check_exists
from diffaudio.config import Count, parse_command
from diffaudio.distributed import share_of_cores
from diffaudio.errors import UserError

__all__ = ["run"]


@dataclass(kw_only=True)
class Options:
    """The options of `diffaudio validate`.

    Attributes:
        corpus: folder written by `diffaudio prepare` or `diffaudio encode`.
        quick: skip decoding sound and pictures, the slowest check.
        workers: number of processes that check parts (default: one per core).
    """

    corpus: Path
    quick: bool = False
    workers: Count | None = None


def run(arguments: list[str]) -> None:
    given = parse_command(
        Options,
        arguments,
        program="diffaudio validate",
        description="Check every row of a corpus of clips or of latents, and what its parts, manifest.json and "
        "dropped.csv say of each other. Each thing that is wrong is a line; the exit status is 1 where there is any.",
        epilog="Rows are counted from 0, part by part. A corpus that is not finished may be right so far.",
        flags={"corpus": ("corpus",)},
    )
    check_exists(given.corpus)

    from tqdm import tqdm

    from diffaudio.corpus.snapshot import open_corpus
    from diffaudio.corpus.validate.run import validate

    corpus = open_corpus(given.corpus)
    if given.quick and corpus.kind == "latents":
        raise UserError(f"{given.corpus}: --quick has no effect on a corpus of latents, which holds nothing to decode")
    rows = found = 0
    with tqdm(total=len(corpus.parts), unit="part", disable=not sys.stderr.isatty()) as bar:

        def on_part(num_rows: int) -> None:
            nonlocal rows
            rows += num_rows
            bar.update()

        num_workers = given.workers or share_of_cores()
        for problem in validate(corpus, decode=not given.quick, num_workers=num_workers, on_part=on_part):
            with bar.external_write_mode():
                print(problem, flush=True)
            found += 1
    verdict = f"{found} things are wrong" if found > 1 else "1 thing is wrong" if found else "all right"
    parts = "1 part" if len(corpus.parts) == 1 else f"{len(corpus.parts)} parts"
    so_far = "" if corpus.finished else f"; not finished, `{corpus.made_by}` continues it"
    print(f"{given.corpus}: {rows} rows in {parts}, {verdict}{so_far}")
    if found:
        sys.exit(1)
