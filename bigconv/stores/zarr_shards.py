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
from bigconv.errors import IncompleteStore
from bigconv.schema import Part
from bigconv.stores.frames import Codec

Bytes = npt.NDArray[np.uint8]

CRC_BYTES = 4
INDEX_ENTRY_BYTES = 16  # two uint64
MISSING = 2**64 - 1
MOST_CHUNKS = 8192  # a shard: what the default sizes come to, an index of 128 KiB, which a store of few rows has too
VALUES_CHUNKS = 4  # ragged values: chunks this much larger, for a row that crosses chunks is copied in pieces
WRITE_BYTES = 1 << 20  # 1 MiB a write: the interleaved copy is still in the cache when the kernel takes it


@dataclass(frozen=True)
class Layout:
    """How the items of one part are cut: a function of the part and the options, never of the row count."""

    item_bytes: int
    chunk_items: int
    shard_chunks: int
    codec: Codec | None = None  # of chunks that are compressed

    @classmethod
    def of(cls, part: Part, chunk_bytes: int, shard_bytes: int, chunk: int | None = None) -> Layout:
        """`chunk`: rows a chunk, instead of as many as `chunk_bytes` hold."""
        if part.role == "values":
            chunk_bytes *= VALUES_CHUNKS
        item = max(1, part.item_bytes)
        count = chunk if chunk is not None and part.role == "rows" else max(1, chunk_bytes // item)
        return cls(part.item_bytes, count, _shard_chunks(shard_bytes, count * item))

    @classmethod
    def compressed(cls, part: Part, codec: Codec, chunk_items: int, shard_bytes: int) -> Layout:
        chunk_bytes = chunk_items * part.item_bytes
        return cls(part.item_bytes, chunk_items, _shard_chunks(shard_bytes, chunk_bytes), codec)

    @property
    def chunk_bytes(self) -> int:
        return self.chunk_items * self.item_bytes

    @property
    def chunk_stride(self) -> int:
        return self.chunk_bytes + CRC_BYTES

    @property
    def index_bytes(self) -> int:
        return self.shard_chunks * INDEX_ENTRY_BYTES + CRC_BYTES

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
        return chunks * self.chunk_stride + self.index_bytes


def _shard_chunks(shard_bytes: int, chunk_bytes: int) -> int:
    return min(MOST_CHUNKS, max(1, shard_bytes // chunk_bytes))


def shard_name(part: Part, number: int) -> str:
    """`c/<number>/0/0…`: chunk key encoding `default` with separator `/`; only axis 0 is cut."""
    return "/".join(("c", str(number), *("0" for _ in part.shape)))


def shard_path(array: Path, part: Part, number: int) -> Path:
    return array / shard_name(part, number)


class ShardWriter:
    """The items of one part as shard files, the same bytes however the items arrive.

    Files only ever grow. At a checkpoint the beginning of the chunk that isn't full yet goes to where the chunk will
    be, and only its rest is written later.
    """

    def __init__(self, array: Path, part: Part, layout: Layout, items: int = 0) -> None:
        """Start, or go on from a checkpoint at `items` items: what was written behind them is cut off."""
        self.items = items
        self._array, self._part, self._layout = array, part, layout
        self._file: fsio.AppendFile | None = None
        self._shard, self._chunks = 0, 0  # shard files finished, chunks in the open one
        self._open = np.empty(layout.chunk_bytes, np.uint8)  # the chunk that isn't full yet
        self._filled, self._written = 0, 0  # bytes of it: in all, and in the file already
        self._step = max(1, WRITE_BYTES // max(1, layout.chunk_bytes))  # chunks a write
        self._unsynced: dict[Path, bool] = {}  # shard file -> whether it is new since the last checkpoint
        if items and layout.item_bytes:
            self._reopen(items)

    def _reopen(self, items: int) -> None:
        self._shard, rest = divmod(items, self._layout.shard_items)
        self._chunks, rest = divmod(rest, self._layout.chunk_items)
        self._filled = self._written = rest * self._layout.item_bytes
        number = self._shard
        if self._chunks or self._filled:
            begin = self._chunks * self._layout.chunk_stride
            path = shard_path(self._array, self._part, number)
            self._file = fsio.AppendFile(path, begin + self._filled)
            with open(path, "rb") as file:
                file.seek(begin)
                self._open[: self._filled] = np.frombuffer(file.read(self._filled), np.uint8)
            self._unsynced[path] = False
            number += 1
        while (path := shard_path(self._array, self._part, number)).exists():
            path.unlink()
            number += 1

    def write(self, items: int, data: Bytes) -> None:
        """Add items: their bytes, little-endian, uint8 `[items * item_bytes]`."""
        self.items += items
        if self._filled:
            room = len(self._open) - self._filled
            self._keep(data[:room])
            data = data[room:]
            if self._filled < len(self._open):
                return
            self._put_open()
        if len(data):
            size = len(self._open)
            whole = len(data) // size
            self._put(data[: whole * size].reshape(whole, size))
            self._keep(data[whole * size :])

    def checkpoint(self) -> None:
        """Make all items durable."""
        if self._written < self._filled:
            self._shard_file().write(self._open[self._written : self._filled].data)
            self._written = self._filled
        for path, new in self._unsynced.items():
            fsio.sync_path(path)
            for above in path.relative_to(self._array).parents if new else ():
                fsio.sync_folder(self._array / above)
        self._unsynced = {} if self._file is None else {self._file.path: False}

    def finish(self) -> None:
        """Pad the last chunk with zeros, the fill value, and end the last shard."""
        if self._filled:
            self._open[self._filled :] = 0
            self._put_open()
        if self._file is not None:
            self._end_shard(self._file)

    def abort(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _keep(self, data: Bytes) -> None:
        self._open[self._filled : self._filled + len(data)] = data
        self._filled += len(data)

    def _put_open(self) -> None:
        """Write what the file doesn't have yet of the open chunk, which is full now."""
        file = self._shard_file()
        file.write(self._open[self._written :].data)
        file.write(crc32c(self._open))
        self._filled = self._written = 0
        self._count(file, 1)

    def _put(self, chunks: Bytes) -> None:
        """Write whole chunks, uint8 `[chunks, chunk_bytes]`, into as many shards as they take."""
        while len(chunks):
            file = self._shard_file()
            here = chunks[: self._layout.shard_chunks - self._chunks]
            if self._step == 1:  # chunks so large that a copy costs more than a second write
                for chunk in here:
                    file.write(chunk.data)
                    file.write(crc32c(chunk))
            else:
                for start in range(0, len(here), self._step):
                    file.write(_interleaved(here[start : start + self._step]))
            self._count(file, len(here))
            chunks = chunks[len(here) :]

    def _shard_file(self) -> fsio.AppendFile:
        """The open shard, or the next one."""
        if self._file is None:
            path = shard_path(self._array, self._part, self._shard)
            with fsio.writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            self._file = fsio.AppendFile(path)
            self._unsynced[path] = True
        return self._file

    def _count(self, file: fsio.AppendFile, chunks: int) -> None:
        self._chunks += chunks
        if self._chunks == self._layout.shard_chunks:
            self._end_shard(file)

    def _end_shard(self, file: fsio.AppendFile) -> None:
        file.write(index_of(self._layout, np.full(self._chunks, self._layout.chunk_stride, np.uint64)))
        file.close()
        self._file = None
        self._shard += 1
        self._chunks = 0


def index_of(layout: Layout, nbytes: npt.NDArray[np.uint64]) -> bytes:
    """The index of a shard and its CRC. `nbytes`, uint64 `[chunks]`: what each chunk takes, its CRC included."""
    index = np.full((layout.shard_chunks, 2), MISSING, "<u8")
    index[: len(nbytes), 0] = np.cumsum(nbytes) - nbytes
    index[: len(nbytes), 1] = nbytes
    raw = index.tobytes()
    return raw + crc32c(raw)


def read_items(array: Path, part: Part, layout: Layout, items: int) -> bytes:
    """The bytes of all items. Raises `IncompleteStore` where a shard isn't whole or a CRC doesn't fit its chunk."""
    found = []
    for number in range(layout.shards(items)):
        path = shard_path(array, part, number)
        try:
            raw = path.read_bytes()
        except OSError:
            raise IncompleteStore(f"{path}: missing") from None
        size = layout.shard_size(items, number)
        if len(raw) != size:
            raise IncompleteStore(f"{path}: has {len(raw)} bytes instead of {size}: cut short or changed")
        for start in range(0, size - layout.index_bytes, layout.chunk_stride):
            chunk, crc = np.split(np.frombuffer(raw, np.uint8, layout.chunk_stride, start), [layout.chunk_bytes])
            if crc32c(chunk) != crc.tobytes():
                raise IncompleteStore(f"{path}: the checksum of byte {start} and what follows is wrong: damaged")
            found.append(chunk.data)
    return b"".join(found)[: items * layout.item_bytes]


def _interleaved(chunks: Bytes) -> memoryview:
    """Chunks, each with its CRC behind it, one after another."""
    n, size = chunks.shape
    out = np.empty((n, size + CRC_BYTES), np.uint8)
    out[:, :size] = chunks
    out[:, size:] = np.fromiter(map(google_crc32c.value, chunks), "<u4", n).view(np.uint8).reshape(n, CRC_BYTES)
    return out.reshape(-1).data


def crc32c(data: Bytes | bytes) -> bytes:
    """CRC-32C, little-endian."""
    checksum: int = google_crc32c.value(data)
    return checksum.to_bytes(CRC_BYTES, "little")
