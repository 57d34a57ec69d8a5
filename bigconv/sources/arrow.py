"""Arrow IPC, files and streams (also Feather, version 2): one field a column, mapped rather than read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
from pyarrow import ipc

from bigconv.sources.batches import BatchTable


@dataclass(frozen=True, eq=False)
class ArrowIpc(BatchTable):
    """Rows of one or many Arrow files or streams with equal schemas."""

    name: ClassVar[str] = "arrow"

    @classmethod
    def look(cls, path: str) -> tuple[Any, list[tuple[int, int]]]:
        schema = _open(path).schema
        rows = [batch.num_rows for batch in _walk(path, 0, _narrowest(schema))]
        size = os.stat(path).st_size
        return schema, [(n, size * n // max(1, sum(rows))) for n in rows]

    def batches(self, path: str, first: int, rows: int) -> Iterator[Any]:
        tops = {column.path[0] for column in self.layout.columns}
        schema = _open(path).schema
        wanted = [i for i, item in enumerate(schema) if item.name in tops]
        return _walk(path, first, wanted)


def _open(path: str, wanted: list[int] | None = None) -> Any:
    """A reader of the file, or of the stream; the magic tells which (Arrow columnar format, IPC file format)."""
    source = pa.memory_map(path)
    options = ipc.IpcReadOptions(included_fields=wanted)
    if source.read_at(6, 0) == b"ARROW1":
        return ipc.open_file(source, options=options)
    return ipc.open_stream(source, options=options)


def _narrowest(schema: Any) -> list[int] | None:
    """One column to count rows by, so that compressed files needn't be decompressed for it."""
    widths = {i: item.type.bit_width for i, item in enumerate(schema) if pa.types.is_primitive(item.type)}
    return [min(widths, key=widths.__getitem__)] if widths else None


def _walk(path: str, first: int, wanted: list[int] | None = None) -> Iterator[Any]:
    """Record batches from the one numbered `first` on."""
    reader = _open(path, wanted)
    if hasattr(reader, "get_batch"):
        for i in range(first, reader.num_record_batches):
            yield reader.get_batch(i)
        return
    for i, batch in enumerate(reader):
        if i >= first:
            yield batch
