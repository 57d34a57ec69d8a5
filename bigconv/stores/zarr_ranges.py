"""A Zarr store behind a URL, read where it is: the chunks that hold the rows, and nothing else, by ranges of shards.

Every chunk carries a CRC-32C, which is held against what came; what doesn't fit is fetched again. Of uncompressed
parts the layout tells where a chunk lies; of compressed ones the index of its shard, fetched once and kept a while.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

import numpy as np

from bigconv.block import Array, Index
from bigconv.errors import IncompleteStore
from bigconv.remote.ranges import Range, Ranges
from bigconv.remote.urls import Url
from bigconv.schema import Part, Schema
from bigconv.stores import frames
from bigconv.stores.base import Fetched, Strided
from bigconv.stores.columns import part_items
from bigconv.stores.zarr_arrays import ZarrArrays
from bigconv.stores.zarr_documents import METADATA, read_document
from bigconv.stores.zarr_shards import CRC_BYTES, INDEX_ENTRY_BYTES, Layout, crc32c, shard_name

TRIES = 3  # of a chunk that comes damaged
INDEX_BYTES = 32 << 20  # 32 MiB of indexes of compressed shards a part and process: those of 500 shards of 64 KiB


class ZarrRanges(ZarrArrays):
    """Reads a store of which only the `zarr.json` files are here."""

    def __init__(self, path: Path, schema: Schema, rows: int, files: Mapping[str, int], at: Url) -> None:
        """`path`: folder of the `zarr.json` files; `files`: bytes of each file, as the manifest has them.

        Raises `IncompleteStore` where they don't fit schema and rows.
        """
        self._files, self._ranges = files, Ranges(at)
        super().__init__(
            at, schema, rows, {part.name: self._place(path / part.name, part, rows, at) for part in schema.parts()}
        )

    def _place(self, path: Path, part: Part, rows: int, at: Url) -> Fetched | Strided:
        items, layout = read_document(path / METADATA, part)
        if part.role != "values" and items != part_items(part, rows, 0):
            raise IncompleteStore(f"{at / part.name}: has {items} items, not the manifest's {rows} rows")
        if layout.item_bytes == 0:
            return Strided(path, 0, 0, items)  # an extent of 0: nothing lies anywhere
        chunks = RangedChunks(part, layout, items, self._files, self._ranges)
        return Fetched(chunks, items, layout.item_bytes, layout.chunk_items)

    @property
    def fetched(self) -> int:
        """Bytes that were fetched so far."""
        return self._ranges.fetched


class RangedChunks:
    """The chunks of one part, by number."""

    near = False  # worth keeping, also where each is asked for once

    def __init__(self, part: Part, layout: Layout, items: int, files: Mapping[str, int], ranges: Ranges) -> None:
        self.number = next(_numbers)
        self._part, self._layout, self._items, self._ranges = part, layout, items, ranges
        self._indexes: OrderedDict[int, Index] = OrderedDict()
        self._lock = threading.Lock()
        self._sizes = []
        for number in range(layout.shards(items)):
            size = files.get(self._shard(number), -1)
            fits = size >= layout.index_bytes if layout.codec is not None else size == layout.shard_size(items, number)
            if not fits:
                told = "is missing in the manifest" if size < 0 else f"has {size} bytes, which its rows don't fit"
                raise IncompleteStore(f"{ranges.url / self._shard(number)}: {told}")
            self._sizes.append(size)

    def find(self, numbers: Index) -> tuple[Index, Index]:
        """Where chunks lie in memory: nowhere."""
        nowhere = np.full(len(numbers), -1, np.int64)
        return nowhere, nowhere

    def decode(self, numbers: Index, into: Callable[[int, int], Array]) -> None:
        """Fetch and decode chunks, each into `into(i, nbytes)`, uint8 `[nbytes]`, for the `i`-th of `numbers`.

        Raises `IncompleteStore` for what comes damaged again and again, naming field and rows.
        """
        ranges = self._where(numbers)
        left = list(range(len(numbers)))
        for _ in range(TRIES):
            data = self._ranges.fetch([ranges[i] for i in left])
            left = self._decoded(list(zip(left, data, strict=True)), into)
            if not left:
                return
        shard = self._ranges.url / ranges[left[0]][0]
        raise IncompleteStore(f"{shard}: {self._told(int(numbers[left[0]]))}: damaged, as fetched {TRIES} times")

    def _decoded(self, data: list[tuple[int, memoryview]], into: Callable[[int, int], Array]) -> list[int]:
        """Decode what came; those that are damaged."""

        def some(bounds: tuple[int, int]) -> list[int]:
            return [i for i, raw in data[slice(*bounds)] if not self._put(raw, i, into)]

        shares = list(frames.shares(len(data), sum(len(raw) for _, raw in data)))
        return [i for bad in frames.in_threads(some, shares) for i in bad]

    def _put(self, data: memoryview, i: int, into: Callable[[int, int], Array]) -> bool:
        """Whether a chunk is whole: then it goes where it is wanted."""
        layout = self._layout
        chunk = data[:-CRC_BYTES]
        if len(data) < CRC_BYTES or crc32c(np.frombuffer(chunk, np.uint8)) != data[-CRC_BYTES:]:
            return False
        if layout.codec is None:
            into(i, layout.chunk_bytes)[:] = np.frombuffer(chunk, np.uint8)
            return True
        try:
            decoded = frames.unpacked(chunk)
        except IncompleteStore:
            return False
        if len(decoded) != layout.chunk_bytes:
            return False
        into(i, layout.chunk_bytes)[:] = decoded
        return True

    def _where(self, numbers: Index) -> list[Range]:
        """The range of each chunk, its CRC included."""
        layout = self._layout
        shard, inside = np.divmod(numbers, layout.shard_chunks)
        if layout.codec is None:
            start, nbytes = inside * layout.chunk_stride, np.full(len(numbers), layout.chunk_stride, np.int64)
        else:
            present, which = np.unique(shard, return_inverse=True)
            entries = np.concatenate([table[inside[which == n]] for n, table in enumerate(self._tables(present))])
            back = np.argsort(np.argsort(which, kind="stable"), kind="stable")
            start, nbytes = entries[back].T
            size = np.array([self._sizes[n] for n in present.tolist()], np.int64)[which] - layout.index_bytes
            # read as signed: what is past 2^63, as a missing chunk's is, has become negative
            bad = (start < 0) | (nbytes <= CRC_BYTES) | (start + nbytes > size)
            if bad.any():
                number = int(numbers[bad][0])
                name = self._ranges.url / self._shard(number // layout.shard_chunks)
                raise IncompleteStore(f"{name}: {self._told(number)}: its place in the index is damaged")
        names = {n: self._shard(n) for n in np.unique(shard).tolist()}
        bounds = zip(shard.tolist(), start.tolist(), (start + nbytes).tolist(), strict=True)
        return [(names[n], a, b) for n, a, b in bounds]

    def _tables(self, shards: Index) -> list[Index]:
        """Offset and bytes of all chunks of each shard, int64 `[shard_chunks, 2]`."""
        wanted = shards.tolist()
        with self._lock:
            found = {n: self._indexes[n] for n in wanted if n in self._indexes}
        missing = [n for n in wanted if n not in found]
        for attempt in range(1, TRIES + 1):
            if not missing:
                break
            nbytes = self._layout.index_bytes
            ranges = [(self._shard(n), self._sizes[n] - nbytes, self._sizes[n]) for n in missing]
            whole = {}
            for n, raw in zip(missing, self._ranges.fetch(ranges), strict=True):
                if crc32c(bytes(raw[:-CRC_BYTES])) == raw[-CRC_BYTES:]:
                    whole[n] = np.frombuffer(raw[:-CRC_BYTES], "<i8").astype(np.int64).reshape(-1, 2)
            missing = [n for n in missing if n not in whole]
            found |= whole
            if missing and attempt == TRIES:
                shard = self._ranges.url / self._shard(missing[0])
                raise IncompleteStore(f"{shard}: the index of the shard: damaged, as fetched {TRIES} times")
        with self._lock:
            for n in wanted:
                self._indexes[n] = found[n]
                self._indexes.move_to_end(n)
            most = max(1, INDEX_BYTES // (self._layout.shard_chunks * INDEX_ENTRY_BYTES))
            while len(self._indexes) > most:
                self._indexes.popitem(last=False)
        return [found[n] for n in wanted]

    def _shard(self, number: int) -> str:
        return f"{self._part.name}/{shard_name(self._part, number)}"

    def _told(self, chunk: int) -> str:
        first = chunk * self._layout.chunk_items
        last = min(first + self._layout.chunk_items, self._items) - 1
        what = "values" if self._part.role == "values" else "rows"
        return f"field {self._part.field}, {what} {first} to {last}"


_numbers = count(-1, -1)  # tell parts apart in a cache of decoded chunks; those of local stores count upwards
