"""Typed settings <-> YAML and command line: one dataclass says what there is, of which type, and the defaults.

    --config FILE      YAML; `base: FILE`, relative to it, names another one that it overrides
    --train.lr 5e-4    overrides the YAML

Values are typed by the dataclass and not by YAML, in which 5e-4 is text and `no` is false. `Count`, `Positive`,
`Share` (0 to 1) and the like are numbers that also have to lie in a range.
Relative paths among the settings are relative to the working directory.
"""

import argparse
import dataclasses
import difflib
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from diffaudio.errors import UserError

if TYPE_CHECKING:
    Count = int
    NonNegative = float
    NonNegativeCount = int
    Positive = float
    Share = float
else:
    from jsonargparse.typing import ClosedUnitInterval as Share
    from jsonargparse.typing import NonNegativeFloat as NonNegative
    from jsonargparse.typing import NonNegativeInt as NonNegativeCount
    from jsonargparse.typing import PositiveFloat as Positive
    from jsonargparse.typing import PositiveInt as Count

__all__ = ["Count", "NonNegative", "NonNegativeCount", "Positive", "Share", "parse", "to_yaml"]

T = TypeVar("T")

_RANGES = {
    "ClosedUnitInterval": "a number from 0 to 1",
    "NonNegativeFloat": "a number from 0 up",
    "NonNegativeInt": "a whole number from 0 up",
    "PositiveFloat": "a number above 0",
    "PositiveInt": "a whole number above 0",
}


def parse(settings: type[T], arguments: list[str] | None = None) -> T:
    """Make an instance of a dataclass from a command line and the YAML files that it names.

    Args:
        settings: the dataclass; a field that is a dataclass itself is a section. `Attributes:` in the
            docstrings become the help.
        arguments: the command line without the program; None takes that of the process.

    Raises:
        ValueError: an unknown key, a value of another type, a setting left out, a file that cannot be
            read. The message begins with where: the YAML file, or the command line.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    given = {argument[2:].split("=")[0] for argument in arguments if argument.startswith("--")}
    for name in given - {"config", "help"}:
        _check_name(settings, name.removesuffix("+").split("."), where="command line", prefix="--")
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    files.add_argument("--config", type=Path)
    try:
        config = files.parse_known_args(arguments)[0].config
    except argparse.ArgumentError as error:
        raise UserError(f"command line: {error}") from None
    from_files = _read(settings, config) if config else {}
    kept = [f"--{name}={value}" for name, (value, _) in from_files.items() if name not in given]

    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, help="YAML file with settings; the command line overrides it")
    parser.add_class_arguments(settings)
    try:
        values = parser.instantiate(parser.parse_args(kept + arguments))
    except argparse.ArgumentError as error:
        origins = {name: str(file) for name, (_, file) in from_files.items() if name not in given}
        raise UserError(_explain(str(error), origins)) from None
    return _plain_numbers(settings(**{field.name: values[field.name] for field in dataclasses.fields(settings)}))  # pyright: ignore[reportArgumentType]


def to_yaml(settings: Any) -> str:
    """All settings of a dataclass instance as YAML that `parse` reads back to the same."""
    return yaml.safe_dump(_plain(dataclasses.asdict(settings)), sort_keys=False, allow_unicode=True)


def _plain_numbers(value: Any) -> Any:
    """jsonargparse gives numbers in a range types of their own, which a YAML or JSON writer may not know."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(value, **{name: _plain_numbers(getattr(value, name)) for name in names})
    for number in (int, float):
        if isinstance(value, number) and not isinstance(value, bool):
            return number(value)
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    for plain in (float, int):  # jsonargparse's restricted numbers are subclasses, which YAML does not know
        if isinstance(value, plain) and not isinstance(value, bool):
            return plain(value)
    return str(value) if isinstance(value, Path) else value


def _read(settings: type, path: Path) -> dict[str, tuple[str, Path]]:
    """Values of a YAML file and of those it is based on, as text, with the file each stands in, by dotted name."""
    values: dict[str, tuple[str, Path]] = {}
    seen: list[Path] = []
    following: Path | None = path
    while following is not None:
        if following.resolve() in seen:
            raise UserError(f"{path}: base: the files name one another in a circle")
        seen.append(following.resolve())
        content = _load(following)
        base = content.pop("base", None)
        values = {name: (value, following) for name, value in _flat(settings, content, following).items()} | values
        following = following.parent / base if base else None
    return values


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_TextLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content or {}, dict):
        raise UserError(f"{path}: expected settings by name, such as 'seed: 0'")
    return content or {}


class _TextLoader(yaml.BaseLoader):
    """Leaves every value text, and refuses a key that stands there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"key {name!r} stands twice in line {node.start_mark.line + 1} and after")
        return super().construct_mapping(node, deep)


def _flat(settings: type, content: dict[str, Any], path: Path, above: tuple[str, ...] = ()) -> dict[str, str]:
    values: dict[str, str] = {}
    for key, value in content.items():
        section = _check_name(settings, [*above, key], where=str(path))
        if section is None:
            if isinstance(value, dict) and not _takes_names(settings, [*above, key]):
                raise UserError(f"{path}: {'.'.join([*above, key])}: expected a value, got a section of settings")
            is_plain = not isinstance(value, (dict, list))
            values[".".join([*above, key])] = value or "null" if is_plain else json.dumps(value)
        elif isinstance(value, dict):
            values |= _flat(settings, value, path, (*above, key))
        elif value:
            raise UserError(f"{path}: {'.'.join([*above, key])}: expected a section of settings, got {value!r}")
    return values


def _takes_names(settings: type, names: list[str]) -> bool:
    """Whether a setting is a dictionary, whose names are anybody's."""
    for name in names[:-1]:
        settings = get_type_hints(settings)[name]
    return get_origin(get_type_hints(settings)[names[-1]]) is dict


def _check_name(settings: type, names: list[str], *, where: str, prefix: str = "") -> type | None:
    """The dataclass of the section that a dotted name stands for, None where it is a value.

    Args:
        prefix: of the whole name, where it is an option of the command line; empty in a file.
    """
    section: type | None = settings
    for depth, name in enumerate(names):
        known = get_type_hints(section) if section else {}
        if name not in known:
            above = ".".join(names[:depth])
            if prefix:
                what, choices = prefix + ".".join(names), [prefix + ".".join([*names[:depth], key]) for key in known]
                message = f"{where}: unknown option {what!r}"
            else:
                what, choices = name, list(known)
                message = f"{where}: {above + ': ' if above else ''}unknown key {name!r}"
            near = difflib.get_close_matches(what, choices, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(choices) or prefix + above}"
            raise UserError(f"{message}; {hint}")
        section = known[name] if dataclasses.is_dataclass(known[name]) else None
    return section


def _explain(message: str, origins: dict[str, str]) -> str:
    """One line from what jsonargparse says in several."""
    if match := re.search(r"arguments? (?:is|are) required: (.*)", message):
        names = ", ".join(f"--{name.strip()}" for name in match[1].split(","))
        return f"command line: {names} must be given"
    if match := re.search(r'Parser key "([^"]+)":\s*(.*)', message, re.DOTALL):
        name, what = match[1], re.sub(r"<class '([^']+)'>", r"\1", match[2])
        if union := re.search(r"Subtypes: \[(.*?)\]\n.*Given value: (.*)", what, re.DOTALL):
            what = f"expected one of {union[1]}, got {union[2].strip()!r}"
        elif ranged := re.search(r"Not of type (\w+): (?:.*'(.*)'|(\S+) does not conform)", what):
            what = f"expected {_RANGES.get(ranged[1], ranged[1])}, got {ranged[2] or ranged[3]!r}"
        elif simple := re.search(r"Expected an? (.*)\. Got value: (.*)", what, re.DOTALL):
            expected = re.sub(r"^typing\.Literal\[(.*)\]$", r"one of \1", simple[1])
            what = f"expected {expected}, got {simple[2]!r}"
        return f"{origins.get(name, 'command line')}: {name}: {' '.join(what.split())}"
    return f"command line: {' '.join(message.split())}"
