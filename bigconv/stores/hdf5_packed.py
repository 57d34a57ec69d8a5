"""Compressed parts of an HDF5 file: chunked datasets with the Blosc filter, and beside each a table of its chunks.

The library's own index of chunks takes a call a chunk to read, so the table tells where they are at once:
`/_bigconv/chunk_tables/<part>`, uint64 `[chunks, 2]`, first byte and number of bytes of each chunk's frame. h5py reads
such datasets once `import hdf5plugin` has given it the filter; writing and mapping do without.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bigconv import fsio
from bigconv.block import Array
from bigconv.digest import raw
from bigconv.errors import IncompleteStore
from bigconv.schema import Part, Schema
from bigconv.stores.base import Packed
from bigconv.stores.chunks import ChunkStream
from bigconv.stores.columns import Columns
from bigconv.stores.frames import Codec, blosc_filter, unpacked
from bigconv.stores.hdf5_inside import inside

TABLES = "_bigconv/chunk_tables"
CHUNK_BYTES = 16 << 10  # 16 KiB: a few rows, so that one row costs little more than itself
VALUES_BYTES = 64 << 10  # 64 KiB: of ragged values, where a row that crosses chunks is put together from pieces


class PackedColumns(Columns):
    """Parts as growing files, those of `codecs` (part name -> codec, items a chunk) as frames."""

    def __init__(
        self, path: Path, schema: Schema, codecs: Mapping[str, tuple[Codec, int]], state: Mapping[str, Any] | None
    ) -> None:
        self.codecs, self._turn = codecs, 0 if state is None else int(state["turn"])
        self._streams: dict[str, ChunkStream] = {}
        super().__init__(path, schema, 0, state)

    def checkpoint(self) -> dict[str, Any]:
        self._turn += 1
        for stream in self._streams.values():
            stream.checkpoint(self._turn)
        return {**super().checkpoint(), "turn": self._turn}

    def finish(self) -> None:
        """Put the last chunks; a single one is not filled up, as a chunk may not be larger than its dataset."""
        for stream in self._streams.values():
            stream.finish(pad=False)

    def close(self) -> None:
        super().close()
        for stream in self._streams.values():
            stream.close()

    def sizes(self, part: Part) -> Array:
        """int64 `[chunks]`: bytes of each frame."""
        return self._streams[part.name].sizes()

    def _file(self, part: Part, state: Mapping[str, Any] | None) -> fsio.AppendFile:
        if part.name not in self.codecs:
            return super()._file(part, state)
        codec, chunk = self.codecs[part.name]
        beside = self.path / part.name.replace("/", ".")
        items = 0 if state is None else self.items(part)

        def put(frames: list[bytes]) -> None:
            self.files[part.name].write(b"".join(frames))

        stream = ChunkStream(beside, codec, part.item_bytes, chunk, put, items, self._turn)
        self._streams[part.name] = stream
        return fsio.AppendFile(beside.with_name(beside.name + ".frames"), int(stream.sizes().sum()))

    def _write(self, part: str, array: Array) -> None:
        if part in self._streams:
            self._streams[part].write(len(array), np.frombuffer(raw(array), np.uint8))
        else:
            super()._write(part, array)


def lay_out(file: h5py.File, part: Part, items: int, columns: PackedColumns, links: Any) -> None:
    """Put a part's frames into a dataset of the file, and their table beside it."""
    codec, chunk = columns.codecs[part.name]
    chunk = min(chunk, items)
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((chunk, *part.shape))
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)
    number, values = blosc_filter(codec, chunk * part.item_bytes)
    # optional, as h5py says it of its filters: to make the dataset the filter itself isn't needed
    plan.set_filter(number, h5py.h5z.FLAG_OPTIONAL, values)
    kind = h5py.h5t.py_create(np.dtype(part.dtype).newbyteorder("<"), logical=True)
    space = h5py.h5s.create_simple((items, *part.shape))
    dataset = h5py.h5d.create(file.id, part.name.encode(), kind, space, plan, links)
    sizes = columns.sizes(part)
    with open(columns.files[part.name].path, "rb") as source:
        for c, size in enumerate(sizes.tolist()):
            dataset.write_direct_chunk((c * chunk, *(0 for _ in part.shape)), source.read(size))
    table = np.zeros((len(sizes), 2), "<u8")

    def found(info: Any) -> None:
        table[info.chunk_offset[0] // chunk] = (info.byte_offset, info.size)

    dataset.chunk_iter(found)
    if not np.array_equal(table[:, 1], sizes):
        raise IncompleteStore(f"{file.filename}: HDF5 has not kept all chunks of {part.name}")
    file.create_dataset(f"{TABLES}/{part.name}", data=table, track_times=False)


def place(path: Path, file: h5py.File, dataset: h5py.Dataset, part: Part, size: int) -> Packed | None:
    """Where a chunked dataset's frames lie in a file of `size` bytes; None where they aren't as `lay_out` puts them."""
    table = inside(file, f"{TABLES}/{part.name}")
    plan = dataset.id.get_create_plist()
    ours = plan.get_nfilters() == 1 and plan.get_filter(0)[0] == 32001 and dataset.chunks[1:] == part.shape
    if table is None or not ours or not part.item_bytes:
        return None
    items, chunk = int(dataset.shape[0]), int(dataset.chunks[0])
    chunks = -(-items // chunk)
    offset = table.id.get_offset()
    if offset is None or table.dtype != np.dtype("<u8") or table.shape != (chunks, 2) or offset + 16 * chunks > size:
        raise IncompleteStore(f"{path}: the table of the chunks of {part.name} doesn't fit them: damaged")
    return Packed((path,), (int(offset),), items, part.item_bytes, chunk, chunks)


class PackedArray:
    """A dataset of frames with numpy's indexing by a row or a slice: the library reads, bigconv decodes."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset, self._chunk = dataset, dataset.chunks[0]

    def __getitem__(self, key: int | slice) -> Array:
        if not isinstance(key, slice):
            one: Array = self[key : key + 1][0]
            return one
        dataset, start = self._dataset, key.start
        stop = min(key.stop, dataset.shape[0])
        found = [self._decoded(c) for c in range(start // self._chunk, -(-stop // self._chunk))]
        if not found:
            return np.empty((0, *dataset.shape[1:]), dataset.dtype)
        first = start // self._chunk * self._chunk
        rows: Array = np.concatenate(found)[start - first : stop - first]
        return rows

    def _decoded(self, number: int) -> Array:
        dataset = self._dataset
        _, frame = dataset.id.read_direct_chunk((number * self._chunk, *(0 for _ in dataset.shape[1:])))
        rows: Array = unpacked(frame).view(dataset.dtype).reshape(self._chunk, *dataset.shape[1:])
        return rows
