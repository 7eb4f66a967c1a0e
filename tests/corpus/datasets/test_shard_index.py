"""Where values lie in the mapped parts of an encoded corpus."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from diffaudio.corpus import latent_shards
from diffaudio.corpus.datasets import shard_index
from diffaudio.corpus.datasets.shard_index import MappedParts, index_part

CHANNELS, DIM = 3, 5
FRAMES, PICTURES = (7, 1, 300, 2, 11), (1, 3, 2, 1, 4)


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(0)
    return [
        {
            "id": str(number),
            "source": f"{number // 2}.mp4",
            "copy": number % 2,
            "num_latent_frames": frames,
            "num_pictures": pictures,
            "latents": random.standard_normal(CHANNELS * frames).astype(np.float16),
            "embeddings": list(random.standard_normal((pictures, DIM)).astype(np.float16)),
        }
        for number, (frames, pictures) in enumerate(zip(FRAMES, PICTURES, strict=True))
    ]


@pytest.fixture
def part(rows, tmp_path):
    path = tmp_path / "latents-00000.arrow"
    latent_shards.write_part(path, rows, {}, rows_per_batch=2)
    return path


def rewrite(part, table, **options):
    with pa.ipc.new_stream(part, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=3)


def read(part):
    return pa.ipc.open_stream(part.read_bytes()).read_all()


def assert_values_lie_where_the_index_says(part, rows):
    index, values = index_part(part, CHANNELS, DIM), np.fromfile(part, np.float16)
    assert len(index.rows) == len(rows)
    for place, row in zip(index.rows, rows, strict=True):
        latents = values[place["latents"] :][: CHANNELS * place["frames"]]
        embeddings = values[place["embeddings"] :][: DIM * place["pictures"]]
        assert np.array_equal(latents, row["latents"]) and np.array_equal(embeddings, np.concatenate(row["embeddings"]))


def test_values_lie_in_the_file_where_the_index_says(part, rows):
    assert_values_lie_where_the_index_says(part, rows)
    index = index_part(part, CHANNELS, DIM, number=4)
    assert index.rows["part"].tolist() == [4] * 5 and index.rows["row"].tolist() == [0, 1, 2, 3, 4]
    assert index.rows["copy"].tolist() == [0, 1, 0, 1, 0]
    assert tuple(index.rows["frames"]) == FRAMES and tuple(index.rows["pictures"]) == PICTURES
    assert index.sources == [row["source"] for row in rows]


def test_the_index_of_a_row_takes_36_bytes(part):
    assert index_part(part, CHANNELS, DIM).rows.nbytes == 5 * 36


def test_parts_that_another_program_wrote_are_mapped_too(part, rows):
    rewrite(part, read(part).combine_chunks())
    assert_values_lie_where_the_index_says(part, rows)


def test_compressed_parts_are_refused(part):
    rewrite(part, read(part), compression="zstd")
    with pytest.raises(ValueError, match="is compressed, and so cannot be mapped into memory; encode the corpus again"):
        index_part(part, CHANNELS, DIM)


def test_a_part_without_rows_has_an_empty_index(tmp_path):
    latent_shards.write_part(tmp_path / "a.arrow", [], {})
    assert len(index_part(tmp_path / "a.arrow", CHANNELS, DIM).rows) == 0


def change(part, **columns):
    table = read(part)
    for name, content in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array(content, table.schema.field(name).type))
    rewrite(part, table)


@pytest.mark.parametrize("sizes", [(CHANNELS + 1, DIM), (CHANNELS, DIM + 1)])
def test_sizes_other_than_the_manifest_s_are_refused(part, sizes):
    with pytest.raises(ValueError, match="sizes do not agree with manifest.json; encode the corpus again"):
        index_part(part, *sizes)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"num_latent_frames": [7, 1, 301, 2, 11]}, "sizes do not agree with manifest.json"),
        ({"num_pictures": [1, 3, 2, 2, 3]}, "sizes do not agree with manifest.json"),
        ({"copy": [1, 0, 0, 0, 0]}, "holds a clip without latents, pictures or recording; encode the corpus again"),
        (
            {"num_latent_frames": [7, 1, 300, 0, 11], "latents": [[0] * (3 * n) for n in (7, 1, 300, 0, 11)]},
            "holds a clip without latents, pictures or recording",
        ),
        ({"source": ["a", None, "b", "c", "d"]}, "is damaged \\(a row lacks a value\\)"),
        ({"latents": [None, *([0] * (3 * n) for n in FRAMES[1:])]}, "is damaged \\(a row lacks a value\\)"),
        ({"latents": [[None] * 21, *([0] * (3 * n) for n in FRAMES[1:])]}, "latents or embeddings lack a value"),
    ],
)
def test_a_part_with_wrong_rows_is_refused_by_name(part, columns, message):
    change(part, **columns)
    with pytest.raises(ValueError, match=f"latents-00000.arrow: .*{message}"):
        index_part(part, CHANNELS, DIM)


def test_a_part_of_other_columns_is_refused_by_name(part):
    table = read(part)
    rewrite(part, table.drop_columns(["copy"]))
    with pytest.raises(ValueError, match="latents-00000.arrow: is damaged .*copy"):
        index_part(part, CHANNELS, DIM)
    place = table.schema.get_field_index("latents")
    rewrite(part, table.set_column(place, "latents", table["latents"].cast(pa.list_(pa.float32()))))
    with pytest.raises(ValueError, match="is damaged .column latents is of type list<item: float>"):
        index_part(part, CHANNELS, DIM)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs a list of open files")
def test_a_map_keeps_no_file_open(part):
    before = len(list(Path("/proc/self/fd").iterdir()))
    maps = [latent_shards.map_part(part) for _ in range(20)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before and len(maps) == 20


def test_only_so_many_parts_are_mapped_at_once(tmp_path, monkeypatch):
    parts, mapped, real = MappedParts(max_maps=2), [], latent_shards.map_part
    monkeypatch.setattr(shard_index, "map_part", lambda path: mapped.append(path.name) or real(path))
    for number in range(3):
        path = tmp_path / str(number)
        path.write_bytes(np.full(4, number, np.float16).tobytes() + latent_shards.END_OF_STREAM)
        parts.paths.append(path)
    for number in (0, 1, 0, 1, 2, 0, 2):
        assert parts[number][:4].tolist() == [number] * 4
    assert mapped == ["0", "1", "2", "0"] and len(parts) == 3
