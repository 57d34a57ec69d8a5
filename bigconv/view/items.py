"""The items of a field as one stream through all rows and stores, and equal runs of it gathered in one copy.

An item is a row of a fixed field, or a value (a token, a frame) of a ragged one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bigconv.block import Array, Index, Ragged
from bigconv.errors import IncompleteStore, SchemaError
from bigconv.view.gather import Gathers
from bigconv.view.memory import copy_rows, copy_runs
from bigconv.view.runs import ChunkRuns, RecordRuns, Runs, StoreRuns
from bigconv.view.segments import split
from bigconv.view.table import StoreView
from bigconv.view.unpack import Hold

#: Gives writable uint8 `[nbytes]` to gather a field into, by its name; None where it has none.
Room = Callable[[str, int], Array | None]
_ADDRESSES = 1 << 47  # bytes a process can address
_ROWS = 1 << 18  # rows whose lengths are read at once: 2 MiB of offsets


class ItemStream:
    """Items of one field, numbered from 0 through a view.

    `records`: int64 `[rows + 1]`, the number of each row's first item, of a ragged field; it may be None where
    `serial` says that nobody needs it.
    """

    def __init__(self, view: StoreView, name: str, records: Index | None = None) -> None:
        self._view, self.field, self._records = view, view.schema[name], records
        gathers = self._gathers()
        self._mapped = all(gather is not None for gather in gathers)
        self._runs: Runs | ChunkRuns | None = None
        if not self.field.ragged:
            self._bounds = view.starts
        elif records is None:
            self._bounds = np.cumsum([0, *(0 if gather is None else gather.items for gather in gathers)])
        else:
            self._bounds = records[view.starts]
            self._check(gathers)
            if gathers.in_records:
                self._runs = RecordRuns(view, self.field, records, gathers)
        if len(gathers) > 1 and gathers.straight is not None:
            self._runs = StoreRuns(self.field, self._bounds)
        elif len(gathers) > 1 and gathers.chunked is not None:
            self._runs = ChunkRuns(self.field, self._bounds)

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def take(
        self, first: Index, count: int, step: int = 1, rows: Index | None = None, room: Room | None = None
    ) -> Array:
        """`[runs, count, *item]`: items `first`, `first + step`, … of each run, in writable memory of their own.

        The caller has checked that they are there. `rows`: int64 `[runs]`, the row in which each run lies, where that
        is known and no run leaves its row. `room`: memory to use, if it has some to give.
        """
        f, shape = self.field, (len(first), count, *self.field.item_shape)
        if step > 1:
            rows = None if rows is None else rows.repeat(count)
            return self.take(spread(first, count, step), 1, 1, rows, room).reshape(shape)
        if f.row_bytes == 0 or len(first) == 0:
            return np.empty(shape, f.stored)
        size = count * f.row_bytes
        memory = None if room is None else room(f.name, len(first) * size)
        out = None if memory is None else memory.reshape(len(first), size)
        if not f.ragged and (count == 1 or not self._mapped):
            out = None if out is None else out.reshape(-1, f.row_bytes)
            taken = self._view.take_field(f.name, spread(first, count, 1), out)
            assert not isinstance(taken, Ragged)
            return taken.reshape(shape)
        gathers = self._gathers()
        if not self._mapped:
            flat = self._decoded(first, count)
            if out is not None:
                out[...] = flat.view(np.uint8).reshape(out.shape)
                flat = out
        elif len(gathers) == 1 and gathers[0] is not None and gathers[0].serial:
            flat = gathers[0].copy_items(first, count, out)
        elif self._runs is not None and self._runs.fits(gathers):
            flat = self._runs.copy(gathers, first, count, rows, out)
        else:
            flat = self._mixed(gathers, first, count, rows, out)
        return flat.view(f.stored).reshape(shape)

    def _gathers(self) -> Gathers:
        return self._view.gathers(self.field.name)

    def _mixed(self, gathers: Gathers, first: Index, count: int, rows: Index | None, out: Array | None) -> Array:
        """Runs in several stores, or in records: those within one of them first, then the pieces of the others."""
        bounds = self._bounds if self._records is None else self._records
        broken = None
        if rows is None or self._records is None:
            rows = np.searchsorted(bounds, first, side="right") - 1
            broken = first + count > bounds[rows + 1]
        if broken is None or not broken.any():
            if len(gathers) == 1:
                return self._within(gathers, 0, first, count, rows, out)
            broken = np.zeros(len(first), np.bool_)
        store = rows if self._records is None else self._view.whence(rows)[0]
        out = np.empty((len(first), count * self.field.row_bytes), np.uint8) if out is None else out
        for number in np.unique(store[~broken]).tolist():
            here = np.flatnonzero((store == number) & ~broken)
            out[here] = self._within(gathers, number, first[here], count, rows[here])
        if broken.any():
            hold = Hold()
            starts, nbytes = self._pieces(gathers, first[broken], count, hold)
            out[broken] = copy_runs(starts, nbytes, self.field.row_bytes).reshape(-1, out.shape[1])
        return out

    def _within(
        self,
        gathers: Gathers,
        store: int,
        first: Index,
        count: int,
        rows: Index,
        out: Array | None = None,
    ) -> Array:
        """Runs that lie in one store and, in a store of records, each in one row."""
        gather = gathers[store]
        assert gather is not None
        if gather.serial:
            return gather.copy_items(first - self._bounds[store], count, out)
        assert self._records is not None
        inside = first - self._records[rows]
        counts, hold = np.full(len(first), count, np.int64), Hold()
        starts, _ = gather.record_runs(rows - self._view.starts[store], inside, counts, hold)
        return copy_rows(starts, count * self.field.row_bytes, out)

    def _pieces(self, gathers: Gathers, first: Index, count: int, hold: Hold) -> tuple[Index, Index]:
        """Addresses and byte counts of the pieces of runs, in order; `hold` has to be kept until they are copied."""
        run, store, start, held = split(first, np.full(len(first), count, np.int64), self._bounds)
        found: list[tuple[Index, Index, Index]] = []
        for number in np.unique(store).tolist():
            here, gather = np.flatnonzero(store == number), gathers[number]
            assert gather is not None
            if gather.serial:
                starts, nbytes = gather.item_runs(start[here] - self._bounds[number], held[here], hold)
            else:
                assert self._records is not None
                _, row, at, n = split(start[here], held[here], self._records)
                starts, nbytes = gather.record_runs(row - self._view.starts[number], at - self._records[row], n, hold)
            # each run may come in several pieces: they are of the run that holds their last byte
            owner = np.searchsorted(np.cumsum(held[here] * self.field.row_bytes), np.cumsum(nbytes))
            found.append((run[here][owner], starts, nbytes))
        of, starts, nbytes = (np.concatenate(columns) for columns in zip(*found, strict=True))
        rank = np.argsort(of, kind="stable")
        return starts[rank], nbytes[rank]

    def _decoded(self, first: Index, count: int) -> Array:
        """Runs of a ragged field that can't be mapped: the rows they lie in are read, each once."""
        assert self._records is not None
        _, row, start, held = split(first, np.full(len(first), count, np.int64), self._records)
        rows, which = np.unique(row, return_inverse=True)
        column = self._view.take_field(self.field.name, rows)
        assert isinstance(column, Ragged)
        at = column.offsets[which] + start - self._records[row]
        items: Array = column.values[np.repeat(at - np.cumsum(held) + held, held) + np.arange(int(held.sum()))]
        return items

    def _check(self, gathers: Gathers) -> None:
        """Runs are found by counting from the first value: offsets that leave some out would shift them."""
        for gather, path, items in zip(gathers, self._view.paths, np.diff(self._bounds), strict=True):
            if gather is not None and gather.serial and gather.items != items:
                raise IncompleteStore(
                    f"{path}: field {self.field.name}: offsets count {items} values of {gather.items}; "
                    "run inspect --verify"
                )


def serial(view: StoreView, name: str) -> bool:
    """Whether items of a ragged field lie one after another in each store, so that rows needn't be counted."""
    return all(gather is not None and gather.serial for gather in view.gathers(name))


def first_items(view: StoreView, names: tuple[str, ...]) -> Index:
    """int64 `[rows + 1]`: number of each row's first item, the same in all the ragged fields named.

    Raises `SchemaError` for fields whose rows differ in length.
    """
    bounds = np.zeros(len(view) + 1, np.int64)
    for a in range(0, len(view), _ROWS):
        rows = np.arange(a, min(a + _ROWS, len(view)), dtype=np.int64)
        lengths = view.lengths(names[0], rows)
        # where rows are records, nothing has held the lengths against the file yet
        longest = int(lengths.max()) * max(1, view.schema[names[0]].row_bytes)
        if lengths.min() < 0 or longest > _ADDRESSES:
            row = int(lengths.argmin() if lengths.min() < 0 else lengths.argmax())
            raise IncompleteStore(f"row {a + row}: {names[0]} has {int(lengths[row])} items; run inspect --verify")
        for other in names[1:]:
            if len(bad := np.flatnonzero(lengths != (found := view.lengths(other, rows)))):
                row = int(bad[0])
                raise SchemaError(
                    f"row {a + row}: {names[0]} has {int(lengths[row])} items and {other} {int(found[row])}; windows "
                    "over several fields need rows of the same length"
                )
        bounds[a + 1 : a + 1 + len(rows)] = lengths
    return np.cumsum(bounds, out=bounds)


def spread(first: Index, count: int, step: int) -> Index:
    """int64 `[runs * count]`: each item of each run."""
    items: Index = (first[:, None] + np.arange(0, count * step, step)).reshape(-1)
    return items
