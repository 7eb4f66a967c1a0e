"""Parts of a corpus on disk: rows that are kept although rejected, groups, order, the card."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import write_clips_part

from diffaudio.corpus import row_groups, store


def clip(index: int, *, source: str | None = None, reason: str | None = None, fingerprint: bytes | None = None) -> dict:
    return {
        "id": f"id{index}",
        "source": source or f"s{index}",
        "start_s": 0.0,
        "duration_s": 1.0 + index,
        "sample_rate": 8000,
        "audio": bytes(100),
        "frames": [{"time_s": 0.5, "image": b"x"}],
        "fingerprint": fingerprint,
        "reason": reason,
    }


@pytest.fixture
def part(tmp_path):
    path = store.part_path(tmp_path, "clips", 0)
    rows = [clip(index, reason="silent" if index in (1, 2, 3) else None) for index in range(5)]
    write_clips_part(path, rows, {"sources": []})
    return path


def ids(path: Path, **choice) -> list[str]:
    return [row["id"] for rows in store.read_groups(path, **choice) for row in rows]


def test_rejected_rows_are_read_only_where_they_are_asked_for(part):
    assert ids(part) == ids(part, columns=["id"]) == ["id0", "id4"]
    assert ids(part, rejected=True) == [f"id{index}" for index in range(5)]
    assert store.count_rows(part) == (2, 6.0)
    assert [list(row) for rows in store.read_groups(part, ["id"]) for row in rows] == [["id"], ["id"]]


def test_parts_without_reasons_are_read_whole(tmp_path):
    schema = store.CLIP_SCHEMA.remove(store.CLIP_SCHEMA.get_field_index("reason"))  # version 1
    path = tmp_path / "clips-00000.parquet"
    pq.write_table(schema.empty_table().from_pylist([clip(0), clip(1)], schema=schema), path)
    assert ids(path) == ids(path, rejected=True) == ["id0", "id1"]


def test_a_part_does_not_depend_on_how_its_rows_come(part, tmp_path):
    rows = [row for group in store.read_groups(part, rejected=True) for row in group]
    written = []
    for sizes in ([5], [1, 1, 1, 1, 1], [0, 3, 0, 2]):
        taken = iter(rows)
        groups = [[next(taken) for _ in range(size)] for size in sizes]
        tables = (store.CLIP_SCHEMA.empty_table().from_pylist(group, schema=store.CLIP_SCHEMA) for group in groups)
        store.write_tables(tmp_path / "again.parquet", tables, {"sources": []}, rows_per_group=2)
        written.append((tmp_path / "again.parquet").read_bytes())
    assert written == [part.read_bytes()] * 3


def test_parts_are_in_order_beyond_a_hundred_thousand(tmp_path):
    paths = [store.part_path(tmp_path, "clips", index) for index in (2, 99_999, 100_000)]
    for path in paths[::-1]:
        path.touch()
    assert store.part_files(tmp_path, "clips") == paths


def test_a_row_group_ends_where_it_holds_enough_bytes_however_few_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(row_groups, "GROUP_BYTES", 1000)
    sizes = [300, 300, 500, 2000, 100, 999, 1]
    rows = [clip(index) | {"audio": bytes(size - 1)} for index, size in enumerate(sizes)]  # and a picture of one byte
    tables = (pa.Table.from_pylist([row], schema=store.CLIP_SCHEMA) for row in rows)
    store.write_tables(tmp_path / "clips-00000.parquet", tables, {"sources": []})
    read = [[row["id"] for row in group] for group in store.read_groups(tmp_path / "clips-00000.parquet")]
    assert read == [["id0", "id1", "id2"], ["id3"], ["id4", "id5"], ["id6"]]


def dropped_table(num_rows: int) -> pa.Table:
    """In reverse order of time."""
    columns = {
        "source": ["film.mp4"] * num_rows,
        "start_s": np.arange(num_rows, 0, -1) - 1.0,
        "duration_s": np.full(num_rows, 1.0),
        "reason": ["silent"] * num_rows,
        "detail": [f"loudest 0.1 s at -{index / 7} dB, below -60 dB" for index in range(num_rows)],
    }
    return pa.table(columns, store.DROPPED_SCHEMA)


def test_seven_hundred_thousand_dropped_segments_in_a_part_are_read(part):
    num_rows = 700_000
    write_clips_part(part, [clip(0)], {"dropped": store.write_dropped(part, [dropped_table(num_rows)])})
    assert store.read_note(part) == {"dropped": num_rows}
    assert ids(part) == ["id0"]
    tables = list(store.read_dropped(part))
    assert max(table.num_rows for table in tables) < 20_000
    starts_s = np.concatenate([table["start_s"].to_numpy() for table in tables])
    assert np.array_equal(starts_s, np.arange(num_rows))


def test_what_was_dropped_up_to_version_2_of_the_format_is_read_from_the_note(part):
    row = {"source": "a", "start_s": 0.0, "duration_s": None, "reason": "unreadable", "detail": "empty"}
    write_clips_part(part, [clip(0)], {"dropped": [row]})
    assert [row for table in store.read_dropped(part) for row in table.to_pylist()] == [row]


def test_where_nothing_was_dropped_the_table_of_an_earlier_attempt_is_removed(part):
    assert store.write_dropped(part, [dropped_table(3)]) == 3 and store.dropped_path(part).is_file()
    assert store.write_dropped(part, []) == 0 and not store.dropped_path(part).exists()
    assert list(store.read_dropped(part)) == []


def test_dropped_csv_holds_all_parts_in_order_and_nothing_that_a_spreadsheet_runs(part):
    names = ["=1+1.mp4", "+a.mp4", "-b.mp4", "@c.mp4", "\td.mp4", "e.mp4"]
    table = pa.Table.from_pylist(
        [{"source": name, "start_s": -1.0, "duration_s": None, "reason": "silent", "detail": "=x"} for name in names],
        store.DROPPED_SCHEMA,
    )
    write_clips_part(part, [], {"dropped": store.write_dropped(part, [table])})
    store.write_dropped_csv(part.parent, [part])
    with (part.parent / "dropped.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["source"] for row in rows] == [
        *("'\td.mp4", "'+a.mp4", "'-b.mp4", "'=1+1.mp4", "'@c.mp4"),
        "e.mp4",
    ]
    assert {(row["start_s"], row["duration_s"], row["detail"]) for row in rows} == {("-1.0", "", "'=x")}


def test_a_card_names_the_files_for_data_set_viewers(tmp_path):
    store.write_card(tmp_path, "clips", "Title", "Text.")
    head, body = (tmp_path / "README.md").read_text().removeprefix("---\n").split("---\n")
    assert head.splitlines()[-1] == "    path: clips-*.parquet"
    assert body == "\n# Title\n\nText.\n"
