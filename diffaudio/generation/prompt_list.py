"""Prompt files: the sounds to generate for sample/generate.py and `diffaudio sweep`.

    prompts.txt      one `prompt` or `prompt|name` per line
    prompts.csv      a header with one or more of prompt, image and video, and, optionally, label and name
    prompts.jsonl    one object per line, with the same keys; the first three may be lists of texts

Each row is one query. A text, an image and a video in one row are mixed, with equal weights or with those that follow
them: "a dog barking::0.7 rain::0.3", "photo.jpg::0.5". Paths count from the folder of the list. `name` is the name of
the sound's file; by default, it consists of the position in the list and the words of the prompt. `label` is the class
that a classifier should recognise, for evaluation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffaudio.errors import UserError
from diffaudio.file_names import slug
from diffaudio.generation.batch import Item
from diffaudio.queries.query import Query, mixture
from diffaudio.seeding import seeded_generator
from diffaudio.tables import read_csv, read_json_lines, read_lines

__all__ = ["Prompt", "items_of", "read_prompts"]

CONDITIONS = ("prompt", "image", "video")
COLUMNS = (*CONDITIONS, "label", "name")


@dataclass(frozen=True)
class Prompt:
    """A line of a prompt file."""

    query: Query
    name: str
    label: str | None = None


def read_prompts(file: Path) -> list[Prompt]:
    """Read a prompt file; blank lines are skipped.

    Args:
        file: .csv, .jsonl, or a text file with any other suffix.

    Raises:
        ValueError: the file is missing, empty or malformed, a prompt is empty, a weight cannot be parsed, an image or a
            video does not exist, or a name is invalid or duplicated.
    """
    if not file.is_file():
        raise UserError(f"{file}: there is no such prompt list")
    read = {".csv": _from_csv, ".jsonl": _from_jsonl}.get(file.suffix.lower(), _from_text)
    prompts, lines = [], dict[str, int]()
    for number, row in read(file):
        query = _query(file, number, row)
        label, name = (row.get(column, "").strip() for column in ("label", "name"))
        name = name or f"{len(prompts):05d}-{slug(query.name)}"
        if name != Path(name).name or name.startswith(".") or "\\" in name:
            raise UserError(f"{file}, line {number}: '{name}' cannot name a file; leave out slashes and leading dots")
        stem = name.removesuffix(".wav").removesuffix(".flac")
        first = lines.setdefault(stem.casefold(), number)  # some file systems ignore case
        if first != number:
            raise UserError(f"{file}: lines {first} and {number} are both named '{stem}'")
        prompts.append(Prompt(query, name, label or None))
    if not prompts:
        raise UserError(f"{file}: the prompt list is empty")
    return prompts


def items_of(prompts: Sequence[Prompt], folder: Path, seed: int, *, takes: int = 1, suffix: str = ".wav") -> list[Item]:
    """The sounds to generate from a prompt list, take by take.

    Args:
        seed: seed of the run. An item's seed is a function of this seed, its position in the list and its take.
        takes: number of sounds per prompt; from the second on, names end in `-take2` and so on.
        suffix: suffix of files whose names have none.

    Raises:
        UserError: two sounds would have the same file name, ignoring case as some file systems do.
    """
    items, owners = [], dict[str, tuple[str, int]]()
    for take in range(takes):
        for place, prompt in enumerate(prompts):
            path = folder / (prompt.name if prompt.name.endswith((".wav", ".flac")) else f"{prompt.name}{suffix}")
            position = (place, take) if take else (place,)
            path = path.with_name(f"{path.stem}-take{take + 1}{path.suffix}") if take else path
            other, other_take = owners.setdefault(path.stem.casefold(), (prompt.name, take))
            if (other, other_take) != (prompt.name, take):
                raise UserError(
                    f"take {other_take + 1} of '{other}' and take {take + 1} of '{prompt.name}' are both named "
                    f"'{path.stem}'; give one of them another name"
                )
            items.append(Item(prompt.query, seeded_generator(seed, *position).initial_seed(), path, prompt.label))
    return items


def _query(file: Path, number: int, row: dict[str, Any]) -> Query:
    """The query of a row, with the paths of its images and videos from the working directory."""
    values = (row.get(column, "") for column in CONDITIONS)
    texts, images, videos = ([each.strip() for each in ([v] if isinstance(v, str) else v)] for v in values)
    given = [[each for each in group if each] for group in (texts, images, videos)]
    if not any(given):
        raise UserError(
            f"{file}, line {number}: a prompt is empty; say in a few words what to hear, or name an image or a video"
        )
    try:
        query = mixture(*given)
    except UserError as error:
        raise UserError(f"{file}, line {number}: {error}") from None
    parts = [
        part if part.kind == "text" else replace(part, content=str(file.parent / part.content)) for part in query.parts
    ]
    for part in parts:
        if part.kind != "text" and not Path(part.content).is_file():
            raise UserError(f"{file}, line {number}: {part.content}: there is no such {part.kind}")
    return Query(tuple(parts))


def _from_text(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open("rb") as opened:
        for number, line in read_lines(opened, str(file)):
            text, _, name = line.partition("|")
            yield number, {"prompt": text, "name": name}


def _from_csv(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open("rb") as opened:
        columns, rows = read_csv(opened, str(file))
        _check_columns(f"{file}, line 1", columns)
        yield from rows


def _from_jsonl(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open("rb") as opened:
        for number, row in read_json_lines(opened, str(file)):
            _check_columns(f"{file}, line {number}", row)
            for column, value in row.items():
                texts = value if isinstance(value, list) and column in CONDITIONS else [value]
                if not all(isinstance(text, str) for text in texts):
                    raise UserError(f"{file}, line {number}: '{column}' has a value that is not a text")
            yield number, row


def _check_columns(where: str, names: Sequence[str] | dict[str, Any]) -> None:
    unknown = [name for name in names if name not in COLUMNS]
    if unknown or not set(CONDITIONS) & set(names):
        found = f"has '{unknown[0]}'" if unknown else "has no 'prompt'"
        raise UserError(
            f"{where}: {found}; the columns are {', '.join(COLUMNS)}, and one of {', '.join(CONDITIONS)} is needed"
        )
