"""Typed settings <-> YAML and command line: a dataclass defines their names, types and defaults.

    --config FILE      YAML; `base: FILE`, relative to it, names another file that this one overrides
    --train.lr 5e-4    overrides the YAML: a script's options are the dotted names
    --clip-s 4         a command's options are the field names, with dashes

Values get their types from the dataclass and not from YAML, in which 5e-4 is text and `no` is false. `Count`,
`Positive`, `Share` (0 to 1) and the like are numbers restricted to a range; the dataclass performs any further checks.
The `Attributes:` of docstrings become the help. Relative paths among the settings are relative to the working
directory.
"""

import argparse
import dataclasses
import difflib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from diffaudio.errors import UserError
from diffaudio.settings_schema import Setting, build, section_of, settings_of

if TYPE_CHECKING:
    Count = int
    NonNegative = float
    NonNegativeCount = int
    Positive = float
    Seed = int
    Share = float
else:
    from jsonargparse.typing import ClosedUnitInterval as Share
    from jsonargparse.typing import NonNegativeFloat as NonNegative
    from jsonargparse.typing import NonNegativeInt as NonNegativeCount
    from jsonargparse.typing import PositiveFloat as Positive
    from jsonargparse.typing import PositiveInt as Count
    from jsonargparse.typing import restricted_number_type

    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**63)])

__all__ = ["Count", "NonNegative", "NonNegativeCount", "Positive", "Seed", "Share", "parse", "parse_command", "to_yaml"]

T = TypeVar("T")

_EXPECTED = {
    "ClosedUnitInterval": "a number from 0 to 1",
    "NonNegativeFloat": "a number from 0 up",
    "NonNegativeInt": "a whole number from 0 up",
    "PositiveFloat": "a number above 0",
    "PositiveInt": "a whole number above 0",
    "Seed": "a whole number from 0 to 2^63 - 1",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "NoneType": "none",
    "pathlib.Path": "a path",
    "tuple[float, float]": "two numbers, LOW:HIGH on the line of a command and [LOW, HIGH] elsewhere",
}


def parse(settings: type[T], arguments: list[str] | None = None) -> T:
    """Create an instance of a dataclass from a script's command line and the YAML files that it names.

    Args:
        settings: the dataclass; a field that is a dataclass itself is a section.
        arguments: the command line without the program; None uses that of the process.

    Raises:
        ValueError: an unknown key, a value of the wrong type, a missing setting, or an unreadable file. The message
            starts with the source of the error: the YAML file, or the command line.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    return _parse(settings, arguments, parser, flags=None, groups={})


def parse_command(
    settings: type[T],
    arguments: list[str],
    *,
    program: str,
    description: str,
    epilog: str | None = None,
    flags: Mapping[str, tuple[str, ...]] | None = None,
    groups: Mapping[str, str] | None = None,
    presets: tuple[Path, Mapping[str, Any]] | None = None,
) -> T:
    """Create an instance of a dataclass from a command's command line, and the YAML file that it may name.

    Args:
        settings: the dataclass; the settings of a section are listed among the others.
        flags: path of a setting -> its flags, such as ("-o", "--output"), or a name without dashes for a positional
            argument; all others are named `--name-of-the-field`. A bool is a flag that needs no value.
        groups: prefix of a path -> title under which the help lists the settings.
        presets: values in place of the defaults, as in a YAML file, and the file that they come from.

    Raises:
        ValueError: see `parse`.
    """
    parser = ArgumentParser(
        prog=program, description=description, epilog=epilog, exit_on_error=False, allow_abbrev=False
    )
    return _parse(settings, arguments, parser, flags=flags or {}, groups=groups or {}, presets=presets)


def to_yaml(settings: Any) -> str:
    """All settings of a dataclass instance as YAML, from which `parse` restores the same values."""
    return yaml.safe_dump(_to_builtin(dataclasses.asdict(settings)), sort_keys=False, allow_unicode=True)


def _parse(
    settings: type[T],
    arguments: list[str],
    parser: ArgumentParser,
    *,
    flags: Mapping[str, tuple[str, ...]] | None,
    groups: Mapping[str, str],
    presets: tuple[Path, Mapping[str, Any]] | None = None,
) -> T:
    known = settings_of(settings, flags)
    if flags is not None:
        switched_off = {f"--no-{each.flag[2:]}": f"{each.flag}=false" for each in known if each.kind is bool}
        arguments = [switched_off.get(argument, argument) for argument in arguments]
    by_flag = {flag: setting for setting in known for flag in setting.flags}
    if flags is None:
        arguments = _script_arguments(arguments, by_flag)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    given = {by_flag[flag].path for flag in (each.split("=")[0] for each in arguments[:end]) if flag in by_flag}
    for argument in arguments[:end]:
        if argument.startswith("--"):
            _check_flag(argument.split("=")[0], by_flag, settings if flags is None else None)
    from_files = _read(settings, _config_file(arguments[:end]))
    if presets:
        file, content = presets
        from_files = {name: (value, file) for name, value in _flat(settings, content, file).items()} | from_files
    for path, (_, file) in from_files.items():
        if path not in {setting.path for setting in known}:
            raise UserError(f"{file}: {path}: is not a setting here")
    origins = {path: str(file) for path, (_, file) in from_files.items() if path not in given}
    tokens = []
    for setting in known:
        if setting.path in origins:
            if setting.is_positional:
                file = origins[setting.path]
                raise UserError(f"{file}: {setting.path}: is given on the command line and not in a file")
            tokens += _tokens(setting, from_files[setting.path][0], is_command=flags is not None)
    parser.add_argument("--config", type=Path, help="YAML file with settings; the command line overrides it")
    _add_arguments(parser, known, groups, is_command=flags is not None)
    own = arguments[:end] if flags is None else _command_tokens(_merged(arguments[:end], by_flag), by_flag)
    try:
        parsed = parser.instantiate(parser.parse_args([*own, *tokens, *arguments[end:]]))
    except argparse.ArgumentError as error:
        raise UserError(_explain(str(error), origins, known)) from None
    values = {setting.path: parsed[_dest(setting)] for setting in known}
    # an optional section is created when one of its settings is given
    values = {s.path: values[s.path] for s in known if not s.in_optional or s.path in given or s.path in origins}
    return build(settings, values)


def _script_arguments(arguments: list[str], by_flag: Mapping[str, Setting]) -> list[str]:
    """`--dry-run` for `--dry_run=true`: dashes in place of underscores, and switches that need no value."""
    written = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=False):
        name, equals, value = argument.partition("=")
        if name.startswith("--") and name not in by_flag and f"--{name[2:].replace('-', '_')}" in by_flag:
            name = f"--{name[2:].replace('-', '_')}"
        is_switch = name in by_flag and by_flag[name].kind is bool and not equals and following.startswith("--")
        written.append(f"{name}=true" if is_switch else f"{name}{equals}{value}")
    return written


def _dest(setting: Setting) -> str:
    return setting.flag.lstrip("-").replace("-", "_")


def _add_arguments(
    parser: ArgumentParser, known: Sequence[Setting], groups: Mapping[str, str], *, is_command: bool
) -> None:
    titled: dict[str, Any] = {}
    for setting in known:
        title = next((title for start, title in groups.items() if setting.path.startswith(start)), None)
        if title is not None and title not in titled:
            titled[title] = parser.add_argument_group(title)
        how: dict[str, Any] = {"help": setting.help, "type": setting.kind}
        if setting.default is MISSING:
            how |= {} if setting.is_positional else {"required": True}
        else:
            how["default"] = setting.default
        if is_command and setting.is_list:
            may_be_absent = setting.is_positional and setting.default is not MISSING
            how |= {"nargs": "*" if may_be_absent else "+", "type": get_args(setting.kind)[0]}
        if is_command and setting.kind is bool:
            how |= {"nargs": "?", "const": True, "metavar": "true|false"}
        if is_command and setting.is_pair:
            how["metavar"] = "LOW:HIGH"
        if is_command and setting.is_repeated:
            how["metavar"] = setting.path.rpartition(".")[2].upper()
        if setting.is_positional:
            how["metavar"] = setting.flag.upper()
        (titled[title] if title else parser).add_argument(*setting.flags, **how)


def _merged(arguments: list[str], by_flag: Mapping[str, Setting]) -> list[str]:
    """Move the values of a list option that is repeated behind its first occurrence: argparse would keep the last."""
    groups: list[list[str]] = [[]]  # each option with what follows it
    group, of_lists = groups[0], dict[str, list[str]]()
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        setting = by_flag.get(flag) if argument.startswith("-") else None
        if setting is not None and setting.is_list:
            if setting.path not in of_lists:
                groups.append([flag])
            group = of_lists.setdefault(setting.path, groups[-1])
            group += [value] if equals else []
        elif setting is not None or argument.startswith("--"):
            groups.append([argument])
            group = groups[-1]
        else:
            group.append(argument)
    return [argument for group in groups for argument in group]


def _command_tokens(arguments: list[str], by_flag: Mapping[str, Setting]) -> list[str]:
    """Expand the short forms of a command: `--plot`, LOW:HIGH, `none` in place of a value, and repeated flags."""
    tokens: list[str] = []
    repeated: dict[str, list[str]] = {}
    before: Setting | None = None  # the setting that may take the next token as its value
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        setting = by_flag.get(flag) if argument.startswith("-") else None
        if before is not None and before.is_repeated and setting is None:
            repeated.setdefault(before.flag, []).append(argument)
            before = None
            continue
        _check_has_value(before)
        if setting is not None and setting.is_repeated:
            if equals:
                repeated.setdefault(setting.flag, []).append(value)
            before = None if equals else setting
            continue
        if setting is not None and setting.kind is bool and not equals:
            tokens.append(f"{argument}=true")
        elif setting is not None:
            tokens.append(f"{flag}={_written_out(setting, value)}" if equals else argument)
        else:
            tokens.append(_written_out(before, argument) if before else argument)
        before = setting if setting is not None and not equals and setting.kind is not bool else None
    _check_has_value(before)
    return [*tokens, *(f"{flag}={json.dumps(values)}" for flag, values in repeated.items())]


def _check_has_value(before: Setting | None) -> None:
    if before is not None and before.is_repeated:
        raise UserError(f"command line: {before.flag} needs a value")


def _written_out(setting: Setting, value: str) -> str:
    is_text = bool({str, Path} & set(get_args(setting.kind)))  # for which "none" is a valid value
    if setting.may_be_none and not is_text and value.lower() == "none":
        return "null"
    if setting.is_pair and value.count(":") == 1:
        return f"[{value.replace(':', ',')}]"
    return value


def _tokens(setting: Setting, value: str, *, is_command: bool) -> list[str]:
    """A value from a file as command-line tokens."""
    if is_command and setting.is_list:
        items = json.loads(value) if value.startswith("[") else [value]
        return [setting.flag, *map(str, items)]
    return [f"{setting.flag}={_written_out(setting, value) if is_command else value}"]


def _config_file(arguments: list[str]) -> Path | None:
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    files.add_argument("--config", type=Path)
    try:
        return files.parse_known_args(arguments)[0].config
    except argparse.ArgumentError as error:
        raise UserError(f"command line: {error}") from None


def _to_builtin(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_builtin(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_builtin(item) for item in value]
    for builtin in (float, int):  # jsonargparse's restricted numbers are subclasses, which YAML cannot represent
        if isinstance(value, builtin) and not isinstance(value, bool):
            return builtin(value)
    return str(value) if isinstance(value, Path) else value


def _read(settings: type, path: Path | None) -> dict[str, tuple[str, Path]]:
    """Dotted name -> value as text and its file, for a YAML file and the files that it is based on."""
    values: dict[str, tuple[str, Path]] = {}
    visited: list[Path] = []
    while path is not None:
        if path.resolve() in visited:
            raise UserError(f"{path}: base: the files name one another in a circle")
        visited.append(path.resolve())
        content = _load(path)
        base = content.pop("base", None)
        values = {name: (value, path) for name, value in _flat(settings, content, path).items()} | values
        path = path.parent / base if base else None
    return values


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_TextLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content or {}, dict):
        raise UserError(f"{path}: expected settings by name, such as 'seed: 0'")
    return content or {}


class _TextLoader(yaml.BaseLoader):
    """Loads every value as text, but an empty one and `null` as None; rejects duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"key {name!r} stands twice in line {node.start_mark.line + 1} and after")
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        if node.style is None and node.value in ("", "~", "null"):  # without quotes
            return None
        return super().construct_scalar(node)


def _flat(settings: type, content: Mapping[str, Any], path: Path, above: tuple[str, ...] = ()) -> dict[str, str]:
    values: dict[str, str] = {}
    for key, value in content.items():
        section = _check_key(settings, [*above, str(key)], path)
        name = ".".join([*above, str(key)])
        if section is None:
            if isinstance(value, dict) and not _takes_names(settings, [*above, key]):
                raise UserError(f"{path}: {name}: expected a value, got a section of settings")
            values[name] = value if isinstance(value, str) else json.dumps(value)
        elif isinstance(value, dict):
            values |= _flat(settings, value, path, (*above, key))
        elif value is not None:
            raise UserError(f"{path}: {name}: expected a section of settings, got {value!r}")
    return values


def _takes_names(settings: type, names: list[str]) -> bool:
    """Whether a setting is a dictionary, whose keys are arbitrary."""
    kind: Any = settings
    for name in names:
        kind = get_type_hints(section_of(kind))[name]
    return get_origin(kind) is dict


def _check_key(settings: type, names: list[str], file: Path) -> type | None:
    """The dataclass of the section that a dotted name in a file refers to, or None if it is a value."""
    section: type | None = settings
    for depth, name in enumerate(names):
        known = get_type_hints(section) if section else {}
        if name not in known:
            above = "".join(f"{each}: " for each in [".".join(names[:depth])] if each)
            raise UserError(f"{file}: {above}unknown key {name!r}; {_hint(name, list(known))}")
        section = section_of(known[name])
    return section


def _check_flag(flag: str, by_flag: Mapping[str, Setting], settings: type | None) -> None:
    """Reject an unknown option; for a dotted one, suggest options of its section first."""
    choices = [*by_flag, "--config", "--help"]
    if flag in choices or (settings is not None and flag.endswith("+") and flag[:-1] in choices):
        return
    if settings is not None and "." in flag:
        section = flag.rpartition(".")[0]
        choices = [each for each in choices if each.startswith(f"{section}.") or each == section] or choices
    raise UserError(f"command line: unknown option {flag!r}; {_hint(flag, choices)}")


def _hint(name: str, choices: list[str]) -> str:
    near = difflib.get_close_matches(name, choices, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(choices)}"


def _explain(message: str, origins: Mapping[str, str], known: Sequence[Setting]) -> str:
    """Condense jsonargparse's multi-line message into one line."""
    if match := re.search(r"arguments? (?:is|are) required: (.*)", message):
        flags = {_dest(setting): setting.flag for setting in known}
        names = [name.strip().lower() for name in match[1].split(",")]
        named = [flags.get(name.replace("-", "_"), name) for name in names]
        return f"command line: {', '.join(named)} must be given"
    if match := re.search(r'Parser key "([^"]+)":\s*(.*)', message, re.DOTALL):
        setting = next((setting for setting in known if _dest(setting) == match[1]), None)
        path = setting.path if setting else match[1]
        name = path if path in origins or setting is None else setting.flag
        return f"{origins.get(path, 'command line')}: {name}: {_explain_value(match[2])}"
    return f"command line: {' '.join(message.split())}"


def _explain_value(message: str) -> str:
    message = re.sub(r"<class '(?:jsonargparse\.typing\.)?([^']+)'>", r"\1", message)
    if union := re.search(r"Subtypes: \[(.*?)\]\n.*Given value: (.*)", message, re.DOTALL):
        names = [_EXPECTED.get(str(name), str(name)) for name in re.findall(r"(?:[^,\[\s]|\[[^\]]*\])+", union[1])]
        return f"expected {' or '.join(names)}, got {union[2].split(chr(10))[0].strip()!r}"
    if ranged := re.search(r"Not of type (\w+): (?:.*'(.*)'|(\S+) does not conform)", message):
        return f"expected {_EXPECTED.get(ranged[1], ranged[1])}, got {ranged[2] or ranged[3]!r}"
    if simple := re.search(r"Expected an? (.*)\. Got value: (.*)", message, re.DOTALL):
        expected = re.sub(r"^typing\.Literal\[(.*)\]$", r"one of \1", simple[1])
        return f"expected {_EXPECTED.get(expected, expected)}, got {simple[2]!r}"
    return " ".join(message.split())
