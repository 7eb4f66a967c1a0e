"""Prompt files: the sounds to generate for sample/generate.py and `diffaudio sweep`.

    prompts.txt      one `prompt` or `prompt|name` per line
    prompts.csv      a header with prompt and, optionally, label and name
    prompts.jsonl    one object per line, with the same keys

`name` is the name of the sound's file; by default, it consists of the position in the list and the words of the
prompt. `label` is the class that a classifier should recognise, for evaluation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffaudio.errors import UserError
from diffaudio.file_names import slug
from diffaudio.generation.batch import Item
from diffaudio.seeding import seeded_generator
from diffaudio.tables import read_csv, read_json_lines, read_lines

__all__ = ["Prompt", "items_of", "read_prompts"]

COLUMNS = ("prompt", "label", "name")


@dataclass(frozen=True)
class Prompt:
    """A line of a prompt file."""

    text: str
    name: str
    label: str | None = None


def read_prompts(file: Path) -> list[Prompt]:
    """Read a prompt file; blank lines are skipped.

    Args:
        file: .csv, .jsonl, or a text file with any other suffix.

    Raises:
        ValueError: the file is missing, empty or malformed, a prompt is empty, or a name is invalid or duplicated.
    """
    if not file.is_file():
        raise UserError(f"{file}: there is no such prompt list")
    read = {".csv": _from_csv, ".jsonl": _from_jsonl}.get(file.suffix.lower(), _from_text)
    prompts, lines = [], dict[str, int]()
    for number, row in read(file):
        text, label, name = (row.get(column, "").strip() for column in COLUMNS)
        name = name or f"{len(prompts):05d}-{slug(text)}"
        if not text:
            raise UserError(f"{file}, line {number}: a prompt is empty; say in a few words what to hear")
        if name != Path(name).name or name.startswith(".") or "\\" in name:
            raise UserError(f"{file}, line {number}: '{name}' cannot name a file; leave out slashes and leading dots")
        stem = name.removesuffix(".wav").removesuffix(".flac")
        first = lines.setdefault(stem.casefold(), number)  # some file systems ignore case
        if first != number:
            raise UserError(f"{file}: lines {first} and {number} are both named '{stem}'")
        prompts.append(Prompt(text, name, label or None))
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
            items.append(Item(prompt.text, seeded_generator(seed, *position).initial_seed(), path, prompt.label))
    return items


def _from_text(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    with file.open("rb") as opened:
        for number, line in read_lines(opened, str(file)):
            text, _, name = line.partition("|")
            yield number, {"prompt": text, "name": name}


def _from_csv(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    with file.open("rb") as opened:
        columns, rows = read_csv(opened, str(file))
        _check_columns(f"{file}, line 1", columns)
        yield from rows


def _from_jsonl(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    with file.open("rb") as opened:
        for number, row in read_json_lines(opened, str(file)):
            if not all(isinstance(value, str) for value in row.values()):
                raise UserError(f"{file}, line {number}: has a value that is not a text")
            _check_columns(f"{file}, line {number}", row)
            yield number, row


def _check_columns(where: str, names: Sequence[str] | dict[str, str]) -> None:
    unknown = [name for name in names if name not in COLUMNS]
    if "prompt" not in names or unknown:
        found = f"has '{unknown[0]}'" if unknown else "has no 'prompt'"
        raise UserError(f"{where}: {found}; the columns are {', '.join(COLUMNS)}, and prompt is needed")
