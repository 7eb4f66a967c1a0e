"""Parts of a corpus on disk: rows that are kept although condemned, groups, order, the card."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from diffaudio.atomic_io import locked
from diffaudio.corpus import store


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
    store.write_part(path, "clips", rows, {"sources": []}, rows_per_group=2)
    return path


def ids(path: Path, **choice) -> list[str]:
    return [row["id"] for rows in store.read_groups(path, **choice) for row in rows]


def test_condemned_rows_are_read_only_where_they_are_asked_for(part):
    assert ids(part) == ids(part, columns=["id"]) == ["id0", "id4"]
    assert ids(part, condemned=True) == [f"id{index}" for index in range(5)]
    assert store.count_rows(part) == (2, 6.0)
    assert [list(row) for rows in store.read_groups(part, ["id"]) for row in rows] == [["id"], ["id"]]


def test_parts_without_reasons_are_read_whole(tmp_path):
    schema = store.CLIP_SCHEMA.remove(store.CLIP_SCHEMA.get_field_index("reason"))  # version 1
    path = tmp_path / "clips-00000.parquet"
    pq.write_table(schema.empty_table().from_pylist([clip(0), clip(1)], schema=schema), path)
    assert ids(path) == ids(path, condemned=True) == ["id0", "id1"]


def test_a_part_does_not_depend_on_how_its_rows_come(part, tmp_path):
    rows = [row for group in store.read_groups(part, condemned=True) for row in group]
    written = []
    for sizes in ([5], [1, 1, 1, 1, 1], [0, 3, 0, 2]):
        taken = iter(rows)
        groups = [[next(taken) for _ in range(size)] for size in sizes]
        tables = (store.CLIP_SCHEMA.empty_table().from_pylist(group, schema=store.CLIP_SCHEMA) for group in groups)
        store.write_tables(tmp_path / "again.parquet", "clips", tables, {"sources": []}, rows_per_group=2)
        written.append((tmp_path / "again.parquet").read_bytes())
    assert written == [part.read_bytes()] * 3


def test_parts_are_in_order_beyond_a_hundred_thousand(tmp_path):
    paths = [store.part_path(tmp_path, "clips", index) for index in (2, 99_999, 100_000)]
    for path in paths[::-1]:
        path.touch()
    assert store.part_files(tmp_path, "clips") == paths


def test_a_card_names_the_files_for_data_set_viewers(tmp_path):
    store.write_card(tmp_path, "clips", "Title", "Text.")
    head, body = (tmp_path / "README.md").read_text().removeprefix("---\n").split("---\n")
    assert head.splitlines()[-1] == "    path: clips-*.parquet"
    assert body == "\n# Title\n\nText.\n"


HOLDS = """
import sys, time
from pathlib import Path
from diffaudio.atomic_io import locked
with locked(Path(sys.argv[1]), 0.0) as free:
    print(free, flush=True)
    time.sleep(600)
"""


def test_a_lock_keeps_others_out_until_its_process_has_ended_however_it_ends(tmp_path):
    lock = tmp_path / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(lock)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "True\n"
        with locked(lock, 0.0) as free:
            assert not free
        assert lock.exists()
        os.kill(process.pid, signal.SIGKILL)
        began = time.monotonic()
        with locked(lock, 60.0) as free:
            assert free
        assert time.monotonic() - began < 30
    assert not lock.exists()
