"""Equal runs of items out of segments, stores or records, in each of which the items lie one after another.

A run is copied from the segment that it begins in as if it lay there whole: most do, and what lies in the segments
after that one comes over it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np

from bigconv.block import Array, Index
from bigconv.errors import IncompleteStore
from bigconv.schema import Field
from bigconv.view.gather import Gathers
from bigconv.view.memory import copy_rows, copy_runs, overlay_runs
from bigconv.view.segments import Segments, split
from bigconv.view.table import StoreView

_ROWS = 1 << 18  # rows that are found at once: 2 MiB of places


class Runs(ABC):
    """Runs of the items of one field. `bounds`: int64 `[segments + 1]`, the number of each segment's first item."""

    def __init__(self, field: Field, bounds: Index) -> None:
        self._field, self._bounds = field, bounds

    def copy(self, gathers: Gathers, first: Index, count: int, rows: Index | None, out: Array | None) -> Array:
        """uint8 `[runs, count * row_bytes]`: items `first` to `first + count` of each run.

        `rows`: the row in which each lies, where none leaves it.
        """
        bounds, item, nbytes = self._bounds, self._field.row_bytes, count * self._field.row_bytes
        segment = self._segment(first, rows)
        starts = self._addresses(gathers, segment, first)
        if rows is not None:
            return copy_rows(starts, nbytes, out)
        over = first + count
        over -= bounds.take(segment + 1)  # items that lie in segments after the first
        broken = (over > 0).nonzero()[0]
        if not len(broken):
            return copy_rows(starts, nbytes, out)
        run, begin, held, after = broken, first[broken], over[broken], segment[broken] + 1
        value = bounds.take(after)
        if (held > bounds.take(after + 1) - value).any():  # some lie in more than two segments
            pieces = self._segments.of(begin + (count - 1)) + 1 - after
            run, begin = broken.repeat(pieces), begin.repeat(pieces)
            after = np.arange(len(run)) + (after + pieces - pieces.cumsum()).repeat(pieces)
            value = bounds.take(after)
            held = np.minimum(bounds.take(after + 1), begin + count) - value
        at = run * nbytes + (value - begin) * item
        source, size = self._addresses(gathers, after, value), held * item
        far = (starts > self._ends(gathers, segment) - nbytes).nonzero()[0]
        if len(far):  # where the file ends before them: nothing is copied from there, and their heads come over that
            at, source = np.append(at, far * nbytes), np.append(source, starts[far])
            size = np.append(size, (bounds.take(segment[far] + 1) - first[far]) * item)
            nothing = np.empty(nbytes, np.uint8)
            starts[far] = nothing.__array_interface__["data"][0]
        out = copy_rows(starts, nbytes, out)
        overlay_runs(out, at, source, size, item)
        return out

    @cached_property
    def _segments(self) -> Segments:
        return Segments(self._bounds)

    @abstractmethod
    def fits(self, gathers: Gathers) -> bool:
        """Whether items lie as these runs need it: a part that was fetched may have to be read in place later."""

    @abstractmethod
    def _segment(self, first: Index, rows: Index | None) -> Index:
        """int64 `[runs]`: the segment in which each run begins."""

    @abstractmethod
    def _addresses(self, gathers: Gathers, segment: Index, items: Index) -> Index:
        """int64 `[n]`, new: address of items, each in one of the segments."""

    @abstractmethod
    def _ends(self, gathers: Gathers, segment: Index) -> Index | int:
        """Address behind what may be read of the file of each segment."""


class StoreRuns(Runs):
    """Of a field whose items lie one after another in each of several stores: a store is a segment."""

    def fits(self, gathers: Gathers) -> bool:
        return gathers.straight is not None

    def _segment(self, first: Index, rows: Index | None) -> Index:
        return self._segments.of(first)

    def _addresses(self, gathers: Gathers, segment: Index, items: Index) -> Index:
        address = items - self._bounds.take(segment)
        address *= self._field.row_bytes
        assert gathers.straight is not None
        address += gathers.straight[:, 0].take(segment)
        return address

    def _ends(self, gathers: Gathers, segment: Index) -> Index:
        assert gathers.straight is not None
        ends: Index = gathers.straight.sum(1)
        return ends.take(segment)


class ChunkRuns:
    """Of a field whose items lie in chunks, all alike, in each of several stores. `bounds`: as for `StoreRuns`."""

    def __init__(self, field: Field, bounds: Index) -> None:
        self._field, self._bounds, self._segments = field, bounds, Segments(bounds)

    def fits(self, gathers: Gathers) -> bool:
        """As of `Runs`."""
        return gathers.chunked is not None

    def copy(self, gathers: Gathers, first: Index, count: int, rows: Index | None, out: Array | None) -> Array:
        """As of `Runs`."""
        assert gathers.chunked is not None
        (chunks, numbers), item = gathers.chunked, self._field.row_bytes
        shift, store = numbers - self._bounds[:-1], self._segments.of(first)
        whole = first + count <= self._bounds.take(store + 1) if rows is None else None
        first_number = first + shift.take(store)
        if whole is None or whole.all():
            return chunks.copy(first_number, count, item, out)
        out = np.empty((len(first), count * item), np.uint8) if out is None else out
        out[whole] = chunks.copy(first_number[whole], count, item)
        cut = first[~whole]  # few: where one store ends and the next begins
        _, store, start, held = split(cut, np.full(len(cut), count, np.int64), self._bounds)
        starts, nbytes = chunks.runs(start + shift.take(store), held, item, [])
        out[~whole] = copy_runs(starts, nbytes, item).reshape(len(cut), -1)
        return out


class RecordRuns(Runs):
    """Of a ragged field, all of whose stores keep it in records (LMDB values) that lie in their files as they are.

    Where each record has its items is worked out here, as places in its file, so that all processes share it.
    Raises `IncompleteStore` where a row would have items behind its file's end.
    """

    def __init__(self, view: StoreView, field: Field, records: Index, gathers: Gathers) -> None:
        super().__init__(field, records)
        self._view = view
        # int64 [rows]: byte of the file at which item 0 would begin if all items lay before the row's as its own do
        self._origins = np.empty(len(records) - 1, np.int64)
        self._needed = np.zeros(len(gathers), np.int64)  # bytes that each file must have
        for store, (gather, (base, nbytes)) in enumerate(zip(gathers, gathers.files.tolist(), strict=True)):
            assert gather is not None
            start, stop = view.starts[store : store + 2].tolist()
            for a in range(start, stop, _ROWS):
                b = min(a + _ROWS, stop)
                places = gather.row_values(np.arange(a - start, b - start), [])[0] - base
                self._origins[a:b] = places - records[a:b] * field.row_bytes
                end = int((places + np.diff(records[a : b + 1]) * field.row_bytes).max())
                if end > nbytes:
                    raise self._damaged(store)
                self._needed[store] = max(self._needed[store], end)

    def fits(self, gathers: Gathers) -> bool:
        return gathers.in_records

    def _segment(self, first: Index, rows: Index | None) -> Index:
        return self._segments.of(first) if rows is None else rows

    def _addresses(self, gathers: Gathers, segment: Index, items: Index) -> Index:
        files = gathers.files
        if gathers.held_against is not self:
            if (short := files[:, 1] < self._needed).any():  # other files than those that were looked at
                raise self._damaged(int(short.argmax()))
            gathers.held_against = self
        address = items * self._field.row_bytes
        address += self._origins.take(segment)
        address += files[0, 0] if len(files) == 1 else files[:, 0].take(self._view.whence(segment)[0])
        return address

    def _ends(self, gathers: Gathers, segment: Index) -> Index | int:
        ends = gathers.files.sum(1)
        return int(ends[0]) if len(ends) == 1 else ends.take(self._view.whence(segment)[0])

    def _damaged(self, store: int) -> IncompleteStore:
        return IncompleteStore(
            f"{self._view.paths[store]}: field {self._field.name}: a length points out of the file; "
            "run inspect --verify"
        )
