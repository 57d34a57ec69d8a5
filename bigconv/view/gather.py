"""The gather engine: rows of any mapped store, from where its bytes lie.

Every uncompressed store is (memory maps, byte offsets): row numbers become addresses, and one vectorised copy brings
the rows together (`bigconv.view.memory`). Offsets that come from a file are held against the size of what they point
into, so that a damaged one is an error and never a wild read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigconv.block import Array, Column, Index, Ragged
from bigconv.errors import IncompleteStore
from bigconv.schema import Field
from bigconv.stores.base import Chunked, Location, RaggedColumns, RaggedInline, Strided
from bigconv.view.memory import LOWEST, Maps, copy_rows, copy_runs, everywhere, shaped


@dataclass(frozen=True, eq=False)
class _Items:
    """Bound items of one part: `address(i)` for int64 arrays of item numbers."""

    count: int

    def address(self, items: Index) -> Index:
        raise NotImplementedError

    def runs(self, first: Index, counts: Index, item_bytes: int) -> tuple[Index, Index]:
        """Addresses and byte counts of the pieces that hold items `first` to `first + counts`, in order.

        One piece an item, where nothing says that they lie together.
        """
        before = np.cumsum(counts) - counts
        items = np.repeat(first - before, counts) + np.arange(int(counts.sum()), dtype=np.int64)
        return self.address(items), np.full(len(items), item_bytes, np.int64)

    def copy(self, first: Index, count: int, item_bytes: int, out: Array | None = None) -> Array:
        """Items `first` to `first + count` of each run, in writable memory: uint8 `[runs, count * item_bytes]`."""
        items = (first[:, None] + np.arange(count)).reshape(-1)
        flat = copy_rows(self.address(items), item_bytes, None if out is None else out.reshape(-1, item_bytes))
        return flat.reshape(len(first), count * item_bytes)


@dataclass(frozen=True, eq=False)
class _BoundStrided(_Items):
    base: int
    stride: int

    def address(self, items: Index) -> Index:
        return items * self.stride + self.base

    def runs(self, first: Index, counts: Index, item_bytes: int) -> tuple[Index, Index]:
        if self.stride != item_bytes:
            return super().runs(first, counts, item_bytes)
        return self.address(first), counts * item_bytes

    def copy(self, first: Index, count: int, item_bytes: int, out: Array | None = None) -> Array:
        if self.stride != item_bytes:
            return super().copy(first, count, item_bytes, out)
        return copy_rows(self.address(first), count * item_bytes, out)


@dataclass(frozen=True, eq=False)
class _BoundChunked(_Items):
    at: Chunked
    adjust: Index  # int64 [shards]: address of the shard less what the sum below counts for the shards before it

    def address(self, items: Index) -> Index:
        return self._address(items, items // self.at.chunk_items)

    def _address(self, items: Index, chunk: Index) -> Index:
        # the plain sum over shard, chunk and item, rearranged into the fewest passes: this is the hot path
        at = self.at
        address = items * at.item_bytes
        if gap := at.chunk_stride - at.chunk_items * at.item_bytes:
            address += chunk * gap
        if len(self.adjust) == 1:
            address += self.adjust[0]
        else:
            address += self.adjust[chunk // at.shard_chunks]
        return address

    @staticmethod
    def adjustments(bases: Index, at: Chunked) -> Index:
        return bases - np.arange(len(bases), dtype=np.int64) * (at.shard_chunks * at.chunk_stride)

    def runs(self, first: Index, counts: Index, item_bytes: int) -> tuple[Index, Index]:
        size = self.at.chunk_items
        pieces = np.where(counts > 0, (first + counts - 1) // size - first // size + 1, 0)
        if (pieces == 1).all():
            return self.address(first), counts * item_bytes
        run = np.repeat(np.arange(len(first)), pieces)
        number = np.arange(len(run)) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # of the piece in its run
        start = np.maximum(first[run], (first[run] // size + number) * size)
        stop = np.minimum(first[run] + counts[run], (first[run] // size + number + 1) * size)
        return self.address(start), (stop - start) * item_bytes

    def copy(self, first: Index, count: int, item_bytes: int, out: Array | None = None) -> Array:
        size, nbytes = self.at.chunk_items, count * item_bytes
        if count > size:
            starts, lengths = self.runs(first, np.full(len(first), count, np.int64), item_bytes)
            joined = copy_runs(starts, lengths, item_bytes).reshape(len(first), nbytes)
            return joined if out is None else _over(out, joined)
        chunk = first // size
        address = self._address(first, chunk)
        over = first - chunk * size
        broken = np.flatnonzero(over > size - count)
        if not len(broken):
            return copy_rows(address, nbytes, out)
        # few runs are broken: all are copied as if whole, these from inside their chunk, then the pieces over them
        over, heads = over[broken] + (count - size), address[broken]  # items that lie in the next chunk
        after = chunk[broken] + 1
        tails = self._address(after * size, after)
        address[broken] -= over * item_bytes
        out = copy_rows(address, nbytes, out)
        into, everything = out.reshape(-1).data, everywhere()
        pieces = (broken * nbytes, (count - over) * item_bytes, heads - LOWEST, tails - LOWEST)
        for at, n, head, tail in zip(*(column.tolist() for column in pieces), strict=True):
            into[at : at + n] = everything[head : head + n]
            into[at + n : at + nbytes] = everything[tail : tail + nbytes - n]
        return out


@dataclass(frozen=True, eq=False)
class _BoundIndexed(_Items):
    base: int
    index: Index
    delta: int
    end: int  # an item may start before this byte of the file
    path: Path

    def address(self, items: Index) -> Index:
        offsets = self.index[items]
        if len(offsets) and (offsets.min() < 0 or offsets.max() + self.delta >= self.end):
            raise IncompleteStore(f"{self.path}: the row index points out of the file")
        return offsets + (self.base + self.delta)


class FieldGather:
    """One field of one store, bound to its maps."""

    def __init__(self, field: Field, where: Location | RaggedColumns | RaggedInline, maps: Maps, name: str) -> None:
        self.field, self._maps, self._name, self._where = field, maps, name, where
        self._array: Array | None = None  # rows as uint8 [rows, bytes]: plain np.take is then the fastest
        self._ndim = len(field.shape)
        if isinstance(where, RaggedColumns):
            self._values = self._bind(where.values, field.row_bytes)
            self._offsets = self._bind(where.offsets, 8)
            self._shapes = None if where.shapes is None else self._bind(where.shapes, 8 * self._ndim)
        elif isinstance(where, RaggedInline):
            self._head = self._bind(where.head, where.head_bytes)
            self._end: int | None = None  # address behind the last byte of the file
            if isinstance(self._head, _BoundIndexed):
                self._end = self._head.base + self._head.end + where.head_bytes - 1
        else:
            self._rows = self._bind(where, field.row_bytes)
            if isinstance(where, Strided) and where.stride == field.row_bytes and where.items and field.row_bytes:
                self._array = self._plain(where)

    def _plain(self, where: Strided) -> Array:
        flat = self._maps.view(where.path, where.items * where.stride, where.offset)
        return flat.reshape(where.items, where.stride)

    def _bind(self, where: Location, item_bytes: int) -> _Items:
        if isinstance(where, Strided):
            end = where.offset + (where.items - 1) * where.stride + item_bytes
            base = self._maps.base(where.path, end) if where.items and item_bytes else 0
            return _BoundStrided(where.items, base + where.offset, where.stride)
        if isinstance(where, Chunked):
            chunks = -(-where.items // where.chunk_items)
            bases = []
            for number, path in enumerate(where.paths):
                here = min(where.shard_chunks, chunks - number * where.shard_chunks)
                bases.append(self._maps.base(path, here * where.chunk_stride) if item_bytes else 0)
            adjust = _BoundChunked.adjustments(np.array(bases, np.int64), where)
            return _BoundChunked(where.items, where, adjust)
        index = np.asarray(np.load(where.index, mmap_mode="r" if where.items else None, allow_pickle=False))
        if index.dtype != np.int64 or index.shape != (where.items,):
            raise IncompleteStore(f"{where.index}: expected int64 [{where.items}]")
        if not where.items:
            return _BoundStrided(0, 0, 0)
        size = where.path.stat().st_size
        base = self._maps.base(where.path, size)
        return _BoundIndexed(where.items, base, index, where.delta, size - item_bytes + 1, where.path)

    def addresses(self, rows: Index) -> Index:
        """int64 `[rows]`: where each row of a fixed field starts."""
        return self._rows.address(rows)

    def take(self, rows: Index, out: Array | None = None) -> Column:
        """Rows (checked to be in range) of the field, in writable memory of their own."""
        if self.field.ragged:
            return self.take_ragged(rows)
        if self._array is not None:
            flat: Array = np.take(self._array, rows, axis=0, out=out, mode="clip")
        else:
            flat = copy_rows(self._rows.address(rows), self.field.row_bytes, out)
        return shaped(flat, self.field)

    def run(self, start: int, stop: int) -> Column | None:
        """Rows `start` to `stop` as read-only views of the map, nothing copied; None where they don't lie together."""
        where = self._where
        if isinstance(where, RaggedColumns):
            parts = (where.values, where.offsets, where.shapes)
            if not all(p is None or isinstance(p, Strided) for p in parts):
                return None
            offsets = self._offsets_of(start, stop)
            first, last = int(offsets[0]), int(offsets[-1])
            values = self._view(where.values, first, last, self.field.dtype, self.field.item_shape)
            shapes = None
            if where.shapes is not None:
                shapes = self._view(where.shapes, start, stop, "int64", (self._ndim,))
            return Ragged(values, offsets - offsets[0], shapes)
        if self._array is None:
            return None
        return shaped(self._array[start:stop], self.field)

    def _view(self, where: Location, start: int, stop: int, dtype: str, shape: tuple[int, ...]) -> Array:
        assert isinstance(where, Strided)
        if stop <= start or where.stride == 0:
            return np.empty((stop - start, *shape), dtype)
        flat = self._maps.view(where.path, (stop - start) * where.stride, where.offset + start * where.stride)
        return flat.view(np.dtype(dtype).newbyteorder("<")).reshape(stop - start, *shape)

    def _offsets_of(self, start: int, stop: int) -> Index:
        offsets = copy_rows(self._offsets.address(np.arange(start, stop + 1)), 8).view(np.int64).reshape(-1)
        self._check(offsets[:-1], np.diff(offsets))
        return offsets

    def take_ragged(self, rows: Index) -> Ragged:
        """Ragged rows, in writable memory of their own."""
        f, item = self.field, self.field.row_bytes
        shapes: Index | None = None
        if isinstance(self._where, RaggedInline):
            head, starts, nbytes = self._payloads(rows, self._where)
            counts = nbytes // item if item else nbytes
            if self._where.shape is not None:
                at = self._where.shape
                shapes = np.ascontiguousarray(head[:, at : at + 8 * self._ndim]).view(np.int64)
        else:
            first, counts = self._first_and_counts(rows)
            starts, nbytes = self._values.runs(first, counts, item)
            if self._shapes is not None:
                shapes = copy_rows(self._shapes.address(rows), 8 * self._ndim).view(np.int64).reshape(-1, self._ndim)
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        if shapes is not None and (np.prod(shapes, axis=1) != counts).any():
            raise IncompleteStore(f"{self._name}: field {f.name}: a shape doesn't fit its values; run inspect --verify")
        if item == 0:
            return Ragged(np.empty((int(offsets[-1]), *f.item_shape), f.dtype), offsets, shapes)
        flat = copy_runs(starts, nbytes, item)
        values = flat.view(np.dtype(f.dtype).newbyteorder("<")).reshape(-1, *f.item_shape)
        return Ragged(values, offsets, shapes)

    @property
    def serial(self) -> bool:
        """Whether the rows of a fixed field, or the items of a ragged one, are numbered through the whole store."""
        return not isinstance(self._where, RaggedInline)

    @property
    def items(self) -> int:
        """Items of a serial field: rows, or the values of all rows."""
        return (self._values if self.field.ragged else self._rows).count

    def item_runs(self, first: Index, counts: Index) -> tuple[Index, Index]:
        """Addresses and byte counts of the pieces that hold items `first` to `first + counts` of a serial field.

        The caller has checked that they are there. Pieces come in order: joined, they are the items.
        """
        return (self._values if self.field.ragged else self._rows).runs(first, counts, self.field.row_bytes)

    def copy_items(self, first: Index, count: int, out: Array | None = None) -> Array:
        """uint8 `[runs, count * row_bytes]`: items `first` to `first + count` of a serial field, for each run."""
        return (self._values if self.field.ragged else self._rows).copy(first, count, self.field.row_bytes, out)

    def record_runs(self, rows: Index, first: Index, counts: Index) -> tuple[Index, Index]:
        """Addresses and byte counts of items `first` to `first + counts` in each of `rows`, of a field in records.

        The caller knows from `lengths` that they are there.
        """
        assert isinstance(self._where, RaggedInline)
        item = self.field.row_bytes
        if self._where.number == 0:  # no payload before this one: the heads needn't be read again
            starts = self._head.address(rows) + self._where.head_bytes
        else:
            starts = self._payloads(rows, self._where)[1]
        starts += first * item
        nbytes = counts * item
        self._check_inline(rows, starts + nbytes, nbytes, first)
        return starts, nbytes

    def _payloads(self, rows: Index, where: RaggedInline) -> tuple[Array, Index, Index]:
        """Head of each row's record (uint8 `[rows, head_bytes]`), address and byte count of its payload."""
        head = copy_rows(self._head.address(rows), where.head_bytes)
        sizes = [_int64(head, at) for at in where.lengths]
        nbytes = sizes[where.number]
        before = sum(sizes[: where.number], np.full(len(rows), where.head_bytes, np.int64))
        starts = self._head.address(rows) + before
        self._check_inline(rows, starts + nbytes, nbytes, before)
        return head, starts, nbytes

    def lengths(self, rows: Index) -> Index:
        """int64 `[rows]`: items in each row of a ragged field."""
        if isinstance(self._where, RaggedInline):
            head = copy_rows(self._head.address(rows), self._where.head_bytes)
            return _int64(head, self._where.lengths[self._where.number]) // max(1, self.field.row_bytes)
        return self._first_and_counts(rows)[1]

    def _first_and_counts(self, rows: Index) -> tuple[Index, Index]:
        first = copy_rows(self._offsets.address(rows), 8).view(np.int64).reshape(-1)
        counts = copy_rows(self._offsets.address(rows + 1), 8).view(np.int64).reshape(-1) - first
        self._check(first, counts)
        return first, counts

    def _check(self, first: Index, counts: Index) -> None:
        """Offsets come from the file: one damaged byte must not become a wild address."""
        if len(first) and (first.min() < 0 or counts.min() < 0 or int((first + counts).max()) > self._values.count):
            raise IncompleteStore(
                f"{self._name}: field {self.field.name}: offsets point out of the values; run inspect --verify"
            )

    def _check_inline(self, rows: Index, ends: Index, nbytes: Index, before: Index) -> None:
        if self._end is None or not len(rows):
            return
        if nbytes.min() < 0 or before.min() < 0 or int(ends.max()) > self._end:
            raise IncompleteStore(
                f"{self._name}: field {self.field.name}: a length points out of the file; run inspect --verify"
            )


def _int64(head: Array, at: int) -> Index:
    return np.ascontiguousarray(head[:, at : at + 8]).view(np.int64).reshape(-1)


def _over(out: Array, array: Array) -> Array:
    out[...] = array
    return out
