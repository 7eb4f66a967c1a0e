"""Row groups of a part of clips, bounded by bytes as well as by rows, so that long clips fit into memory."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["GROUP_BYTES", "split_row_groups"]

GROUP_BYTES = 64 << 20  # of sound and pictures in a row group, at which it ends even if it has few rows


def split_row_groups(tables: Iterable[pa.Table], rows_per_group: int) -> Iterator[list[pa.Table]]:
    """Cut tables of clips into row groups: after so many rows, or at GROUP_BYTES.

    Yields:
        The slices of tables that make up a row group.
    """
    group: list[pa.Table] = []
    num_rows = num_bytes = 0
    for table in tables:
        start = 0
        for stop, row_bytes in enumerate(_row_bytes(table), 1):
            num_rows, num_bytes = num_rows + 1, num_bytes + row_bytes
            if num_rows == rows_per_group or num_bytes >= GROUP_BYTES:
                yield [*group, table.slice(start, stop - start)]
                group, start = [], stop
                num_rows = num_bytes = 0
        group.append(table.slice(start))
    if num_rows:
        yield group


def _row_bytes(table: pa.Table) -> list[int]:
    """Bytes of sound and pictures of each row."""
    frames = table["frames"].combine_chunks()
    pictures = _num_bytes(pc.call_function("struct_field", [frames.flatten()], pc.StructFieldOptions(["image"])))
    sizes = np.bincount(pc.call_function("list_parent_indices", [frames]), pictures, table.num_rows)
    sizes += _num_bytes(table["audio"])
    return sizes.astype(np.int64).tolist()


def _num_bytes(values: Any) -> np.ndarray:
    """Of each binary value; 0 for a null."""
    return pc.fill_null(pc.call_function("binary_length", [values]), 0).to_numpy()
