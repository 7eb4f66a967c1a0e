"""The settings of a dataclass as a flat list: name, type, default, help, and what each is called on the command line.

A field that is a dataclass is a section; its settings follow, with a dotted path. Where a section may be None, it is
made when one of its settings is given.
"""

import dataclasses
import inspect
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse as parse_docstring

__all__ = ["Setting", "build", "plain_number", "section_of", "settings_of"]


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        path: dotted, from the outermost dataclass.
        kind: its type.
        default: MISSING where it has to be given.
        help: what the docstring of its dataclass says of it.
        flags: on the command line; a positional argument has a name without dashes.
        in_optional: whether a section around it may be None.
    """

    path: str
    kind: Any
    default: Any
    help: str
    flags: tuple[str, ...]
    in_optional: bool = False

    @property
    def flag(self) -> str:
        """The first long one, by which messages call it."""
        return next((flag for flag in self.flags if flag.startswith("--")), self.flags[0])

    @property
    def is_positional(self) -> bool:
        return not self.flag.startswith("-")

    @property
    def may_be_none(self) -> bool:
        return type(None) in get_args(self.kind)

    @property
    def is_list(self) -> bool:
        return get_origin(self.kind) is list

    @property
    def is_repeated(self) -> bool:
        """Whether it is a tuple of any length: on the command line of a command, each value has a flag of its own."""
        return get_origin(self.kind) is tuple and get_args(self.kind)[1:] == (...,)

    @property
    def is_pair(self) -> bool:
        """Whether it is a tuple of two, or None: written LOW:HIGH on the command line of a command."""
        kinds = [kind for kind in (get_args(self.kind) if self.may_be_none else [self.kind]) if kind is not type(None)]
        is_tuple = len(kinds) == 1 and get_origin(kinds[0]) is tuple
        return is_tuple and len(get_args(kinds[0])) == 2 and not self.is_repeated


def settings_of(root: type, flags: Mapping[str, tuple[str, ...]] | None) -> list[Setting]:
    """All settings of a dataclass, in order.

    Args:
        flags: of a command, path -> flags, for those that are not called `--name-of-the-field`; a positional
            argument has a name without dashes, and what has none is left out. None is for scripts, whose flags are
            the dotted paths.
    """
    return list(_walk(root, flags, "", False))


def _walk(root: type, flags: Mapping[str, tuple[str, ...]] | None, above: str, in_optional: bool) -> Iterator[Setting]:
    hints, documented = get_type_hints(root), _field_docs(root)
    for field in fields(root):
        path, kind = f"{above}{field.name}", hints[field.name]
        section = section_of(kind)
        if section is not None:
            yield from _walk(section, flags, f"{path}.", in_optional or section is not kind)
            continue
        default = field.default
        if field.default_factory is not MISSING:
            default = field.default_factory()
        usual = (f"--{path}",) if flags is None else (f"--{field.name.replace('_', '-')}",)
        own = usual if flags is None else flags.get(path, usual)
        if not own:
            continue
        yield Setting(path, kind, default, documented.get(field.name, ""), own, in_optional)


def section_of(kind: Any) -> type | None:
    """The dataclass that a type is, or is beside None; None for any other type."""
    if dataclasses.is_dataclass(kind):
        return kind if isinstance(kind, type) else None
    if get_origin(kind) in (Union, types.UnionType):
        others = [each for each in get_args(kind) if each is not type(None)]
        return section_of(others[0]) if len(others) == 1 else None
    return None


def build(root: Any, values: Mapping[str, Any], above: str = "") -> Any:
    """An instance of a dataclass from values by dotted path; what is not there keeps its default."""
    arguments = {}
    hints = get_type_hints(root)
    for field in fields(root):
        path, section = f"{above}{field.name}", section_of(hints[field.name])
        if section is None:
            if path in values:
                arguments[field.name] = plain_number(values[path])
        elif any(name.startswith(f"{path}.") for name in values):
            arguments[field.name] = build(section, values, f"{path}.")
    return root(**arguments)


def plain_number(value: Any) -> Any:
    """jsonargparse gives numbers in a range types of their own, which a YAML or JSON writer may not know."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value)]
        return dataclasses.replace(value, **{name: plain_number(getattr(value, name)) for name in names})
    if isinstance(value, (list, tuple)):
        return type(value)(plain_number(item) for item in value)
    for number in (int, float):
        if isinstance(value, number) and not isinstance(value, bool):
            return number(value)
    return value


@cache
def _field_docs(root: type) -> dict[str, str]:
    documented: dict[str, str] = {}
    for each in reversed(root.__mro__):
        if "__doc__" in vars(each) and each.__doc__ and dataclasses.is_dataclass(each):
            for entry in parse_docstring(inspect.cleandoc(each.__doc__)).params:
                for name in entry.arg_name.split(","):
                    documented[name.strip()] = " ".join((entry.description or "").split())
    return documented
