"""Shard files whose chunks are compressed: frames of any length, found by the shard's index alone.

    shard = frame | crc | frame | crc | … | index | crc         as in zarr_shards, with frames for chunks

Zarr specification 3.1, codecs `blosc` and `sharding_indexed`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bigconv import fsio
from bigconv.block import Array
from bigconv.errors import IncompleteStore
from bigconv.schema import Part
from bigconv.stores.base import Packed
from bigconv.stores.chunks import ChunkStream
from bigconv.stores.frames import Codec
from bigconv.stores.zarr_shards import CRC_BYTES, Layout, crc32c, index_of, shard_path


class PackedShardWriter:
    """The items of one part as shard files of compressed chunks."""

    def __init__(
        self, array: Path, part: Part, layout: Layout, codec: Codec, beside: Path, items: int = 0, turn: int = 0
    ) -> None:
        """Start, or go on from checkpoint number `turn` at `items` items: what was written behind them is cut off."""
        self._array, self._part, self._layout = array, part, layout
        self._file: fsio.AppendFile | None = None
        self._unsynced: dict[Path, bool] = {}  # shard file -> whether it is new since the last checkpoint
        self._stream = ChunkStream(beside, codec, layout.item_bytes, layout.chunk_items, self._put, items, turn)
        self._shard, chunks = divmod(items // layout.chunk_items, layout.shard_chunks)
        self._held = [int(n) for n in self._stream.sizes()[self._shard * layout.shard_chunks :]]
        number = self._shard
        if chunks:
            path = shard_path(array, part, number)
            self._file = fsio.AppendFile(path, sum(self._held) + CRC_BYTES * chunks)
            self._unsynced[path] = False
            number += 1
        while items and (path := shard_path(array, part, number)).exists():
            path.unlink()
            number += 1

    @property
    def items(self) -> int:
        return self._stream.items

    def write(self, items: int, data: Array) -> None:
        """Add items: their bytes, little-endian, uint8 `[items * item_bytes]`."""
        self._stream.write(items, data)

    def checkpoint(self, turn: int) -> None:
        """Make all items durable."""
        self._stream.checkpoint(turn)
        for path, new in self._unsynced.items():
            fsio.sync_path(path)
            for above in path.relative_to(self._array).parents if new else ():
                fsio.sync_folder(self._array / above)
        self._unsynced = {} if self._file is None else {self._file.path: False}

    def finish(self) -> None:
        """Pad the last chunk with zeros, the fill value, and end the last shard."""
        self._stream.finish()
        if self._file is not None:
            self._end_shard(self._file)

    def abort(self) -> None:
        self._stream.close()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _put(self, frames: list[bytes]) -> None:
        while frames:
            file = self._shard_file()
            here = frames[: self._layout.shard_chunks - len(self._held)]
            file.write(b"".join(part for frame in here for part in (frame, crc32c(frame))))
            self._held += map(len, here)
            if len(self._held) == self._layout.shard_chunks:
                self._end_shard(file)
            frames = frames[len(here) :]

    def _shard_file(self) -> fsio.AppendFile:
        """The open shard, or the next one."""
        if self._file is None:
            path = shard_path(self._array, self._part, self._shard)
            with fsio.writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            self._file = fsio.AppendFile(path)
            self._unsynced[path] = True
        return self._file

    def _end_shard(self, file: fsio.AppendFile) -> None:
        nbytes = np.array(self._held, np.uint64) + np.uint64(CRC_BYTES)
        file.write(index_of(self._layout, nbytes))
        file.close()
        self._file, self._held = None, []
        self._shard += 1


def place(array: Path, part: Part, items: int, layout: Layout) -> Packed:
    """Where a part's compressed items lie. Raises `IncompleteStore` for a shard that has no room for its index."""
    paths, tables = [], []
    for number in range(layout.shards(items)):
        path = shard_path(array, part, number)
        try:
            table = path.stat().st_size - layout.index_bytes
        except OSError:
            raise IncompleteStore(f"{path}: missing") from None
        if table < 0:
            raise IncompleteStore(f"{path}: shorter than its index: cut short or changed")
        paths.append(path)
        tables.append(table)
    return Packed(tuple(paths), tuple(tables), items, layout.item_bytes, layout.chunk_items, layout.shard_chunks)
