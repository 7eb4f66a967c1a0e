"""Lists that users write, read row by row: CSV, JSON Lines and plain lines; and CSV that they open in a spreadsheet.

Whatever is wrong with a list is an error that names the file and the line. All are UTF-8, with or without a byte order
mark; blank lines are skipped.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, TextIO

from diffaudio.errors import UserError

__all__ = ["csv_text", "read_csv", "read_json_lines", "read_lines", "write_csv"]

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet takes a cell that begins with one for a formula


def read_csv(
    file: IO[bytes], name: str, delimiter: str = ","
) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """Read a table with a header.

    Args:
        file: open for reading bytes; it has to stay open while rows are taken.
        name: of the file, for errors.

    Returns:
        The names of the columns (none for an empty file), and the rows: the number of the line that a row ends on, and
        its cells by column.

    Raises:
        UserError: a column is named twice, a row has more or fewer cells than the header, a quoted cell does not end,
            or the file holds a NUL byte or is not UTF-8. Errors of rows are raised as the rows are taken.
    """
    reader = csv.reader((line for _, line in _text_lines(file, name)), delimiter=delimiter, strict=True)

    def next_row() -> list[str] | None:
        try:
            return next(reader, None)
        except csv.Error as error:
            raise UserError(f"{name}, line {reader.line_num}: {error}") from error

    header: list[str] | None = []
    while header == []:  # blank lines
        header = next_row()
    header = [cell.strip() for cell in header or []]
    for column in header:
        if header.count(column) > 1:
            raise UserError(f"{name}, line 1: column '{column}' is there more than once; name each column once")

    def rows() -> Iterator[tuple[int, dict[str, str]]]:
        while (cells := next_row()) is not None:
            if cells and len(cells) != len(header):
                raise UserError(f"{name}, line {reader.line_num}: has {len(cells)} cells, the header {len(header)}")
            if cells:
                yield reader.line_num, dict(zip(header, cells, strict=True))

    return header, rows()


def read_json_lines(file: IO[bytes], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read an object a line: the number of the line, and the object.

    Raises:
        UserError: a line is not a JSON object or is nested too deeply, or the file holds a NUL byte or is not UTF-8.
    """
    for number, line in read_lines(file, name):
        try:
            value = json.loads(line)
        except ValueError as error:  # also of numbers with too many digits
            raise UserError(f"{name}, line {number}: is not JSON ({error})") from error
        except RecursionError:
            raise UserError(f"{name}, line {number}: its JSON is nested too deeply") from None
        if not isinstance(value, dict):
            raise UserError(f'{name}, line {number}: is not an object; write one a line, such as {{"key": "value"}}')
        yield number, value


def read_lines(file: IO[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Read the lines of a text that are not blank, each with its number and without its end.

    Raises:
        UserError: the file holds a NUL byte or is not UTF-8.
    """
    for number, line in _text_lines(file, name):
        if line.strip():
            yield number, line.rstrip("\r\n")


def _text_lines(file: IO[bytes], name: str) -> Iterator[tuple[int, str]]:
    for number, raw in enumerate(file, 1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{name}, line {number}: is not text in UTF-8 ({error})") from error
        if "\0" in line:
            raise UserError(f"{name}, line {number}: holds a NUL byte, which no path or text may; remove it")
        yield number, line


def write_csv(file: TextIO, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table with a header; no text in it is run as a formula where a spreadsheet opens it (see `csv_text`).

    Args:
        file: open for writing text, with newline="".
    """
    writer = csv.writer(file)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([csv_text(cell) if isinstance(cell := row[name], str) else cell for name in columns])


def csv_text(text: str) -> str:
    """A text as `write_csv` writes it: with an apostrophe before what a spreadsheet would run as a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text
