from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffaudio.corpus import store
from diffaudio.corpus.datasets import mapped
from diffaudio.corpus.datasets.mapped import MappedFiles, index_part

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
    path = tmp_path / "latents-00000.parquet"
    store.write_part(path, "latents", rows, {}, rows_per_group=2)
    return path


def values(path, index):
    """Latents and embeddings of each row, flat, as the index finds them."""
    data = path.read_bytes() if index.held is None else index.held.tobytes()

    def read(first, count):
        return np.frombuffer(data, np.uint8)[first : first + 2 * count].copy().view(np.float16)

    return [
        (read(row["latents"], CHANNELS * row["frames"]), read(row["embeddings"], DIM * row["pictures"]))
        for row in index.rows
    ]


def assert_are_the_rows(found, rows):
    assert len(found) == len(rows)
    for (latents, embeddings), row in zip(found, rows, strict=True):
        assert np.array_equal(latents, row["latents"]) and np.array_equal(embeddings, np.concatenate(row["embeddings"]))


def test_values_lie_in_the_file_where_the_index_says(part, rows):
    index = index_part(part, CHANNELS, DIM, number=4)
    assert index.held is None
    assert_are_the_rows(values(part, index), rows)
    assert index.rows["part"].tolist() == [4] * 5 and index.rows["row"].tolist() == [0, 1, 2, 3, 4]
    assert index.rows["copy"].tolist() == [0, 1, 0, 1, 0]
    assert tuple(index.rows["frames"]) == FRAMES and tuple(index.rows["pictures"]) == PICTURES
    assert index.sources.to_pylist() == [row["source"] for row in rows]


def test_the_index_of_a_row_takes_36_bytes(part):
    assert index_part(part, CHANNELS, DIM).rows.nbytes == 5 * 36


@pytest.mark.parametrize(
    "layout",
    [
        {"compression": "snappy", "use_dictionary": False},
        {"compression": "none", "use_dictionary": True},
        {"compression": "none", "use_dictionary": False, "data_page_size": 64, "write_batch_size": 16},
        {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"},
        {"compression": "none", "use_dictionary": False, "write_page_checksum": True},
        {"compression": "none", "use_dictionary": False, "use_byte_stream_split": ["latents.list.element"]},
    ],
    ids=["compressed", "dictionary", "small pages", "pages of version 2", "checksums", "split bytes"],
)
def test_parts_laid_out_by_others_are_read_into_memory(part, rows, layout):
    pq.write_table(pq.read_table(part), part, **layout)
    index = index_part(part, CHANNELS, DIM)
    assert index.held is not None
    assert_are_the_rows(values(part, index), rows)


def test_parts_of_version_1_are_read(part, rows):
    pq.write_table(pq.read_table(part).drop_columns(["copy", "num_pictures", "caption"]), part)
    index = index_part(part, CHANNELS, DIM)
    assert_are_the_rows(values(part, index), rows)
    assert tuple(index.rows["pictures"]) == PICTURES and not index.rows["copy"].any()


def test_what_another_program_leaves_plain_is_mapped_too(part, rows):
    pq.write_table(pq.read_table(part), part, compression="none", use_dictionary=False)
    index = index_part(part, CHANNELS, DIM)
    assert index.held is None
    assert_are_the_rows(values(part, index), rows)


def test_a_part_without_rows_is_none(tmp_path):
    store.write_part(tmp_path / "a.parquet", "latents", [], {})
    assert len(index_part(tmp_path / "a.parquet", CHANNELS, DIM).rows) == 0


def changed(part, **columns):
    table = pq.read_table(part)
    for name, content in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array(content, table.schema.field(name).type))
    pq.write_table(table, part, compression="none", use_dictionary=False)


@pytest.mark.parametrize("sizes", [(CHANNELS + 1, DIM), (CHANNELS, DIM + 1)])
def test_sizes_other_than_the_manifest_s_are_refused(part, sizes):
    with pytest.raises(ValueError, match="sizes do not agree with manifest.json; encode the corpus again"):
        index_part(part, *sizes)


def test_a_damaged_part_is_refused_by_name(part):
    changed(part, num_latent_frames=[7, 1, 301, 2, 11])
    with pytest.raises(ValueError, match="latents-00000.parquet: sizes do not agree"):
        index_part(part, CHANNELS, DIM)
    changed(part, num_latent_frames=[7, 1, 302, 0, 11], copy=[0] * 5)
    with pytest.raises(ValueError, match="holds a clip without latents, pictures or recording; encode the corpus"):
        index_part(part, CHANNELS, DIM)
    changed(part, num_latent_frames=FRAMES, copy=[1, 0, 0, 0, 0])
    with pytest.raises(ValueError, match="holds a clip without latents, pictures or recording"):
        index_part(part, CHANNELS, DIM)
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(ValueError, match="latents-00000.parquet: is damaged; delete it and run `diffaudio encode`"):
        index_part(part, CHANNELS, DIM)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs a list of open files")
def test_a_map_keeps_no_file_open(part):
    before = len(list(Path("/proc/self/fd").iterdir()))
    maps = [mapped.map_file(part) for _ in range(20)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before and len(maps) == 20


def test_only_so_many_files_are_mapped_at_once(tmp_path, monkeypatch):
    files, maps, make = MappedFiles(most=2), [], mapped.map_file
    monkeypatch.setattr(mapped, "map_file", lambda path: maps.append(path.name) or make(path))
    for number in range(3):
        (tmp_path / str(number)).write_bytes(bytes([number] * 10))
        files.add(tmp_path / str(number))
    for number in (0, 1, 0, 1, 2, 0, 2):
        assert files[number].tolist() == [number] * 10
    assert maps == ["0", "1", "2", "0"] and len(files) == 3
