"""The gather engine: rows of any store, from where its bytes lie.

Every uncompressed store is (memory maps, byte offsets): row numbers become addresses (`bigconv.view.bound`), and one
vectorised copy brings the rows together (`bigconv.view.memory`). Compressed chunks are decoded first, and are gathered
from in the same way. Offsets that come from a file are held against the size of what they point into, so that a
damaged one is an error and never a wild read.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from bigconv.block import Array, Column, Index, Ragged
from bigconv.errors import IncompleteStore
from bigconv.schema import Field
from bigconv.stores.base import Chunked, Fetched, Location, Packed, PackedRecords, RaggedColumns, RaggedInline, Strided
from bigconv.view.bound import BoundChunked, BoundIndexed, BoundPacked, BoundRecords, BoundStrided, Items, cut
from bigconv.view.memory import Maps, copy_rows, copy_runs, shaped, take_rows
from bigconv.view.unpack import Cache, Hold, of_chunks, of_records, read_index


class FieldGather:
    """One field of one store, bound to its maps."""

    def __init__(
        self,
        field: Field,
        where: Location | RaggedColumns | RaggedInline,
        maps: Maps,
        name: str,
        cache: Cache | None = None,
    ) -> None:
        self.field, self._maps, self._name, self._where = field, maps, name, where
        self._cache = Cache() if cache is None else cache
        self._array: Array | None = None  # rows as uint8 [rows, bytes]: plain np.take is then the fastest
        self._ndim = len(field.shape)
        if isinstance(where, RaggedColumns):
            self._values = self._bind(where.values, field.row_bytes)
            self._offsets = self._bind(where.offsets, 8)
            self._shapes = None if where.shapes is None else self._bind(where.shapes, 8 * self._ndim)
        elif isinstance(where, RaggedInline):
            self._head, self._head_bytes = self._bind(where.head, where.head_bytes), where.head_bytes
        else:
            self._rows = self._bind(where, field.row_bytes)
            if isinstance(where, Strided) and where.stride == field.row_bytes and where.items and field.row_bytes:
                self._array = self._plain(where)

    def _plain(self, where: Strided) -> Array:
        flat = self._maps.view(where.path, where.items * where.stride, where.offset)
        return flat.reshape(where.items, where.stride)

    def _bind(self, where: Location, item_bytes: int) -> Items:
        if isinstance(where, Strided):
            end = where.offset + (where.items - 1) * where.stride + item_bytes
            base = self._maps.base(where.path, end) if where.items and item_bytes else 0
            return BoundStrided(where.items, base + where.offset, where.stride)
        if isinstance(where, Chunked):
            chunks = -(-where.items // where.chunk_items)
            bases = []
            for number, path in enumerate(where.paths):
                here = min(where.shard_chunks, chunks - number * where.shard_chunks)
                bases.append(self._maps.base(path, here * where.chunk_stride) if item_bytes else 0)
            adjust = BoundChunked.adjustments(np.array(bases, np.int64), where)
            return BoundChunked(where.items, where, adjust)
        if isinstance(where, Fetched):
            if not where.items:
                return BoundStrided(0, 0, 0)
            return BoundPacked(where.items, where.chunk_items, where.item_bytes, where.chunks, self._cache)
        if isinstance(where, Packed):
            if not where.items:
                return BoundStrided(0, 0, 0)
            frames = of_chunks(where, self._maps, f"{self._name}: field {self.field.name}")
            return BoundPacked(where.items, where.chunk_items, where.item_bytes, frames, self._cache)
        if not where.items:
            return BoundStrided(0, 0, 0)
        if isinstance(where, PackedRecords):
            frames = of_records(where, self._maps)
            return BoundRecords(where.items, where.delta, item_bytes, frames, self._cache)
        index = read_index(where.index, where.items)
        size = where.path.stat().st_size
        base = self._maps.base(where.path, size)
        return BoundIndexed(where.items, base, index, where.delta, size - item_bytes + 1, where.path)

    @property
    def mapped(self) -> bool:
        """Whether rows of a fixed field lie in files as they are, and have addresses that hold by themselves."""
        return not self.field.ragged and self._rows.mapped

    def addresses(self, rows: Index) -> Index:
        """int64 `[rows]`: where each row of a mapped fixed field starts."""
        return self._rows.address(rows, [])

    def take(self, rows: Index, out: Array | None = None) -> Column:
        """Rows (checked to be in range) of the field, in writable memory of their own."""
        if self.field.ragged:
            return self.take_ragged(rows)
        if self._array is not None:
            flat = take_rows(self._array, rows, out)
        elif self._rows.mapped:
            flat = copy_rows(self._rows.address(rows, []), self.field.row_bytes, out)
        else:
            flat = self._rows.copy(rows, 1, self.field.row_bytes, out)
        return shaped(flat, self.field)

    def bring(self, rows: Index) -> None:
        """Have the chunks decoded that hold rows, for who is about to take them; not if they are too many to be kept.

        Of local stores nothing is fetched.
        """
        if not self.field.ragged:
            self._bring(self._rows, rows, np.ones(len(rows), np.int64))
        elif isinstance(self._where, RaggedColumns):
            if self._shapes is not None:
                self._bring(self._shapes, rows, np.ones(len(rows), np.int64))
            self._bring(self._values, *self._first_and_counts(rows))

    def _bring(self, items: Items, first: Index, counts: Index) -> None:
        if not isinstance(items, BoundPacked):
            return
        chunks = np.unique(cut(first, counts, items.chunk_items)[0] // items.chunk_items)
        if len(chunks) * items.chunk_items * items.item_bytes <= items.cache.limit // 4:
            items.cache.decoded(items.frames, chunks, [])

    def extents(self, rows: Index) -> tuple[Index, Index]:
        """Addresses and byte counts of the mapped memory that reading these rows will touch, about."""
        if isinstance(self._where, RaggedInline):
            return self._head.extents(rows, self._where.head_bytes)
        if not self.field.ragged:
            return self._rows.extents(rows, self.field.row_bytes)
        first, counts = self._first_and_counts(rows)
        if isinstance(self._values, BoundPacked):
            return self._values.extents(cut(first, counts, self._values.chunk_items)[0], self.field.row_bytes)
        return self._values.runs(first, counts, self.field.row_bytes, [])

    @property
    def chunk_rows(self) -> int:
        """Rows that are decoded together; 1 where rows lie as they are. Of ragged rows, about."""
        if self.field.ragged:
            if isinstance(self._where, RaggedInline) or not isinstance(self._values, BoundPacked):
                return 1
            rows = max(1, self._offsets.count - 1)
            return max(1, min(rows, self._values.chunk_items * rows // max(1, self._values.count)))
        return self._rows.chunk_items if isinstance(self._rows, BoundPacked) else 1

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
        offsets = _whole(self._offsets, np.arange(start, stop + 1)).reshape(-1)
        self._check(offsets[:-1], offsets[1:])
        return offsets

    def take_ragged(self, rows: Index) -> Ragged:
        """Ragged rows, in writable memory of their own."""
        f, item = self.field, self.field.row_bytes
        shapes: Index | None = None
        hold: Hold = []
        if isinstance(self._where, RaggedInline):
            head, starts, nbytes = self._payloads(rows, self._where, hold)
            counts = nbytes // item if item else nbytes
            if self._where.shape is not None:
                at = self._where.shape
                shapes = np.ascontiguousarray(head[:, at : at + 8 * self._ndim]).view(np.int64)
        else:
            first, counts = self._first_and_counts(rows)
            if self._too_many(rows, counts):
                half = len(rows) // 2
                return Ragged.concat([self.take_ragged(rows[:half]), self.take_ragged(rows[half:])])
            starts, nbytes = self._values.runs(first, counts, item, hold)
            if self._shapes is not None:
                shapes = _whole(self._shapes, rows, self._ndim)
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        if shapes is not None and (np.prod(shapes, axis=1) != counts).any():
            raise IncompleteStore(f"{self._name}: field {f.name}: a shape doesn't fit its values; run inspect --verify")
        if item == 0:
            return Ragged(np.empty((int(offsets[-1]), *f.item_shape), f.dtype), offsets, shapes)
        flat = copy_runs(starts, nbytes, item)
        values = flat.view(f.stored).reshape(-1, *f.item_shape)
        return Ragged(values, offsets, shapes)

    def _too_many(self, rows: Index, counts: Index) -> bool:
        """Whether compressed rows touch more chunks than may be held at once."""
        if not isinstance(self._values, BoundPacked) or len(rows) < 2:
            return False
        chunks = int((counts // self._values.chunk_items + 2).sum())
        return chunks * self._values.chunk_items * self._values.item_bytes > self._values.cache.limit

    @property
    def serial(self) -> bool:
        """Whether the rows of a fixed field, or the items of a ragged one, are numbered through the whole store."""
        return not isinstance(self._where, RaggedInline)

    @property
    def items(self) -> int:
        """Items of a serial field: rows, or the values of all rows."""
        return (self._values if self.field.ragged else self._rows).count

    def item_runs(self, first: Index, counts: Index, hold: Hold) -> tuple[Index, Index]:
        """Addresses and byte counts of the pieces that hold items `first` to `first + counts` of a serial field.

        The caller has checked that they are there. Pieces come in order: joined, they are the items. `hold`: gets what
        has to be kept until they have been copied.
        """
        return (self._values if self.field.ragged else self._rows).runs(first, counts, self.field.row_bytes, hold)

    def copy_items(self, first: Index, count: int, out: Array | None = None) -> Array:
        """uint8 `[runs, count * row_bytes]`: items `first` to `first + count` of a serial field, for each run."""
        return (self._values if self.field.ragged else self._rows).copy(first, count, self.field.row_bytes, out)

    @property
    def in_records(self) -> bool:
        """Whether a ragged field lies in records that are in a file as they are, so that rows have addresses."""
        return isinstance(self._where, RaggedInline) and not isinstance(self._head, BoundRecords)

    @property
    def file(self) -> tuple[int, int]:
        """Address and bytes of the file that has the records."""
        if not isinstance(self._head, BoundIndexed):  # no rows
            return 0, 0
        return self._head.base, self._head.end + self._head_bytes - 1

    @property
    def straight(self) -> tuple[int, int] | None:
        """Address and bytes of a serial field whose items lie one after another in one file; None for any other."""
        if not self.serial:
            return None
        items = self._values if self.field.ragged else self._rows
        if not isinstance(items, BoundStrided) or (items.count and items.stride != self.field.row_bytes):
            return None
        return items.base, items.count * self.field.row_bytes

    @property
    def chunked(self) -> BoundChunked | None:
        """The items of a serial field, where they lie in chunks as they are; None for any other."""
        items = None if not self.serial else self._values if self.field.ragged else self._rows
        return items if isinstance(items, BoundChunked) else None

    def row_values(self, rows: Index, hold: Hold) -> tuple[Index, Index | int | None]:
        """Address of each row's first value, of a field in records, and where the record's file, or memory, ends.

        `hold`: as for `item_runs`. The end is None where there are no rows.
        """
        assert isinstance(self._where, RaggedInline)
        if self._where.number:
            return self._payloads(rows, self._where, hold)[1], self._heads(rows, hold)[1]
        starts, end = self._heads(rows, hold)  # no payload before this one: the heads needn't be read again
        return starts + self._where.head_bytes, end

    def record_runs(self, rows: Index, first: Index, counts: Index, hold: Hold) -> tuple[Index, Index]:
        """Addresses and byte counts of items `first` to `first + counts` in each of `rows`, of a field in records.

        The caller knows from `lengths` that they are there. `hold`: as for `item_runs`.
        """
        starts, end = self.row_values(rows, hold)
        starts = starts + first * self.field.row_bytes
        nbytes = counts * self.field.row_bytes
        self._check_inline(end, starts + nbytes, nbytes, first)
        return starts, nbytes

    def _heads(self, rows: Index, hold: Hold) -> tuple[Index, Index | int | None]:
        """Address of each row's record, and the address at which it, or what holds it, ends; None where none is."""
        if isinstance(self._head, BoundRecords):
            return self._head.bounds(rows, hold)
        end = sum(self.file) if isinstance(self._head, BoundIndexed) else None
        return self._head.address(rows, hold), end

    def _payloads(self, rows: Index, where: RaggedInline, hold: Hold) -> tuple[Array, Index, Index]:
        """Head of each row's record (uint8 `[rows, head_bytes]`), address and byte count of its payload."""
        records, end = self._heads(rows, hold)
        head = copy_rows(records, where.head_bytes)
        sizes = [_int64(head, at) for at in where.lengths]
        nbytes = sizes[where.number]
        before = sum(sizes[: where.number], np.full(len(rows), where.head_bytes, np.int64))
        starts = records + before
        self._check_inline(end, starts + nbytes, nbytes, before)
        return head, starts, nbytes

    def lengths(self, rows: Index) -> Index:
        """int64 `[rows]`: items in each row of a ragged field."""
        if isinstance(self._where, RaggedInline):
            if isinstance(self._head, BoundRecords) and len(self._where.lengths) == 1:  # told by the frames' heads
                held = self._head.frames.heads(rows)[2] - self._where.head_bytes
                return held // max(1, self.field.row_bytes)
            hold: Hold = []
            head = copy_rows(self._heads(rows, hold)[0], self._where.head_bytes)
            return _int64(head, self._where.lengths[self._where.number]) // max(1, self.field.row_bytes)
        return self._first_and_counts(rows)[1]

    def _first_and_counts(self, rows: Index) -> tuple[Index, Index]:
        if isinstance(self._offsets, BoundStrided) and self._offsets.stride == 8:  # both ends of a row lie side by side
            first, end = _whole(self._offsets, rows, 2).T
        else:
            first, end = _whole(self._offsets, rows).reshape(-1), _whole(self._offsets, rows + 1).reshape(-1)
        counts = end - first
        self._check(first, end)
        return first, counts

    def _check(self, first: Index, end: Index) -> None:
        """Offsets come from the file: one damaged byte must not become a wild address."""
        if len(first) and (first.min() < 0 or (end < first).any() or int(end.max()) > self._values.count):
            raise IncompleteStore(
                f"{self._name}: field {self.field.name}: offsets point out of the values; run inspect --verify"
            )

    def _check_inline(self, end: Index | int | None, ends: Index, nbytes: Index, before: Index) -> None:
        if end is None or not len(ends):
            return
        if nbytes.min() < 0 or before.min() < 0 or (ends > end).any():
            raise IncompleteStore(
                f"{self._name}: field {self.field.name}: a length points out of the file; run inspect --verify"
            )


class Gathers(list[FieldGather | None]):
    """How each store's rows of one field are gathered; None where a store is read through its library."""

    held_against: object = None  # who has found that the files have all that it will read

    @cached_property
    def in_records(self) -> bool:
        """Whether all stores have the field in records that are in files as they are."""
        return all(gather is not None and gather.in_records for gather in self)

    @cached_property
    def files(self) -> Index:
        """int64 `[stores, 2]`: address and bytes of the files that have the records of a field in records."""
        return np.array([(0, 0) if gather is None else gather.file for gather in self], np.int64).reshape(-1, 2)

    @cached_property
    def straight(self) -> Index | None:
        """int64 `[stores, 2]`: address and bytes of the items, where they lie one after another in each store."""
        found = [None if gather is None else gather.straight for gather in self]
        return None if None in found else np.array(found, np.int64).reshape(-1, 2)

    @cached_property
    def chunked(self) -> tuple[BoundChunked, Index] | None:
        """The chunks of all stores, where all have them alike, and the number of each store's first item in them."""
        found = [bound for gather in self if gather is not None and (bound := gather.chunked) is not None]
        return BoundChunked.joined(found) if found and len(found) == len(self) else None


def _whole(items: Items, rows: Index, numbers: int = 1) -> Index:
    """int64 `[rows, numbers]`: items that are so many int64 each."""
    hold: Hold = []  # until they are copied
    return copy_rows(items.address(rows, hold), 8 * numbers).view(np.int64).reshape(-1, numbers)


def _int64(head: Array, at: int) -> Index:
    return np.ascontiguousarray(head[:, at : at + 8]).view(np.int64).reshape(-1)
