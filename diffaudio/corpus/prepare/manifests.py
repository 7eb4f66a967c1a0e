"""Lists of files: plain lists (one path or address per line), and manifests with the segments of each file to use.

A manifest is a table with the column `path` and optionally `start` and `end` (seconds) and `caption`; further columns
are ignored. Relative paths are relative to the folder of the list.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

from diffaudio.corpus.prepare.remote import is_remote, open_anywhere, path_beside
from diffaudio.errors import UserError
from diffaudio.tables import read_csv, read_json_lines, read_lines

__all__ = ["LIST_SUFFIXES", "Row", "is_list", "read_list"]

COLUMNS = ("path", "start", "end", "caption")
Rows = Iterator[tuple[str, dict[str, Any]]]  # the place of a row, and its cells


class Row(NamedTuple):
    """One row of a list.

    Attributes:
        path: absolute, or an address.
        is_relative: whether the list gives it relative to its own folder.
        place: the list and the position in it, such as "list.csv, line 3".
    """

    path: str
    is_relative: bool
    start_s: float | None
    end_s: float | None
    caption: str | None
    place: str


def is_list(source: str) -> bool:
    """Whether a file is a list, judging by its suffix."""
    return _suffix(source) in READERS


def read_list(source: str) -> Iterator[Row]:
    """The rows of a list, from a local file or an address.

    Raises:
        ValueError: the list is damaged or lacks the column `path`, or a row is invalid; the message names it.
        OSError: it cannot be read.
    """
    folder = None if is_remote(source) else os.path.dirname(os.path.abspath(source))
    with open_anywhere(source) as file:
        for place, cells in READERS[_suffix(source)](file, source):
            try:
                yield _row(source, folder, place, cells)
            except ValueError as error:
                raise UserError(f"{place}: {error}") from error


def _row(source: str, folder: str | None, place: str, cells: dict[str, Any]) -> Row:
    path = _text("path", cells.get("path"))
    if path is None:
        raise UserError("path is empty; name a file")
    is_address = is_remote(path)
    is_relative = not is_address and not os.path.isabs(path)
    if is_relative and folder is None:
        path = path_beside(source, path)
    elif not is_address:
        path = os.path.normpath(os.path.join(folder or "", path))
    start_s, end_s = _number("start", cells.get("start")), _number("end", cells.get("end"))
    return Row(path, is_relative, start_s, end_s, _text("caption", cells.get("caption")), place)


def _text(name: str, value: Any) -> str | None:
    if value is not None and not (isinstance(value, str) and _is_unicode(value)):
        raise UserError(f"{name} is {value!r}; it must be text")
    if value and "\0" in value:  # JSON and Parquet can hold one
        raise UserError(f"{name} is {value!r}, which holds a NUL byte; remove it")
    return (value or "").strip() or None


def _is_unicode(text: str) -> bool:
    """Whether text can be encoded; JSON can contain lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _number(name: str, value: Any) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"{name} is {value!r}; it must be a number of seconds") from None


def _lines(file: IO[bytes], source: str) -> Rows:
    for number, line in read_lines(file, source):
        if not line.startswith("#"):
            yield f"{source}, line {number}", {"path": line}


def _table(delimiter: str) -> Callable[[IO[bytes], str], Rows]:
    def rows(file: IO[bytes], source: str) -> Rows:
        columns, lines = read_csv(file, source, delimiter)
        _check_columns(source, columns)
        for number, row in lines:
            yield f"{source}, line {number}", row

    return rows


def _json_lines(file: IO[bytes], source: str) -> Rows:
    for number, row in read_json_lines(file, source):
        _check_columns(place := f"{source}, line {number}", list(row))
        yield place, row


def _parquet(file: IO[bytes], source: str) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            _check_columns(source, names := table.schema_arrow.names)
            batches = table.iter_batches(columns=[name for name in COLUMNS if name in names])
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield f"{source}, row {number}", row
    except (pa.ArrowException, OSError) as error:  # pyarrow reports damaged data as OSError
        raise UserError(f"{source}: is not a Parquet file, or a damaged one ({error})") from error


def _check_columns(place: str, names: Sequence[str]) -> None:
    """Refuse a misspelt column rather than ignore it silently."""
    if "path" not in names:
        found = ", ".join(names) or "nothing"
        raise UserError(f"{place}: column 'path' is missing, found are {found}; name the columns {', '.join(COLUMNS)}")
    for known in COLUMNS:
        near = next((name for name in names if name.strip().lower().startswith(known)), None)
        if near is not None and known not in names:
            raise UserError(f"{place}: has a column '{near}', but no '{known}'; call it so, or leave it out")


def _suffix(source: str) -> str:
    return os.path.splitext(source.split("::")[0])[1].lower()


READERS: dict[str, Callable[[IO[bytes], str], Rows]] = {
    ".txt": _lines,
    ".lst": _lines,
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
LIST_SUFFIXES = tuple(READERS)
