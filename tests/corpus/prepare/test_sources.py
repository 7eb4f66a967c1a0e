"""What `diffaudio prepare` is told to look at: folders, lists, manifests, addresses."""

import csv
import itertools
import json
import os
import random
import sys
import zipfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffaudio.corpus.prepare.sources import Media, NotLookedAt, Segment, read_sources

ROWS = [
    {"path": "below/b.mkv", "start": 12.5, "end": None, "caption": "rain"},
    {"path": "a.mp4", "start": None, "end": None, "caption": None},
    {"path": "below/b.mkv", "start": 0.0, "end": 5.0, "caption": "a dog, barking"},
]
WANTED = [("a.mp4", (Segment(),)), ("below/b.mkv", (Segment(0, 5, "a dog, barking"), Segment(12.5, None, "rain")))]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def media_of(sources: list[str | Path]) -> list[Media]:
    return read_sources(sources).media


def names(*sources: str | Path) -> list[str]:
    return [media.name for media in media_of(sources)]


def write_csv(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    touch(tmp_path, "a.mp4", "below/b.mkv", "below/deeper/C.WEBM", "notes.md", ".hidden.mp4", ".trash/d.mp4")
    return tmp_path


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    for name in ("a.mp4", "below/b.mkv", "notes.md", ".trash/c.mp4"):
        files.pipe(f"/bucket/{name}", b"x")
    yield files
    files.rm("/bucket", recursive=True)


def test_a_folder_is_searched_with_everything_below_and_hidden_files_are_passed_over(folder):
    assert media_of([folder])[1] == Media("below/b.mkv", str(folder / "below/b.mkv"))
    assert names(folder) == ["a.mp4", "below/b.mkv", "below/deeper/C.WEBM"]


def test_a_file_that_is_named_may_have_any_suffix(folder):
    assert names(folder / "notes.md") == ["notes.md"]


def test_names_do_not_depend_on_the_order_of_sources_nor_on_naming_one_twice(folder):
    sources = [folder, folder / "below", folder / "a.mp4", folder / "below/b.mkv"]
    random.Random(1).shuffle(sources)
    assert media_of(sources) == media_of([folder])


def test_files_of_the_same_name_in_several_folders_stay_apart(tmp_path):
    touch(tmp_path, "one/a.mp4", "two/a.mp4")
    assert names(tmp_path / "one", tmp_path / "two") == ["one/a.mp4", "two/a.mp4"]
    assert names(tmp_path / "one") == names(tmp_path / "one" / "a.mp4") == ["a.mp4"]


def test_relative_sources_are_those_of_the_current_folder(folder, monkeypatch):
    monkeypatch.chdir(folder / "below")
    assert media_of(["../a.mp4", "deeper", "."]) == media_of([folder])


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_manifest_says_which_segments_of_which_file_are_wanted_and_what_they_are_of(folder, suffix):
    path = folder / f"list.{suffix}"
    rows = [row | {"label": "further columns are left alone"} for row in ROWS]
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps({k: v for k, v in row.items() if v is not None}) for row in rows))
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="," if suffix == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    assert [(media.name, media.segments) for media in media_of([path])] == WANTED


def test_a_file_list_has_a_path_or_an_address_a_line(folder, tmp_path_factory, memory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "c.mp4"
    elsewhere.touch()
    (folder / "list.txt").write_text(f"# what we like\n\nbelow/b.mkv\n{elsewhere}\nmemory://bucket/a.mp4\n")
    media = media_of([folder / "list.txt"])
    wanted = [str(elsewhere), str(folder / "below/b.mkv"), "memory://bucket/a.mp4"]
    assert sorted(one.path for one in media) == sorted(wanted)
    assert wanted[2] in [one.name for one in media]


def test_names_with_colons_are_those_of_files(folder):
    touch(folder, "Foo::Bar.mp4", "b:/c.mp4")
    (folder / "list.txt").write_text("Foo::Bar.mp4\nb:/c.mp4\n")
    assert names(folder / "list.txt") == ["Foo::Bar.mp4", "b:/c.mp4"]


def test_relative_paths_of_a_list_are_named_from_its_folder_however_few_there_are(folder):
    (folder / "list.lst").write_text("below/b.mkv\n")
    assert names(folder / "list.lst") == ["below/b.mkv"]
    (folder / "below/list.lst").write_text("../a.mp4\nb.mkv")
    assert names(folder / "below/list.lst") == ["a.mp4", "below/b.mkv"]


def test_a_segment_that_is_named_twice_is_taken_once(folder):
    text = "path,start,end\na.mp4,1,2\na.mp4,0,1\n./a.mp4,1.0,2.0\n"
    (media,) = media_of([write_csv(folder / "list.csv", text)])
    assert media.segments == (Segment(0, 1), Segment(1, 2))


@pytest.mark.skipif(sys.platform != "linux", reason="names are text there")
def test_a_file_whose_name_is_not_text_gets_a_name_that_is_and_that_no_other_file_has(tmp_path):
    for name in (b"caf\xe9.mp4", rb"caf\xe9.mp4", rb"caf\\xe9.mp4", b"caf\\\xe9.mp4", "café.mp4".encode()):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
            pass
    media = media_of([tmp_path])
    expected = [r"caf\xe9.mp4", r"caf\\xe9.mp4", r"caf\\\\xe9.mp4", r"caf\\\xe9.mp4", "café.mp4"]
    assert sorted(one.name for one in media) == sorted(expected)
    assert all(os.path.exists(one.path) for one in media)


def test_linked_folders_are_searched_once_and_never_in_circles(tmp_path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    touch(elsewhere, "e.mp4", "deep/f.mp4")
    touch(tmp_path, "z/a.mp4", "z/b/c.mp4")
    (tmp_path / "a_link_to_what_is_there").symlink_to(tmp_path / "z")
    (tmp_path / "z" / "circle").symlink_to(tmp_path)
    (tmp_path / "z" / "itself").symlink_to(tmp_path / "z" / "itself")
    (elsewhere / "back").symlink_to(tmp_path / "z" / "b")
    (tmp_path / "out1").symlink_to(elsewhere)
    (tmp_path / "out2").symlink_to(elsewhere)
    assert names(tmp_path) == ["out1/deep/f.mp4", "out1/e.mp4", "z/a.mp4", "z/b/c.mp4"]


def test_what_is_found_behind_links_does_not_depend_on_the_order_of_sources(tmp_path):
    touch(tmp_path, "real/a.mp4", "other/b.mp4")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    sources = [tmp_path / "link", tmp_path / "other", tmp_path / "real"]
    found = {tuple(names(*order)) for order in itertools.permutations(sources)}
    assert found == {("other/b.mp4", "real/a.mp4")}
    assert names(tmp_path / "link") == ["a.mp4"]


def test_linked_files_are_taken_where_their_target_is_not(tmp_path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    touch(elsewhere, "e.mp4", "blob-1234")
    touch(tmp_path, "a.mp4")
    for name, target in (("again.mp4", tmp_path / "a.mp4"), ("e1.mp4", elsewhere / "e.mp4")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "e2.mp4").symlink_to(elsewhere / "e.mp4")
    (tmp_path / "blob.mp4").symlink_to(elsewhere / "blob-1234")
    (tmp_path / "gone.mp4").symlink_to(elsewhere / "gone.mp4")
    assert names(tmp_path) == ["a.mp4", "blob.mp4", "e1.mp4"]
    assert read_sources([tmp_path]).not_looked_at == [NotLookedAt("gone.mp4", "a symbolic link to what is not there")]


def test_files_with_other_suffixes_are_listed_as_not_looked_at(folder, memory):
    touch(folder, "below/deeper/film.xyz", "README", ".trash/film.xyz")
    found = read_sources([folder]).not_looked_at
    assert [one.name for one in found] == ["README", "below/deeper/film.xyz", "notes.md"]
    assert {one.why for one in found} == {"its suffix is not one of a media file"}
    assert read_sources([folder, folder / "notes.md"]).not_looked_at == found[:2]
    remote = read_sources(["memory://bucket"]).not_looked_at
    assert [one.name for one in remote] == ["memory:///bucket/notes.md"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_named(folder):
    (folder / "below").chmod(0)
    try:
        (skipped,) = [one for one in read_sources([folder]).not_looked_at if one.name == "below"]
    finally:
        (folder / "below").chmod(0o755)
    assert skipped.why == "the folder cannot be listed (Permission denied)"


def test_it_is_known_which_files_of_a_list_were_there(folder):
    (folder / "list.txt").write_text("a.mp4\ngone.mp4\nnowhere/gone.mp4\nbelow/b.mkv\n")
    assert {one.name: one.existed for one in media_of([folder / "list.txt"])} == {
        "a.mp4": True,
        "below/b.mkv": True,
        "gone.mp4": False,
        "nowhere/gone.mp4": False,
    }


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("memory://bucket", ["memory:///bucket/a.mp4", "memory:///bucket/below/b.mkv"]),
        ("memory://bucket/*.mp4", ["memory:///bucket/a.mp4"]),
        ("memory://bucket/**/*.mkv", ["memory:///bucket/below/b.mkv"]),
        ("memory://bucket/notes.md", ["memory:///bucket/notes.md"]),
    ],
)
def test_an_address_is_that_of_a_file_a_folder_or_a_pattern(memory, source, found):
    assert media_of([source]) == [Media(address, address) for address in found]


def test_files_inside_an_archive_have_addresses_too(tmp_path):
    archive = tmp_path / "videos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("x/a.mp4", "x/b.txt", "c.mp4"):
            file.writestr(name, b"x")
    assert names(f"zip://::{archive}") == [f"zip://c.mp4::{archive}", f"zip://x/a.mp4::{archive}"]
    assert names(f"zip://x/*.mp4::{archive}") == [f"zip://x/a.mp4::{archive}"]


def test_relative_paths_in_a_remote_manifest_are_relative_to_its_folder(memory):
    memory.pipe("/bucket/lists/all.csv", b"path,caption\n../a.mp4,rain\n/local/b.mp4,sea\n")
    assert media_of(["memory://bucket/lists/all.csv"]) == [
        Media("b.mp4", "/local/b.mp4", (Segment(caption="sea"),)),
        Media("memory://bucket/a.mp4", "memory://bucket/a.mp4", (Segment(caption="rain"),)),
    ]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("file,start\na.mp4,0\n", r"list\.csv: column 'path' is missing, found are file, start; name the columns path"),
        ("", r"list\.csv: column 'path' is missing, found are nothing"),
        ("path,start_s\na.mp4,0\n", r"has a column 'start_s', but no 'start'; call it so, or leave it out"),
        ("path,End\na.mp4,0\n", r"has a column 'End', but no 'end'"),
        ("path,start\na.mp4,0\na.mp4\n", r"list\.csv, line 3: has 1 cells, the header 2"),
        ("path,start\na.mp4,0\n,5\n", r"list\.csv, line 3: path is empty; name a file"),
        ("path,start\na.mp4,one\n", r"list\.csv, line 2: start is 'one'; it must be a number of seconds"),
        ("path,start\na.mp4,-1\n", r"list\.csv, line 2: start is -1; it must be 0 seconds or more"),
        ("path,start\na.mp4,nan\n", r"line 2: start is nan; it must be 0 seconds or more"),
        ("path,start,end\na.mp4,5,5\n", r"line 2: end is 5; it must be above start, which is 5 seconds"),
        ("path,end\na.mp4,inf\n", r"line 2: end is inf; it must be above start"),
        (
            "path,start,end\na.mp4,0,5\na.mp4,4,8\n",
            r"a\.mp4: 4 s to 8 s \(\S+list\.csv, line 3\) overlaps 0 s to 5 s \(\S+list\.csv, line 2\); name each",
        ),
        ("path,start\na.mp4,7\na.mp4,3\n", r"7 s to the end \(\S+, line 2\) overlaps 3 s to the end \(\S+, line 3\)"),
        ("path,caption\na.mp4,rain\na.mp4,sea\n", r"0 s to the end \(\S+, line 3\) has another caption than 0 s to"),
        ("path\ngone.mp4\n", r"of the first 1 files that it names none is there, such as \S+gone\.mp4; relative paths"),
        ('path\n"a.mp4\n', r"list\.csv, line 2: unexpected end of data"),
    ],
)
def test_a_row_that_is_wrong_is_named(folder, text, error):
    with pytest.raises(ValueError, match=error):
        media_of([write_csv(folder / "list.csv", text)])


def test_a_file_wanted_whole_by_a_folder_and_in_part_by_a_manifest_is_refused(folder):
    path = write_csv(folder / "list.csv", "path,start\na.mp4,2\n")
    with pytest.raises(
        ValueError, match=rf"2 s to the end \(\S+list\.csv, line 2\) overlaps 0 s to the end \({folder}"
    ):
        media_of([folder, path])


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("a.jsonl", b'{"path": "a.mp4"}\nno json\n', r"a\.jsonl, line 2: is not JSON"),
        ("a.jsonl", b"[1]\n", r"line 1: is not an object; write one a line"),
        ("a.jsonl", b'{"path": 3}\n', r"line 1: path is 3; it must be text"),
        ("a.jsonl", rb'{"path": "a.mp4", "caption": "\ud800"}', r"line 1: caption is '\\ud800'; it must be text"),
        ("a.jsonl", b'{"path": "a.mp4", "end": "x"}\n', r"line 1: end is 'x'; it must be a number of seconds"),
        ("a.jsonl", b'{"file": "a.mp4"}\n', r"line 1: column 'path' is missing, found are file"),
        ("a.txt", b"a.mp4\nb\0.mp4\n", r"a\.txt, line 2: holds a NUL byte, which no path or text may; remove it"),
        ("a.csv", b"path\na.mp4\nb\0.mp4\n", r"a\.csv, line 3: holds a NUL byte"),
        ("a.tsv", b"path\tcaption\na.mp4\tra\0in\n", r"a\.tsv, line 2: holds a NUL byte"),
        ("a.jsonl", rb'{"path": "a\u0000.mp4"}', r"a\.jsonl, line 1: path is 'a\\x00.mp4', which holds a NUL byte"),
        ("a.jsonl", b'{"path": "a.mp4", "x": ' + b"[" * 100_000 + b"}", r"a\.jsonl, line 1: .* nested too deeply"),
        ("a.parquet", b"no parquet", r"a\.parquet: is not a Parquet file"),
        ("a.txt", b"caf\xe9.mp4", r"a\.txt, line 1: is not text in UTF-8"),
    ],
)
def test_a_list_that_cannot_be_read_is_named(tmp_path, name, data, error):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=error):
        media_of([tmp_path / name])


def test_sources_that_are_not_there_are_named(tmp_path, memory):
    for source in (tmp_path / "nowhere", tmp_path / "nowhere.csv"):
        with pytest.raises(ValueError, match=rf"{source}: there is no such file or folder"):
            media_of([source])
    with pytest.raises(ValueError, match=r"memory://bucket/nowhere: cannot be read \(there is no such file or folder"):
        media_of(["memory://bucket/nowhere"])
    with pytest.raises(ValueError, match=r"no media files found in memory://bucket/\*\.avi; looked for \.3g2, \.3gp"):
        media_of(["memory://bucket/*.avi"])
    with pytest.raises(ValueError, match="no media files found in nothing given"):
        media_of([])


def test_a_protocol_without_its_package_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"teapot://a: cannot be read \(Protocol not known: teapot\)"):
        media_of(["teapot://a"])
    (tmp_path / "a.txt").write_text("teapot://a.mp4")
    with pytest.raises(ValueError, match=r"teapot://: cannot be read \(Protocol not known: teapot\)"):
        media_of([tmp_path / "a.txt"])
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ValueError, match=r"s3://a: a package is missing that reads such addresses \(Install s3fs"):
        media_of(["s3://a"])
