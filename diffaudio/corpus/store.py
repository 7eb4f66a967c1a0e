"""A corpus on disk: its parts, the list of what was dropped, and a manifest.

    manifest.json            format, version, settings, totals; `finished` is false until the last part is written
    README.md                the same for a reader, and for a hub that shows data sets
    clips-00000.parquet …    one row a clip (CLIP_SCHEMA), or
    latents-00000.arrow …    one row an encoded clip (`latent_shards.LATENT_SCHEMA`)
    dropped-00000.pq …       what was left out of the sources of a part of clips (DROPPED_SCHEMA), if anything was
    dropped.csv              the same of all parts, for a spreadsheet

A part is written whole or not at all, and carries in its own metadata which sources it covers: the parts alone tell
what is done, whenever the run was killed. What was dropped is written before its part. It has a file of its own because
one source can give hundreds of thousands of rows, and Parquet reads no metadata beyond 100 MB.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffaudio.atomic_io import atomic_file
from diffaudio.corpus.row_groups import split_row_groups
from diffaudio.errors import UserError
from diffaudio.tables import write_csv

__all__ = [
    "CLIP_IDENTITY",
    "CLIP_SCHEMA",
    "DROPPED_COLUMNS",
    "DROPPED_SCHEMA",
    "FORMATS",
    "NOTE",
    "checksum",
    "count_rows",
    "dropped_path",
    "make_folder",
    "name_damage",
    "part_files",
    "part_path",
    "read_dropped",
    "read_groups",
    "read_manifest",
    "read_note",
    "read_tables",
    "write_card",
    "write_dropped",
    "write_dropped_csv",
    "write_manifest",
    "write_tables",
]

FORMATS = {"clips": ("diffaudio-clips", 3), "latents": ("diffaudio-latents", 3)}  # kind -> name and version
MADE_BY = {
    "diffaudio-clips": "diffaudio prepare",
    "diffaudio-latents": "diffaudio encode",
    "diffaudio-synthetic": "diffaudio synthesise-corpus",
}
SUFFIXES = {"clips": ".parquet", "latents": ".arrow"}
NOTE = b"diffaudio"
DROPPED_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("start_s", pa.float64()),
        ("duration_s", pa.float64()),  # null where it is not known
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
DROPPED_COLUMNS: list[str] = DROPPED_SCHEMA.names
DROPPED_ROWS = 1 << 14  # read or written at a time

CLIP_IDENTITY = [("id", pa.string()), ("source", pa.string()), ("start_s", pa.float64()), ("duration_s", pa.float64())]
_FRAME = pa.struct([("time_s", pa.float64()), ("image", pa.binary())])
CLIP_SCHEMA = pa.schema(
    [
        *CLIP_IDENTITY,
        ("caption", pa.string()),  # of the source, where one was given
        ("sample_rate", pa.int32()),
        ("audio", pa.binary()),
        ("frames", pa.list_(_FRAME)),
        ("fingerprint", pa.binary()),  # of the sound, by `duplicates.fingerprint`
        ("reason", pa.string()),  # why the clip would be dropped, where such clips are kept; else null
    ]
)


@contextmanager
def name_damage(path: Path, remedy: str = "delete it and run the command that made it again") -> Iterator[None]:
    """Turn whatever a reader raises at a damaged file into one sentence that names it.

    Errors of the disk itself (they have a number: no such file, input/output error) pass through.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        yield
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        what = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: is damaged ({what}); {remedy}") from error


def make_folder(folder: Path) -> None:
    """Make the folder of a new corpus.

    Raises:
        ValueError: it is a file, or holds something already (hidden files, which a killed run leaves, aside).
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    found = next((path.name for path in folder.iterdir() if not path.name.startswith(".")), None)
    if found:
        raise UserError(
            f"{folder}: holds {found}, but no manifest.json of a corpus; name a folder that is new or empty"
        )


def part_path(folder: Path, kind: str, index: int) -> Path:
    """`kind` is "clips" or "latents"."""
    return folder / f"{kind}-{index:05d}{SUFFIXES[kind]}"


def part_files(folder: Path, kind: str) -> list[Path]:
    """The finished parts, in order."""
    return sorted(folder.glob(f"{kind}-[0-9]*{SUFFIXES[kind]}"), key=lambda path: (len(path.name), path.name))


def checksum(path: Path) -> str:
    """Identifies a file by its content: BLAKE2b in 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def write_tables(path: Path, tables: Iterable[pa.Table], note: dict[str, Any], *, rows_per_group: int = 32) -> None:
    """Write one part of clips whole, holding only `rows_per_group` rows in memory.

    A row group ends after `rows_per_group` rows, or where it holds `row_groups.GROUP_BYTES` of sound and pictures.

    Args:
        tables: of any number of rows; the row groups of the part do not depend on how the rows are spread over them.
        note: kept in the file's metadata as JSON, read after the last table: what yields them may still add to it.
    """
    with (
        atomic_file(path) as temporary,
        pq.ParquetWriter(temporary, CLIP_SCHEMA, use_dictionary=False) as writer,
    ):
        for group in split_row_groups(tables, rows_per_group):
            writer.write_table(pa.concat_tables([CLIP_SCHEMA.empty_table(), *group]).combine_chunks())
        writer.add_key_value_metadata({NOTE: json.dumps(note, ensure_ascii=False)})


def read_note(path: Path) -> dict[str, Any]:
    """The `note` that a part of clips was written with.

    Raises:
        ValueError: the part is damaged, or not written by `write_tables`.
    """
    with name_damage(path):
        return json.loads(pq.read_metadata(path).metadata[NOTE])


def count_rows(path: Path) -> tuple[int, float]:
    """Number of usable rows of a part of clips, and the seconds of sound in them."""
    durations = [row["duration_s"] for rows in read_groups(path, ["duration_s"]) for row in rows]
    return len(durations), sum(durations)


def read_groups(
    path: Path, columns: list[str] | None = None, *, rejected: bool = False
) -> Iterator[list[dict[str, Any]]]:
    """The rows of a part of clips, one row group in memory at a time.

    Args:
        columns: to read; None reads all.
        rejected: also yield the rows that are kept although a filter rejects them; they have a `reason`.

    Raises:
        ValueError: the part is damaged.
    """
    for table in read_tables(path, columns, rejected=rejected):
        with name_damage(path):
            rows = table.to_pylist()
        yield rows


def read_tables(path: Path, columns: list[str] | None = None, *, rejected: bool = False) -> Iterator[pa.Table]:
    """Like `read_groups`, as Arrow tables."""
    with name_damage(path), pq.ParquetFile(path) as file:
        has_reasons = "reason" in file.schema_arrow.names and not rejected
        read = [*columns, "reason"] if columns is not None and has_reasons and "reason" not in columns else columns
        for index in range(file.num_row_groups):
            table = file.read_row_group(index, columns=read)
            if has_reasons:
                table = table.filter(table["reason"].is_null())
            yield table if columns is None else table.select([name for name in columns if name in table.column_names])


def dropped_path(part: Path) -> Path:
    """The file of what was dropped from the sources of a part; it is missing where nothing was.

    It is Parquet too, under another suffix, so that `*.parquet` stays the clips.
    """
    return part.with_name(f"dropped-{part.stem.partition('-')[2]}.pq")


def write_dropped(part: Path, tables: Iterable[pa.Table]) -> int:
    """Write what was dropped from the sources of a part, in order of source and time.

    Args:
        tables: of DROPPED_SCHEMA; one part's are held in memory, at about 100 bytes a row.

    Returns:
        How many rows there are. A file of an earlier attempt is removed where there are none.
    """
    path = dropped_path(part)
    rows = _sorted(pa.concat_tables([DROPPED_SCHEMA.empty_table(), *tables]))
    if rows.num_rows == 0:
        path.unlink(missing_ok=True)
        return 0
    with atomic_file(path) as temporary:
        pq.write_table(rows, temporary, row_group_size=DROPPED_ROWS)
    return rows.num_rows


def read_dropped(part: Path) -> Iterator[pa.Table]:
    """What was dropped from the sources of a part, as tables of DROPPED_SCHEMA of some thousand rows each.

    Raises:
        UserError: the part or the file beside it is damaged.
    """
    in_note = read_note(part).get("dropped")
    if isinstance(in_note, list):  # up to version 2 of the format
        yield pa.Table.from_pylist(in_note, DROPPED_SCHEMA)
        return
    path = dropped_path(part)
    if not path.is_file():
        return
    with name_damage(path, f"delete it and {part.name}, and run the same command again"), pq.ParquetFile(path) as file:
        for index in range(file.num_row_groups):
            yield file.read_row_group(index, columns=DROPPED_COLUMNS).cast(DROPPED_SCHEMA)


def write_dropped_csv(folder: Path, parts: Iterable[Path]) -> None:
    """Write dropped.csv out of what was dropped from the sources of all parts, in order of source and time."""
    tables = [table for part in parts for table in read_dropped(part)]
    rows = _sorted(pa.concat_tables([DROPPED_SCHEMA.empty_table(), *tables]))
    with atomic_file(folder / "dropped.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        batches = rows.to_batches(max_chunksize=DROPPED_ROWS)
        write_csv(file, DROPPED_COLUMNS, (row for batch in batches for row in batch.to_pylist()))


def _sorted(rows: pa.Table) -> pa.Table:
    return rows.sort_by([("source", "ascending"), ("start_s", "ascending")])


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json."""
    with atomic_file(folder / "manifest.json") as temporary:
        temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_card(folder: Path, kind: str, title: str, text: str) -> None:
    """Write README.md: what the folder holds, and where `datasets` and a hub's viewer find the rows."""
    files = f"{kind}-*{SUFFIXES[kind]}"
    head = f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {files}\n---\n"
    with atomic_file(folder / "README.md") as temporary:
        temporary.write_text(f"{head}\n# {title}\n\n{text}\n", encoding="utf-8")


def read_manifest(folder: Path, format: str, version: int) -> dict[str, Any]:
    """Read manifest.json.

    Args:
        format: "diffaudio-clips", "diffaudio-latents" or "diffaudio-synthetic".

    Raises:
        ValueError: it is missing, damaged, of another format, of a newer version, or of one that is no longer read.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(f"{folder}: is no corpus, manifest.json is missing; make one with `{MADE_BY[format]}`")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found_format, found_version = manifest["format"], manifest["version"]
        is_newer, is_unread = found_version > version, format == FORMATS["latents"][0] and found_version < 3
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged; make the corpus again with `{MADE_BY[format]}`") from error
    if found_format != format:
        hint = f"; make one with `{MADE_BY[format]}`"
        raise UserError(f"{folder}: is a corpus of format '{found_format}', wanted is '{format}'{hint}")
    if is_newer:
        raise UserError(f"{folder}: the corpus has version {found_version}, this diffaudio reads {version}; update it")
    if is_unread:
        raise UserError(
            f"{folder}: was encoded by an older diffaudio, as Parquet (version {found_version}); encoded corpora are "
            f"Arrow files now (version {version}): make it anew with `diffaudio encode CLIPS -o NEW_FOLDER`, where "
            "CLIPS is the corpus it was encoded from"
        )
    return manifest
