"""Shard files of one Zarr array, written whole: what lies where in them, and the stream that fills them.

Written here, not by zarr-python, which takes fifty times as long for chunks of one row. Source: Zarr
specification 3.1, codecs `sharding_indexed`, `bytes` and `crc32c`
(https://zarr-specs.readthedocs.io/en/latest/v3/codecs/).

    shard = chunk | crc | chunk | crc | … | index | crc         crc: CRC-32C, uint32 little-endian
    index = uint64 little-endian [shard_chunks, 2]: offset, bytes; both 2⁶⁴ - 1 where there is no chunk
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt

from bigconv import fsio
from bigconv.schema import Part

Bytes = npt.NDArray[np.uint8]

CRC_BYTES = 4
INDEX_ENTRY_BYTES = 16  # two uint64
MISSING = 2**64 - 1
VALUES_CHUNKS = 4  # ragged values: chunks this much larger, for a row that crosses chunks is copied in pieces
WRITE_BYTES = 1 << 20  # 1 MiB a write: the interleaved copy is still in the cache when the kernel takes it


@dataclass(frozen=True)
class Layout:
    """How the items of one part are cut: a function of the part and the options, never of the row count."""

    item_bytes: int
    chunk_items: int
    shard_chunks: int

    @classmethod
    def of(cls, part: Part, chunk_bytes: int, shard_bytes: int) -> Layout:
        if part.role == "values":
            chunk_bytes *= VALUES_CHUNKS
        item = max(1, part.item_bytes)
        chunk_items = max(1, chunk_bytes // item)
        return cls(part.item_bytes, chunk_items, max(1, shard_bytes // (chunk_items * item)))

    @property
    def chunk_bytes(self) -> int:
        return self.chunk_items * self.item_bytes

    @property
    def chunk_stride(self) -> int:
        return self.chunk_bytes + CRC_BYTES

    @property
    def shard_items(self) -> int:
        return self.shard_chunks * self.chunk_items

    def shards(self, items: int) -> int:
        """How many shard files `items` items take: none when an item has no bytes, as then no chunk exists."""
        return -(-items // self.shard_items) if self.item_bytes else 0

    def shard_size(self, items: int, number: int) -> int:
        """Bytes of shard file `number` of an array of `items` items."""
        here = min(self.shard_items, items - number * self.shard_items)
        chunks = -(-here // self.chunk_items)
        return chunks * self.chunk_stride + self.shard_chunks * INDEX_ENTRY_BYTES + CRC_BYTES


def shard_path(array: Path, part: Part, number: int) -> Path:
    """`c/<number>/0/0…`: chunk key encoding `default` with separator `/`; only axis 0 is cut."""
    return array.joinpath("c", str(number), *("0" for _ in part.shape))


class ShardWriter:
    """The items of one part as shard files, the same bytes however the items arrive."""

    def __init__(self, array: Path, part: Part, layout: Layout) -> None:
        self.items = 0
        self._array, self._part, self._layout = array, part, layout
        self._file: fsio.AppendFile | None = None
        self._shard, self._chunks = 0, 0  # shard files finished, chunks in the open one
        self._open = np.empty(layout.chunk_bytes, np.uint8)  # the chunk that isn't full yet
        self._filled = 0  # bytes of it
        self._step = max(1, WRITE_BYTES // max(1, layout.chunk_bytes))  # chunks a write

    def write(self, items: int, data: Bytes) -> None:
        """Add items: their bytes, little-endian, uint8 `[items * item_bytes]`."""
        self.items += items
        if self._filled:
            room = len(self._open) - self._filled
            self._keep(data[:room])
            data = data[room:]
            if self._filled < len(self._open):
                return
            self._put(self._open[np.newaxis])
            self._filled = 0
        if len(data):
            size = len(self._open)
            whole = len(data) // size
            self._put(data[: whole * size].reshape(whole, size))
            self._keep(data[whole * size :])

    def finish(self) -> None:
        """Pad the last chunk with zeros, the fill value, and end the last shard."""
        if self._filled:
            self._open[self._filled :] = 0
            self._put(self._open[np.newaxis])
            self._filled = 0
        if self._file is not None:
            self._end_shard(self._file)

    def abort(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _keep(self, data: Bytes) -> None:
        self._open[self._filled : self._filled + len(data)] = data
        self._filled += len(data)

    def _put(self, chunks: Bytes) -> None:
        """Write whole chunks, uint8 `[chunks, chunk_bytes]`, into as many shards as they take."""
        while len(chunks):
            if self._file is None:
                path = shard_path(self._array, self._part, self._shard)
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = fsio.AppendFile(path)
            here = chunks[: self._layout.shard_chunks - self._chunks]
            if self._step == 1:  # chunks so large that a copy costs more than a second write
                for chunk in here:
                    self._file.write(chunk.data)
                    self._file.write(_crc32c(chunk))
            else:
                for start in range(0, len(here), self._step):
                    self._file.write(_interleaved(here[start : start + self._step]))
            self._chunks += len(here)
            if self._chunks == self._layout.shard_chunks:
                self._end_shard(self._file)
            chunks = chunks[len(here) :]

    def _end_shard(self, file: fsio.AppendFile) -> None:
        index = np.full((self._layout.shard_chunks, 2), MISSING, "<u8")
        index[: self._chunks, 0] = np.arange(self._chunks) * self._layout.chunk_stride
        index[: self._chunks, 1] = self._layout.chunk_stride
        raw = index.tobytes()
        file.write(raw + _crc32c(raw))
        file.close()
        self._file = None
        self._shard += 1
        self._chunks = 0


def _interleaved(chunks: Bytes) -> memoryview:
    """Chunks, each with its CRC behind it, one after another."""
    n, size = chunks.shape
    out = np.empty((n, size + CRC_BYTES), np.uint8)
    out[:, :size] = chunks
    out[:, size:] = np.fromiter(map(google_crc32c.value, chunks), "<u4", n).view(np.uint8).reshape(n, CRC_BYTES)
    return out.reshape(-1).data


def _crc32c(data: Bytes | bytes) -> bytes:
    checksum: int = google_crc32c.value(data)
    return checksum.to_bytes(CRC_BYTES, "little")
