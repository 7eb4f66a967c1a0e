"""A corpus on disk: Parquet parts, the list of what was dropped, and a manifest.

    manifest.json            format, version, settings, totals; `finished` is false until the last part is there
    clips-00000.parquet …    one row a clip (CLIP_SCHEMA), or
    latents-00000.parquet …  one row an encoded clip (LATENT_SCHEMA)
    dropped.csv              source, start_s, duration_s, reason, detail

A part is written whole or not at all, and carries in its own metadata which sources it covers and what was
dropped of them: the parts alone tell what is done, whenever the run was killed.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffaudio.files import written_whole

__all__ = [
    "CLIP_SCHEMA",
    "DROPPED_COLUMNS",
    "LATENT_SCHEMA",
    "count_rows",
    "make_folder",
    "part_files",
    "part_path",
    "read_groups",
    "read_manifest",
    "read_note",
    "write_dropped",
    "write_manifest",
    "write_part",
]

NOTE = b"diffaudio"
DROPPED_COLUMNS: list[str] = ["source", "start_s", "duration_s", "reason", "detail"]

_CLIP_ID = [("id", pa.string()), ("source", pa.string()), ("start_s", pa.float64()), ("duration_s", pa.float64())]
_FRAME = pa.struct([("time_s", pa.float64()), ("image", pa.binary())])
CLIP_SCHEMA = pa.schema(
    [
        *_CLIP_ID,
        ("caption", pa.string()),  # of the source, where one was given
        ("sample_rate", pa.int32()),
        ("audio", pa.binary()),
        ("frames", pa.list_(_FRAME)),
        ("fingerprint", pa.binary()),  # of the sound, by `duplicates.fingerprint`
        ("reason", pa.string()),  # why the clip would be dropped, where such clips are kept; else null
    ]
)
LATENT_SCHEMA = pa.schema(
    [
        *_CLIP_ID,
        ("caption", pa.string()),
        ("copy", pa.int32()),  # 0 as recorded, 1 … augmented
        ("num_latent_frames", pa.int32()),
        ("latents", pa.list_(pa.float16())),
        ("embeddings", pa.list_(pa.list_(pa.float16()))),
    ]
)
SCHEMAS = {"clips": CLIP_SCHEMA, "latents": LATENT_SCHEMA}


def make_folder(folder: Path) -> None:
    """Make the folder of a new corpus.

    Raises:
        ValueError: it is a file, or holds something already (hidden files, which a killed run leaves, aside).
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    found = next((path.name for path in folder.iterdir() if not path.name.startswith(".")), None)
    if found:
        raise ValueError(
            f"{folder}: holds {found}, but no manifest.json of a corpus; name a folder that is new or empty"
        )


def part_path(folder: Path, kind: str, index: int) -> Path:
    """`kind` is "clips" or "latents"."""
    return folder / f"{kind}-{index:05d}.parquet"


def part_files(folder: Path, kind: str) -> list[Path]:
    """The finished parts, in order."""
    return sorted(folder.glob(f"{kind}-[0-9]*.parquet"))


def write_part(
    path: Path, kind: str, rows: Iterable[dict[str, Any]], note: dict[str, Any], *, rows_per_group: int = 32
) -> None:
    """Write one part whole, holding only `rows_per_group` rows in memory.

    Args:
        kind: "clips" or "latents".
        note: kept in the file's metadata as JSON, read after the last row: the rows' generator may still add to it.
    """
    schema = SCHEMAS[kind]
    with (
        written_whole(path) as temporary,
        pq.ParquetWriter(temporary, schema, use_dictionary=False) as writer,
    ):
        group: list[dict[str, Any]] = []
        for row in rows:
            group.append(row)
            if len(group) == rows_per_group:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                group = []
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
        writer.add_key_value_metadata({NOTE: json.dumps(note, ensure_ascii=False)})


def read_note(path: Path) -> dict[str, Any]:
    """The `note` that a part was written with.

    Raises:
        ValueError: the part is damaged, or not written by `write_part`.
    """
    try:
        return json.loads(pq.read_metadata(path).metadata[NOTE])
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: is damaged; delete it and run the same command again") from error


def count_rows(path: Path) -> tuple[int, float]:
    """Number of rows of a part, and the seconds of sound in them."""
    durations = pq.read_table(path, columns=["duration_s"])["duration_s"].to_pylist()
    return len(durations), sum(durations)


def read_groups(path: Path, columns: list[str] | None = None) -> Iterator[list[dict[str, Any]]]:
    """The rows of a part, one row group in memory at a time."""
    with pq.ParquetFile(path) as file:
        for index in range(file.num_row_groups):
            yield file.read_row_group(index, columns=columns).to_pylist()


def write_dropped(folder: Path, dropped: Iterable[dict[str, Any]]) -> None:
    """Write dropped.csv, in order of source and time."""
    rows = sorted(dropped, key=lambda row: (row["source"], row["start_s"]))
    with written_whole(folder / "dropped.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, DROPPED_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json."""
    with written_whole(folder / "manifest.json") as temporary:
        temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(folder: Path, format: str, version: int) -> dict[str, Any]:
    """Read manifest.json.

    Args:
        format: "diffaudio-clips", "diffaudio-latents" or "diffaudio-synthetic".

    Raises:
        ValueError: it is missing, damaged, of another format or of a newer version.
    """
    made_by = {
        "diffaudio-clips": "diffaudio prepare",
        "diffaudio-latents": "diffaudio encode",
        "diffaudio-synthetic": "diffaudio synthesise-corpus",
    }
    path = folder / "manifest.json"
    if not path.is_file():
        raise ValueError(f"{folder}: is no corpus, manifest.json is missing; make one with `{made_by[format]}`")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        given = manifest["format"], manifest["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is damaged; make the corpus again with `{made_by[format]}`") from error
    if given[0] != format:
        hint = f"; make one with `{made_by[format]}`"
        raise ValueError(f"{folder}: is a corpus of format '{given[0]}', wanted is '{format}'{hint}")
    if given[1] > version:
        raise ValueError(f"{folder}: the corpus has version {given[1]}, this diffaudio reads {version}; update it")
    return manifest
