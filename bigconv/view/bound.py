"""Items of one part, bound to where they lie: item numbers become memory addresses, or copies.

Compressed items are decoded first (`bigconv.view.unpack`), and lie at addresses then, too: good as long as the list
`hold` has what they lie in. Offsets that come from a file are held against the size of what they point into.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from bigconv.block import Array, Index
from bigconv.errors import IncompleteStore
from bigconv.stores.base import Chunked, Chunks
from bigconv.view.memory import LOWEST, copy_rows, copy_runs, overlay
from bigconv.view.unpack import Cache, Frames, Hold

KEPT_CHUNKS = 1 << 16  # 512 KiB of addresses, which take three passes fewer to look up than to work out
RECORD_BYTES = 64 << 20  # 64 MiB: past this, where a record ends is not believed


@dataclass(frozen=True, eq=False)
class Items(ABC):
    """Bound items of one part: `address(i, hold)` for int64 arrays of item numbers."""

    count: int

    @property
    def mapped(self) -> bool:
        """Whether items lie in files as they are, so that addresses hold by themselves."""
        return True

    @abstractmethod
    def address(self, items: Index, hold: Hold) -> Index:
        """int64 `[n]`. What `hold` gets has to be kept until the bytes at the addresses have been copied."""

    def runs(self, first: Index, counts: Index, item_bytes: int, hold: Hold) -> tuple[Index, Index]:
        """Addresses and byte counts of the pieces that hold items `first` to `first + counts`, in order.

        One piece an item, where nothing says that they lie together.
        """
        before = np.cumsum(counts) - counts
        items = np.repeat(first - before, counts) + np.arange(int(counts.sum()), dtype=np.int64)
        return self.address(items, hold), np.full(len(items), item_bytes, np.int64)

    def extents(self, items: Index, item_bytes: int) -> tuple[Index, Index]:
        """Addresses and byte counts of the mapped memory that holds these items, about."""
        return self.address(items, []), np.full(len(items), item_bytes, np.int64)

    def copy(self, first: Index, count: int, item_bytes: int, out: Array | None = None) -> Array:
        """Items `first` to `first + count` of each run, in writable memory: uint8 `[runs, count * item_bytes]`."""
        items = (first[:, None] + np.arange(count)).reshape(-1)
        hold: Hold = []
        flat = copy_rows(self.address(items, hold), item_bytes, None if out is None else out.reshape(-1, item_bytes))
        return flat.reshape(len(first), count * item_bytes)


@dataclass(frozen=True, eq=False)
class BoundStrided(Items):
    base: int
    stride: int

    def address(self, items: Index, hold: Hold) -> Index:
        return items * self.stride + self.base

    def runs(self, first: Index, counts: Index, item_bytes: int, hold: Hold) -> tuple[Index, Index]:
        if self.stride != item_bytes:
            return super().runs(first, counts, item_bytes, hold)
        return self.address(first, hold), counts * item_bytes

    def copy(self, first: Index, count: int, item_bytes: int, out: Array | None = None) -> Array:
        if self.stride != item_bytes:
            return super().copy(first, count, item_bytes, out)
        return copy_rows(self.address(first, []), count * item_bytes, out)


@dataclass(frozen=True, eq=False)
class BoundChunked(Items):
    at: Chunked
    adjust: Index  # int64 [shards]: address of the shard less what the sum below counts for the shards before it

    @cached_property
    def _starts(self) -> Index | None:
        """int64 `[chunks]`: address of each; None where they are too many to be kept."""
        chunks = -(-self.count // self.at.chunk_items)
        if chunks > KEPT_CHUNKS:
            return None
        return self.address(np.arange(chunks) * self.at.chunk_items, [])

    @cached_property
    def gap(self) -> int:
        """Bytes between one chunk's items and those of the next."""
        return self.at.chunk_stride - self.at.chunk_items * self.at.item_bytes

    def address(self, items: Index, hold: Hold) -> Index:
        return self._address(items, items // self.at.chunk_items)

    def _address(self, items: Index, chunk: Index) -> Index:
        # the plain sum over shard, chunk and item, rearranged into the fewest passes: this is the hot path
        at = self.at
        address = items * at.item_bytes
        if self.gap:
            address += chunk * self.gap
        if len(self.adjust) == 1:
            address += self.adjust[0]
        else:
            address += self.adjust[chunk // at.shard_chunks]
        return address

    @staticmethod
    def adjustments(bases: Index, at: Chunked) -> Index:
        return bases - np.arange(len(bases), dtype=np.int64) * (at.shard_chunks * at.chunk_stride)

    @staticmethod
    def joined(stores: Sequence[BoundChunked]) -> tuple[BoundChunked, Index] | None:
        """The files of several stores as if one after another, and int64 `[stores]`: number of each one's first item.

        None where their chunks differ. The numbers between a store's last item and the next one's first have none.
        """
        first = stores[0].at
        if any(replace(s.at, paths=first.paths, items=first.items) != first for s in stores):
            return None
        shards = np.cumsum([0, *(len(s.adjust) for s in stores)])
        before = np.repeat(shards[:-1], np.diff(shards)) * (first.shard_chunks * first.chunk_stride)
        numbers = shards[:-1] * (first.shard_chunks * first.chunk_items)
        count = int(shards[-1]) * first.shard_chunks * first.chunk_items
        return BoundChunked(count, first, np.concatenate([s.adjust for s in stores]) - before), numbers

    def runs(self, first: Index, counts: Index, item_bytes: int, hold: Hold) -> tuple[Index, Index]:
        start, held = cut(first, counts, self.at.chunk_items)
        return self.address(start, hold), held * item_bytes

    def copy(self, first: Index, count: int, item_bytes: int, out: Array | None = None) -> Array:
        size, nbytes = self.at.chunk_items, count * item_bytes
        if count > size:
            starts, lengths = self.runs(first, np.full(len(first), count, np.int64), item_bytes, [])
            joined = copy_runs(starts, lengths, item_bytes).reshape(len(first), nbytes)
            return joined if out is None else _over(out, joined)
        chunk = first // size
        over = first - chunk * size
        if self._starts is None:
            address = self._address(first, chunk)
        else:
            address = over * item_bytes
            address += self._starts.take(chunk)
        broken = (over > size - count).nonzero()[0]
        if not len(broken):
            return copy_rows(address, nbytes, out)
        # few runs are broken: all are copied as if whole, and what lies in the next chunk then comes over it
        pieces, shard_chunks = [], self.at.shard_chunks
        columns = (numbers.tolist() for numbers in (broken, address[broken] - LOWEST, over[broken], chunk[broken]))
        for run, place, inside, number in zip(*columns, strict=True):
            end, n = (run + 1) * nbytes, (inside + count - size) * item_bytes
            if (number + 1) % shard_chunks:
                stop = place + nbytes + self.gap
                pieces.append((end - n, end, stop - n, stop))
            else:  # that chunk is in the next file, and this one may end: copied from before it, and then the head
                address[run] -= n
                tail = int(self.address(np.array([(number + 1) * size]), [])[0]) - LOWEST
                pieces.append((end - nbytes, end - n, place, place + nbytes - n))
                pieces.append((end - n, end, tail, tail + n))
        out = copy_rows(address, nbytes, out)
        overlay(out, pieces)
        return out


@dataclass(frozen=True, eq=False)
class BoundIndexed(Items):
    base: int
    index: Index
    delta: int
    end: int  # an item may start before this byte of the file
    path: Path

    def address(self, items: Index, hold: Hold) -> Index:
        return self._checked(self.index[items])

    def extents(self, items: Index, item_bytes: int) -> tuple[Index, Index]:
        # a record ends before the next begins, as they were written in order
        offsets = self._checked(self.index[items])
        after = self._checked(self.index[np.minimum(items + 1, self.count - 1)])
        return offsets, np.clip(after - offsets, item_bytes, RECORD_BYTES)

    def _checked(self, offsets: Index) -> Index:
        # in one pass: a negative one is huge without its sign
        if len(offsets) and int(np.maximum.reduce(offsets.view(np.uint64))) + self.delta >= self.end:
            raise IncompleteStore(f"{self.path}: the row index points out of the file")
        return offsets + (self.base + self.delta)


@dataclass(frozen=True, eq=False)
class BoundPacked(Items):
    """Items in chunks that are compressed, or have to be fetched."""

    chunk_items: int
    item_bytes: int
    frames: Chunks
    cache: Cache

    @property
    def mapped(self) -> bool:
        return False

    def address(self, items: Index, hold: Hold) -> Index:
        if not len(items):
            return items
        chunk, inside = np.divmod(items, self.chunk_items)
        present, which = np.unique(chunk, return_inverse=True)
        starts, _ = self.cache.decoded(self.frames, present, hold)
        address: Index = starts[which] + inside * self.item_bytes
        return address

    def runs(self, first: Index, counts: Index, item_bytes: int, hold: Hold) -> tuple[Index, Index]:
        start, held = cut(first, counts, self.chunk_items)
        return self.address(start, hold), held * item_bytes

    def copy(self, first: Index, count: int, item_bytes: int, out: Array | None = None) -> Array:
        # a row a chunk: nothing to be shared, so straight to where it is to be
        if count == self.chunk_items == 1 and self.frames.near:
            rows = np.empty((len(first), item_bytes), np.uint8) if out is None else out
            self.frames.decode(first, lambda i, _: rows[i])
            return rows
        chunks = 1 if count == 1 else (count - 2) // self.chunk_items + 2  # that a run can touch
        most = max(1, self.cache.limit // (self.chunk_items * item_bytes * chunks))
        if len(first) <= most:
            return self._copied(first, count, item_bytes, out)
        # too many chunks to be held at once: gathered some at a time, in the order of the chunks
        rows = np.empty((len(first), count * item_bytes), np.uint8) if out is None else out
        order = np.argsort(first, kind="stable")
        for a in range(0, len(order), most):
            some = order[a : a + most]
            rows[some] = self._copied(first[some], count, item_bytes)
        return rows

    def extents(self, items: Index, item_bytes: int) -> tuple[Index, Index]:
        start, end = self.frames.find(np.unique(items // self.chunk_items))
        there = start >= LOWEST
        return start[there], (end - start)[there]

    def _copied(self, first: Index, count: int, item_bytes: int, out: Array | None = None) -> Array:
        hold: Hold = []
        starts, nbytes = self.runs(first, np.full(len(first), count, np.int64), item_bytes, hold)
        if len(starts) == len(first):
            return copy_rows(starts, count * item_bytes, out)
        joined = copy_runs(starts, nbytes, item_bytes).reshape(len(first), count * item_bytes)
        return joined if out is None else _over(out, joined)


@dataclass(frozen=True, eq=False)
class BoundRecords(Items):
    """Items in compressed records, `delta` bytes behind each one's start."""

    delta: int
    item_bytes: int
    frames: Frames
    cache: Cache

    @property
    def mapped(self) -> bool:
        return False

    def address(self, items: Index, hold: Hold) -> Index:
        return self.bounds(items, hold)[0]

    def extents(self, items: Index, item_bytes: int) -> tuple[Index, Index]:
        start, _ = self.frames.find(items)
        after, _ = self.frames.find(np.minimum(items + 1, self.count - 1))
        there = (start >= LOWEST) & (after >= LOWEST)
        return start[there], np.clip(after - start, 1, RECORD_BYTES)[there]

    def bounds(self, items: Index, hold: Hold) -> tuple[Index, Index]:
        """Address of each item, and that behind its record."""
        if not len(items):
            return items, items
        present, which = np.unique(items, return_inverse=True)
        starts, nbytes = self.cache.decoded(self.frames, present, hold)
        if int(nbytes.min()) < self.delta + self.item_bytes:
            row = int(present[nbytes.argmin()])
            raise IncompleteStore(f"{self.frames.name}: row {row} is shorter than its fields; run inspect --verify")
        return (starts + self.delta)[which], (starts + nbytes)[which]


def cut(first: Index, counts: Index, size: int) -> tuple[Index, Index]:
    """Runs of items cut where chunks of `size` items end: first item and number of items of each piece, in order."""
    end = first + counts
    chunk = first // size
    pieces = (end - 1) // size - chunk + 1  # of an empty run one that is empty, or none
    if (pieces == 1).all():
        return first, counts
    run = np.repeat(np.arange(len(first)), pieces)
    before = np.cumsum(pieces) - pieces
    chunk = (chunk - before)[run] + np.arange(len(run))
    start = np.maximum(first[run], chunk * size)
    return start, np.minimum(end[run], (chunk + 1) * size) - start


def _over(out: Array, array: Array) -> Array:
    out[...] = array
    return out
