"""`diffaudio validate`: rows and corpora broken in every way, each named."""

import errno
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import (
    clip_row,
    dies,
    dropped_row,
    flac,
    jpeg,
    latent_row,
    sine,
    write_clips_corpus,
    write_clips_part,
    write_latents_corpus,
)

from diffaudio.cli.main import main
from diffaudio.corpus import store
from diffaudio.corpus.snapshot import open_corpus
from diffaudio.corpus.validate import run as validation
from diffaudio.corpus.validate.run import validate
from diffaudio.tables import write_csv

FRAME = {"time_s": 0.2, "image": jpeg()}


def problems(folder: Path, **options) -> list[str]:
    return [str(problem) for problem in validate(open_corpus(folder), **options)]


def wrong_clip(tmp_path: Path, **changes) -> list[str]:
    """What is said of a clip with some columns changed, between two that are right."""
    rows = [clip_row("a"), clip_row("b") | changes, clip_row("c")]
    return problems(write_clips_corpus(tmp_path / "corpus", [rows]))


def wrong_latents(tmp_path: Path, **changes) -> list[str]:
    return problems(write_latents_corpus(tmp_path / "corpus", [[latent_row("a"), latent_row("b") | changes]]))


@pytest.fixture
def corpus(tmp_path) -> Path:
    parts = [[clip_row("a", i) for i in range(3)], [clip_row("b"), clip_row("c", reason="silent", samples=sine(9, 0))]]
    return write_clips_corpus(tmp_path / "corpus", parts, [dropped_row("d"), dropped_row("e", "no_sound", 'a "b",\nc')])


def test_nothing_is_wrong_with_a_corpus_that_is_right(corpus, tmp_path):
    assert problems(corpus) == problems(corpus, decode=False) == []
    assert problems(write_latents_corpus(tmp_path / "latents", [[latent_row("a"), latent_row("a", copy=1)]])) == []


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"id": ""}, "has no id"),
        ({"source": None}, "has no source"),
        ({"start_s": -1.0}, "start_s is -1.0"),
        ({"duration_s": math.nan}, "duration_s is nan"),
        ({"duration_s": 2.5}, "duration_s is 2.5, above clip_s, which is 2"),
        ({"duration_s": 1.5}, "the sound lasts 1 s, duration_s is 1.5"),
        ({"caption": " "}, "has an empty caption"),
        ({"sample_rate": 16000}, "sample_rate is 16000, the manifest says 8000"),
        ({"audio": flac(sine(440), 16000)}, "the sound has 16000 Hz, sample_rate is 8000"),
        ({"audio": flac(np.stack([sine(440)] * 2, 1))}, "the sound has 2 channels, the manifest says 1"),
        ({"audio": None}, "the sound does not decode (Format not recognised)"),
        ({"audio": flac(sine(440))[:500]}, "the sound does not decode"),
        ({"audio": flac(sine(440))[:-99] + bytes(99)}, "the sound does not decode"),
        ({"audio": flac(sine(440, 0.0))}, "the sound is digital silence, and the clip has no reason"),
        ({"audio": flac(sine(440, 1e-4))}, "the sound is silent, -8"),
        ({"frames": []}, "has no picture"),
        ({"frames": [FRAME, FRAME | {"time_s": 0.1}]}, "the pictures' times do not ascend: 0.2, 0.1"),
        ({"frames": [FRAME | {"time_s": 1.1}]}, "a picture's time, 1.1 s, is outside the clip, which ends at 1 s"),
        ({"frames": [FRAME | {"time_s": None}]}, "a picture's time is no number"),
        (
            {"frames": [FRAME | {"time_s": i / 9} for i in range(3)]},
            "has 3 pictures, above frames_per_clip, which is 2",
        ),
        ({"frames": [FRAME | {"image": jpeg()[:200]}]}, "picture 1 does not decode"),
        ({"frames": [FRAME | {"image": None}]}, "picture 1 does not decode (format not recognised)"),
        ({"frames": [FRAME | {"image": jpeg(size=(32, 40))}]}, "picture 1 is 32 x 40, frame_size is 32"),
        ({"fingerprint": b"\x01ab"}, "the fingerprint of 3 bytes is damaged or of another version"),
        ({"fingerprint": None}, "has no fingerprint, by which duplicates are found"),
    ],
)
def test_a_wrong_clip_is_named_with_what_is_wrong(tmp_path, changes, what):
    (found,) = [line for line in wrong_clip(tmp_path, **changes) if what in line]
    named = {"id": "b-0", "source": "b"} | changes
    assert found.startswith(f"clips-00000.parquet row 1 ({named['id']}, {named['source']}): {what}")


def test_a_clip_may_show_a_picture_that_appeared_before_it_and_silence_where_it_is_marked(tmp_path):
    rows = [
        clip_row("a", 1, frames=[FRAME]),
        clip_row("b", reason="silent", audio=flac(sine(440, 0.0)), fingerprint=None),
    ]
    assert problems(write_clips_corpus(tmp_path / "corpus", [rows])) == []


def test_a_marked_clip_is_wrong_where_none_should_be_kept(tmp_path):
    folder = write_clips_corpus(tmp_path / "corpus", [[clip_row("a", reason="silent")]])
    change_manifest(folder, lambda manifest: manifest["settings"].update(keep_dropped=False))
    assert "was rejected as 'silent', but the corpus was prepared without --keep-dropped" in problems(folder)[0]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"copy": -1}, "copy is -1, below 0"),
        ({"num_latent_frames": 0}, "num_latent_frames is 0"),
        ({"num_latent_frames": 9}, "holds 40 values of latents, 4 channels of 9 frames are 36"),
        ({"duration_s": 1.5}, "has 10 frames of latents, duration_s is 1.5"),
        ({"latents": np.full(40, np.inf, np.float16)}, "40 values of the latents are not finite"),
        (
            {"latents": np.full(40, 1e-3, np.float16)},
            "have a standard deviation of 0 and reach 0.001; that",
        ),
        (
            {"latents": np.eye(1, 40, dtype=np.float16)[0] * 200},
            "have a standard deviation of 31.2 and reach 200",
        ),
        ({"latents": None}, "lacks its latents or embeddings"),
        ({"embeddings": []}, "has no embedding"),
        ({"num_pictures": 3}, "has 2 embeddings, num_pictures is 3"),
        ({"embeddings": [np.ones(2, np.float16)] * 2}, "embedding 1 has 2 values, the manifest says 3"),
        ({"embeddings": [np.ones(3, np.float16)] * 2}, "embedding 1 has norm 1.73, not 1"),
        ({"embeddings": [np.full(3, np.nan, np.float16)] * 2}, "embedding 1 is not finite"),
    ],
)
def test_a_wrong_encoded_row_is_named_with_what_is_wrong(tmp_path, changes, what):
    (found,) = [line for line in wrong_latents(tmp_path, **changes) if what in line]
    assert found.startswith("latents-00000.arrow row 1 (b, b): ")
    assert what in found


def test_ids_and_sources_that_come_twice_are_named_with_both_places(tmp_path):
    parts = [[clip_row("a"), clip_row("a", 1)], [clip_row("b"), clip_row("a", 1)]]
    assert problems(write_clips_corpus(tmp_path / "corpus", parts)) == [
        "clips-00001.parquet row 1 (a-1, a): the same id stands in clips-00000.parquet row 1",
        "clips-00001.parquet: holds 'a', which clips-00000.parquet holds",
    ]
    copies = [latent_row("a"), latent_row("a", copy=1), latent_row("a", copy=1)]
    assert problems(write_latents_corpus(tmp_path / "latents", [copies])) == [
        "latents-00000.arrow row 2 (a, a): the same id stands in latents-00000.arrow row 1"
    ]


def change_manifest(folder: Path, change) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    store.write_manifest(folder, manifest)


def test_a_manifest_whose_totals_are_not_those_of_the_parts_is_wrong(corpus):
    change_manifest(corpus, lambda manifest: manifest.update(clips=3, seconds=4.5, rejected=0, dropped=1))
    assert problems(corpus) == [
        "manifest.json: says 3 clips, the parts hold 4",
        "manifest.json: says 4.5 seconds, the parts hold 4.0",
        "manifest.json: says 0 rejected, the parts hold 1",
        "manifest.json: says 1 dropped, the parts hold 2",
    ]


def write_dropped_csv(folder: Path, rows: list[dict]) -> None:
    with (folder / "dropped.csv").open("w", newline="", encoding="utf-8") as file:
        write_csv(file, store.DROPPED_COLUMNS, rows)


def test_dropped_csv_has_to_say_what_the_parts_say(corpus):
    dropped = [dropped_row("d"), dropped_row("e", "no_sound", 'a "b",\nc')]
    write_dropped_csv(corpus, [*dropped, dropped_row("f")])
    assert problems(corpus) == ["dropped.csv: has 2 lines of reason 'silent', the parts say 1"]
    write_dropped_csv(corpus, [dropped[0] | {"source": "f"}, dropped[1]])
    assert problems(corpus) == ["dropped.csv: lines of reason 'silent' are not those that the parts say"]
    write_dropped_csv(corpus, [dropped[0] | {"start_s": "soon"}, dropped[1]])
    assert "dropped.csv: line 2 is damaged" in problems(corpus)
    (corpus / "dropped.csv").write_text("a,b\n")
    assert problems(corpus)[0].startswith(
        "dropped.csv: has columns ['a', 'b'], not source, start_s, duration_s, reason"
    )
    (corpus / "dropped.csv").unlink()
    assert problems(corpus) == ["dropped.csv: is missing; run `diffaudio prepare` again"]


def test_the_tables_of_what_was_dropped_have_to_be_there_and_whole(corpus):
    part = store.part_files(corpus, "clips")[0]
    path = store.dropped_path(part)
    path.write_bytes(path.read_bytes()[:-10])
    assert problems(corpus)[0].startswith(f"{path.name}: is damaged (")
    assert problems(corpus)[0].endswith(f"; delete it and {part.name}, and run the same command again")
    path.unlink()
    assert f"{path.name}: holds 0 rows, {part.name} says 2" in problems(corpus)


def test_a_name_that_a_spreadsheet_would_run_is_the_same_in_the_table_and_in_dropped_csv(tmp_path):
    dropped = [dropped_row("=cmd|' /C calc'!A0.mp4"), dropped_row("@b.mp4", detail="-1 dB")]
    folder = write_clips_corpus(tmp_path / "corpus", [[clip_row("a")]], dropped)
    assert (folder / "dropped.csv").read_text().splitlines()[1].startswith("'=cmd|' /C calc'!A0.mp4,")
    assert problems(folder) == []


def test_parts_that_are_missing_damaged_or_of_another_layout_are_named(corpus):
    write_clips_part(store.part_path(corpus, "clips", 4), [], {"sources": []})
    assert problems(corpus) == ["clips-00002.parquet: is missing; run `diffaudio prepare` again"]
    (corpus / "clips-00004.parquet").write_bytes(b"PAR1")
    assert problems(corpus)[0].startswith("clips-00004.parquet: is damaged (Parquet file size is 4 bytes")
    rows = pa.Table.from_pylist([clip_row("f")], schema=store.CLIP_SCHEMA)
    rows = rows.set_column(3, "duration_s", rows["duration_s"].cast(pa.float32())).drop_columns(["frames"])
    rows = rows.append_column("colour", pa.array(["red"])).replace_schema_metadata({store.NOTE: b'{"sources": ["f"]}'})
    pq.write_table(rows, corpus / "clips-00004.parquet")
    assert problems(corpus)[:3] == [
        "clips-00004.parquet: has duration_s as float, not double",
        "clips-00004.parquet: lacks the column frames",
        "clips-00004.parquet: has a column colour that no corpus has",
    ]


def damaged_parts(data: bytes, trials: int) -> Iterator[bytes]:
    """A part with bytes changed at random, mostly in its footer, or cut off."""
    rng = random.Random(0)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for trial in range(trials):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 2, 8))):
            damaged[rng.randrange(footer if trial % 3 else 0, len(data))] = rng.randrange(256)
        if trial % 5 == 0:
            del damaged[rng.randrange(len(damaged)) :]
        yield bytes(damaged)


def test_whatever_part_of_a_file_is_damaged_its_name_is_listed_and_the_others_are_checked(corpus, capsys):
    """Where validate finds a part unreadable, inspect ends with one line that names it."""
    first, second = store.part_files(corpus, "clips")
    rows = [row for group in store.read_groups(second, rejected=True) for row in group]
    write_clips_part(second, [rows[0] | {"sample_rate": 16000}, rows[1]], {"sources": ["b", "c"], "dropped": 0})
    data, unreadable = first.read_bytes(), 0
    for damaged in damaged_parts(data, 80):
        first.write_bytes(damaged)
        found = problems(corpus, decode=False)
        assert any("clips-00001.parquet row 0 (b-0, b): sample_rate is 16000" in line for line in found)
        if not any(line.startswith("clips-00000.parquet: is damaged") for line in found):
            continue
        unreadable += 1
        assert main(["inspect", str(corpus)]) == 2
        error = capsys.readouterr().err
        assert "clips-00000.parquet: " in error and error.count("\n") == 1
    assert unreadable > 25


def test_a_part_that_the_disk_cannot_read_is_a_problem_and_the_others_are_checked(corpus, monkeypatch):
    first = store.part_files(corpus, "clips")[0]
    real = store.read_note

    def failing(path: Path) -> dict:
        if path == first:
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    monkeypatch.setattr(store, "read_note", failing)
    found = problems(corpus)
    assert found[0] == "clips-00000.parquet: cannot be read (Input/output error)"
    assert "manifest.json: says 4 clips, the parts hold 1" in found


def test_rows_that_cannot_be_read_are_named_and_the_others_checked(corpus):
    part = corpus / "clips-00000.parquet"
    column = pq.read_metadata(part).row_group(0).column(1)
    data = bytearray(part.read_bytes())
    data[column.data_page_offset : column.data_page_offset + column.total_compressed_size] = bytes(
        [255] * column.total_compressed_size
    )
    part.write_bytes(bytes(data))
    found = problems(corpus)
    assert found[0].startswith("clips-00000.parquet: rows 0 to 1 cannot be read (")
    assert "manifest.json: says 4 clips, the parts hold 2" in found


def test_a_row_of_a_source_that_its_part_does_not_name_is_wrong(corpus):
    part = store.part_path(corpus, "clips", 1)
    rows = [row for group in store.read_groups(part, rejected=True) for row in group]
    write_clips_part(part, rows, {"sources": ["b"]})
    (found,) = problems(corpus)
    assert found.endswith("row 1 (c-0, c): is of a source that the part does not name among its own")


def test_the_totals_of_a_parts_note_are_those_of_its_rows(tmp_path):
    folder = write_clips_corpus(tmp_path / "corpus", [[clip_row("a")]])
    note = {"sources": ["a"], "clips": 2, "seconds": 1.0, "rejected": 0}
    write_clips_part(store.part_path(folder, "clips", 0), [clip_row("a")], note)
    assert problems(folder) == ["clips-00000.parquet: holds 1 clips, its note says 2"]


def test_what_a_killed_run_left_is_named(corpus):
    (corpus / ".work").mkdir()
    found = ".work: was left by a run that was killed; run `diffaudio prepare` again, or delete it"
    assert problems(corpus) == [found]


def test_several_processes_find_what_one_finds(tmp_path):
    parts = [[clip_row(f"{index}", caption="" if index % 2 else None)] for index in range(5)]
    folder = write_clips_corpus(tmp_path / "corpus", parts)
    assert problems(folder, num_workers=2) == problems(folder) != []


def test_a_process_that_dies_is_reported_instead_of_waited_for(corpus, monkeypatch):
    monkeypatch.setattr(validation, "check_part", dies)
    with pytest.raises(ValueError, match="a process died while it checked a part; try again with --workers 1"):
        problems(corpus, num_workers=2)


def test_the_command_says_all_right_or_ends_with_1(corpus, capsys):
    assert main(["validate", str(corpus), "--workers", "1"]) == 0
    assert capsys.readouterr().out == f"{corpus}: 5 rows in 2 parts, all right\n"
    (corpus / ".work").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["validate", str(corpus), "--quick", "--workers", "1"])
    assert ended.value.code == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"{corpus}: 5 rows in 2 parts, 1 thing is wrong"


def test_a_corpus_that_is_not_finished_is_right_as_far_as_it_is(corpus, capsys):
    change_manifest(corpus, lambda manifest: manifest.update(finished=False, clips=0, seconds=0.0))
    (corpus / "dropped.csv").unlink()
    (corpus / ".work").mkdir()
    assert main(["validate", str(corpus), "--workers", "1"]) == 0
    told = "5 rows in 2 parts, all right; not finished, `diffaudio prepare` continues it"
    assert capsys.readouterr().out == f"{corpus}: {told}\n"


def test_what_is_no_corpus_is_refused_with_what_to_do(corpus, tmp_path):
    with pytest.raises(ValueError, match="nowhere: there is no such folder; name the folder of a corpus"):
        open_corpus(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"manifest.json: is a file; name the folder"):
        open_corpus(corpus / "manifest.json")
    with pytest.raises(
        ValueError, match="is no corpus, manifest.json is missing; to look at media files, make a corpus"
    ):
        open_corpus(tmp_path)
    change_manifest(corpus, lambda manifest: manifest.update(format="diffaudio-synthetic"))
    with pytest.raises(ValueError, match="is of format 'diffaudio-synthetic'; name a corpus that `diffaudio prepare`"):
        open_corpus(corpus)
    (corpus / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"manifest.json: is damaged; run the command that made the corpus again"):
        open_corpus(corpus)


def test_options_without_effect_are_refused(tmp_path, capsys):
    folder = write_latents_corpus(tmp_path / "latents", [[latent_row("a")]])
    assert main(["validate", str(folder), "--quick"]) == 2
    assert "--quick has no effect on a corpus of latents" in capsys.readouterr().err


def test_checking_clips_does_not_load_torch(corpus):
    program = "import sys; from diffaudio.cli.main import main; sys.exit(main(sys.argv[1:]) or 'torch' in sys.modules)"
    command = [sys.executable, "-c", program, "validate", str(corpus), "--workers", "1"]
    assert subprocess.run(command, env=os.environ, capture_output=True, timeout=120).returncode == 0
