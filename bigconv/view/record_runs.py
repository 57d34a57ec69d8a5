"""Equal runs of items out of records (LMDB values) that lie in files as they are.

Where each record has its items is worked out once, as places in its file, so that all processes share it. A run is then
copied from the record that it begins in as if it lay there whole: most do, and what lies in the records after that one
comes over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from bigconv.block import Array, Index
from bigconv.errors import IncompleteStore
from bigconv.schema import Field
from bigconv.view.gather import FieldGather
from bigconv.view.memory import copy_rows, overlay
from bigconv.view.segments import Segments
from bigconv.view.table import StoreView

_ROWS = 1 << 18  # rows that are found at once: 2 MiB of places

Gathers = Sequence[FieldGather | None]
_Files = list[tuple[int, int]]  # of each store: address and bytes of the file that has the records


class RecordRuns:
    """Runs of the items of a ragged field, all of whose stores keep it in records.

    `records`: int64 `[rows + 1]`, the number of each row's first item. Raises `IncompleteStore` where a row would have
    items behind its file's end.
    """

    def __init__(self, view: StoreView, field: Field, records: Index, gathers: Gathers) -> None:
        self._view, self._field, self._records = view, field, records
        # int64 [rows]: byte of the file at which item 0 would begin if all items lay before the row's as its own do
        self._origins = np.empty(len(records) - 1, np.int64)
        self._needed = [0] * len(gathers)  # bytes that each file must have
        for store, (base, nbytes) in enumerate(self._files(gathers)):
            start, stop = view.starts[store : store + 2].tolist()
            for a in range(start, stop, _ROWS):
                b = min(a + _ROWS, stop)
                gather = gathers[store]
                assert gather is not None
                places = gather.row_values(np.arange(a - start, b - start), [])[0] - base
                self._origins[a:b] = places - records[a:b] * field.row_bytes
                end = int((places + np.diff(records[a : b + 1]) * field.row_bytes).max())
                if end > nbytes:
                    raise self._damaged(store)
                self._needed[store] = max(self._needed[store], end)

    def copy(self, gathers: Gathers, first: Index, count: int, rows: Index | None, out: Array | None) -> Array:
        """uint8 `[runs, count * row_bytes]`: items `first` to `first + count` of each run.

        `rows`: the row in which each lies, where none leaves it.
        """
        records, item, nbytes = self._records, self._field.row_bytes, count * self._field.row_bytes
        files = self._files(gathers)
        if rows is not None:
            return copy_rows(self._addresses(files, rows, first), nbytes, out)
        rows = self._rows.of(first)
        over = first + count
        over -= records.take(rows + 1)  # items that lie in rows after the first
        broken = (over > 0).nonzero()[0]
        starts = self._addresses(files, rows, first)
        if not len(broken):
            return copy_rows(starts, nbytes, out)
        over, row = over[broken], rows[broken] + 1
        value = records.take(row)
        held = np.minimum(records.take(row + 1) - value, over)
        at = (broken + 1) * nbytes - over * item
        rest = (held < over).nonzero()[0]
        if len(rest):  # in more than two rows: all pieces of these but their first two
            begin, behind = first[broken[rest]], row[rest]
            pieces = self._rows.of(begin + (count - 1)) - behind
            begin = begin.repeat(pieces)
            rows_after = np.arange(len(begin)) + (behind + 1 + pieces - pieces.cumsum()).repeat(pieces)
            values_after = records.take(rows_after)
            at = np.append(at, broken[rest].repeat(pieces) * nbytes + (values_after - begin) * item)
            held = np.append(held, np.minimum(records.take(rows_after + 1), begin + count) - values_after)
            row, value = np.append(row, rows_after), np.append(value, values_after)
        source, size = self._addresses(files, row, value), held * item
        far = self._far(files, rows, starts, nbytes)
        if len(far):  # where the file ends before them: nothing is copied from there, and their heads come over that
            at, source = np.append(at, far * nbytes), np.append(source, starts[far])
            size = np.append(size, (records.take(rows[far] + 1) - first[far]) * item)
            nothing = np.empty(nbytes, np.uint8)
            starts[far] = nothing.__array_interface__["data"][0]
        out = copy_rows(starts, nbytes, out)
        overlay(out, zip(at.tolist(), source.tolist(), size.tolist(), strict=True))
        return out

    @cached_property
    def _rows(self) -> Segments:
        """The row that holds an item."""
        return Segments(self._records)

    def _addresses(self, files: _Files, rows: Index, items: Index) -> Index:
        """Of items, each in one of the rows."""
        address = items * self._field.row_bytes
        address += self._origins.take(rows)
        address += files[0][0] if len(files) == 1 else np.array(files, np.int64)[self._view.whence(rows)[0], 0]
        return address

    def _far(self, files: _Files, rows: Index, starts: Index, nbytes: int) -> Index:
        """int64: which runs would end behind the file that they begin in, if they lay whole where they begin."""
        ends: Index | int = sum(files[0])
        if len(files) > 1:
            ends = np.array(files, np.int64).sum(1)[self._view.whence(rows)[0]]
        far: Index = (starts > ends - nbytes).nonzero()[0]
        return far

    def _files(self, gathers: Gathers) -> _Files:
        files = []
        for store, (gather, needed) in enumerate(zip(gathers, self._needed, strict=True)):
            assert gather is not None
            files.append(gather.file)
            if files[-1][1] < needed:  # another file than the one that was looked at
                raise self._damaged(store)
        return files

    def _damaged(self, store: int) -> IncompleteStore:
        return IncompleteStore(
            f"{self._view.paths[store]}: field {self._field.name}: a length points out of the file; "
            "run inspect --verify"
        )
