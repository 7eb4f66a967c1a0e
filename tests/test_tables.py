"""Lists that users write: every fault is an error that names the file and the line."""

import io

import pytest

from diffaudio.errors import UserError
from diffaudio.tables import read_csv, read_json_lines, read_lines, write_csv


def rows_of(data: bytes, delimiter: str = ",") -> list[tuple[int, dict[str, str]]]:
    return list(read_csv(io.BytesIO(data), "list.csv", delimiter)[1])


def test_a_table_gives_its_columns_and_its_rows_with_the_lines_they_end_on():
    data = '\ufeffpath, caption\r\na.mp4,"rain, and\r\nwind"\r\n\r\nb.mp4,"a ""big"" dog"\r\n'.encode()
    columns, rows = read_csv(io.BytesIO(data), "list.csv")
    assert columns == ["path", "caption"]
    assert list(rows) == [
        (3, {"path": "a.mp4", "caption": "rain, and\r\nwind"}),
        (5, {"path": "b.mp4", "caption": 'a "big" dog'}),
    ]


def test_the_separator_may_be_another():
    assert rows_of(b"path\tcaption\na,b\t1\n", "\t") == [(2, {"path": "a,b", "caption": "1"})]


def test_an_empty_table_has_neither_columns_nor_rows():
    assert read_csv(io.BytesIO(b""), "list.csv")[0] == []
    assert rows_of(b"path\n") == []


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"path,path\n", "list.csv, line 1: column 'path' is there more than once; name each column once"),
        (b"path,start\na,1\nb\n", "list.csv, line 3: has 1 cells, the header 2"),
        (b"path,start\na,1,2\n", "list.csv, line 2: has 3 cells, the header 2"),
        (b'path\n"a\n', "list.csv, line 2: unexpected end of data"),
        (b"path\na\nb\0.mp4\n", "list.csv, line 3: holds a NUL byte, which no path or text may; remove it"),
        (b"path\0\n", "list.csv, line 1: holds a NUL byte"),
        (b"path\na\ncaf\xe9\n", "list.csv, line 3: is not text in UTF-8"),
        (b"path\n" + b"a" * 200_000, "list.csv, line 2: field larger than field limit"),
    ],
)
def test_what_is_wrong_with_a_table_is_named_with_its_line(data, error):
    with pytest.raises(UserError, match=error):
        rows_of(data)


def test_objects_come_with_the_numbers_of_their_lines():
    data = b'\xef\xbb\xbf{"a": 1}\n\n{"b": [2]}'
    assert list(read_json_lines(io.BytesIO(data), "list.jsonl")) == [(1, {"a": 1}), (3, {"b": [2]})]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"no json", "line 2: is not JSON"),
        (b"[1]", 'line 2: is not an object; write one a line, such as {"key": "value"}'),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line 2: its JSON is nested too deeply"),
        (b"[" * 1_000_000, "line 2: its JSON is nested too deeply"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "line 2: is not JSON"),
        (b'{"a": "\0"}', "line 2: holds a NUL byte"),
        (b'{"a": "\xff"}', "line 2: is not text in UTF-8"),
    ],
)
def test_a_line_that_is_not_an_object_is_named(line, error):
    with pytest.raises(UserError, match=rf"list.jsonl, {error}"):
        list(read_json_lines(io.BytesIO(b'{"a": 1}\n' + line + b"\n"), "list.jsonl"))


def test_plain_lines_come_without_their_ends_and_blank_ones_not_at_all():
    assert list(read_lines(io.BytesIO(b"a b \r\n\n  \nc"), "list.txt")) == [(1, "a b "), (4, "c")]
    with pytest.raises(UserError, match="list.txt, line 2: holds a NUL byte"):
        list(read_lines(io.BytesIO(b"a\nb\0\n"), "list.txt"))


def test_a_text_that_a_spreadsheet_would_run_is_written_with_an_apostrophe_and_a_number_is_not():
    file = io.StringIO()
    write_csv(file, ["a", "b"], [{"a": "=1", "b": -1.5}, {"a": "x=1", "b": None}, {"a": "@x", "b": "-y"}])
    assert file.getvalue().splitlines() == ["a,b", "'=1,-1.5", "x=1,", "'@x,'-y"]
