"""Parquet: one field a column, read row group by row group, a few megabytes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
from pyarrow import parquet

from bigconv.sources.batches import BatchTable

LARGE_GROUP = 256 << 20  # 256 MiB: larger row groups are read through a buffer, not column by column
BUFFER_BYTES = 4 << 20  # of each column, then


@dataclass(frozen=True, eq=False)
class Parquet(BatchTable):
    """Rows of one or many Parquet files with equal schemas."""

    name: ClassVar[str] = "parquet"

    @classmethod
    def look(cls, path: str) -> tuple[Any, list[tuple[int, int]]]:
        with parquet.ParquetFile(path) as file:
            total = file.metadata.num_rows
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            if any(group.num_rows < 0 for group in groups) or sum(group.num_rows for group in groups) != total:
                raise pa.ArrowInvalid(f"its row groups don't have the {total} rows that it promises")
            return file.schema_arrow, [(group.num_rows, group.total_byte_size) for group in groups]

    def batches(self, path: str, first: int, rows: int) -> Iterator[Any]:
        large = max((group.nbytes for group in self.groups), default=0) > LARGE_GROUP
        file = parquet.ParquetFile(path, buffer_size=BUFFER_BYTES if large else 0, page_checksum_verification=True)
        wanted = [".".join(column.path) for column in self.layout.columns]
        yield from file.iter_batches(rows, list(range(first, file.metadata.num_row_groups)), wanted)
