"""`StoreView`: one or many stores as one table of rows. numpy only."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, overload

import numpy as np

from bigconv import words
from bigconv.block import Array, Block, Column, Index, Ragged, cell
from bigconv.errors import SchemaError, UsageError
from bigconv.schema import Field, Schema
from bigconv.view.fetching import bring, fetch_ahead, has_come
from bigconv.view.gather import Gathers
from bigconv.view.memory import copy_rows, shaped
from bigconv.view.open_parts import OpenPart, OpenParts
from bigconv.view.opening import Opened, open_store
from bigconv.view.readahead import LOOKED_AT
from bigconv.view.row_numbers import numbers
from bigconv.view.unpack import CACHE_BYTES

FETCHED_BYTES = 256 << 20  # 256 MiB of chunks that were fetched: this batch, those that are on their way, and some
RUN_BYTES = 8 << 20  # 8 MiB a block when reading in order: past this a copy no longer gets faster


class StoreView:
    """Rows of one store, or of several one after another; a sharded directory stands for its parts.

    Holds paths and manifests; a store is mapped when the first row of it is read, in each process anew, so a view can
    be pickled and survives a fork.

    `cache_bytes`: of decoded chunks of compressed stores, which a process keeps at most.
    """

    cache_bytes = CACHE_BYTES

    def __init__(self, paths: Sequence[str | os.PathLike[str]], fields: Sequence[str] | None = None) -> None:
        self._hold([open_store(path) for path in paths], fields)

    @classmethod
    def of(cls, opened: Sequence[Opened], fields: Sequence[str] | None = None) -> StoreView:
        """A view of stores that are open already."""
        view = object.__new__(cls)
        view._hold(opened, fields)
        return view

    def _hold(self, opened: Sequence[Opened], fields: Sequence[str] | None) -> None:
        if not opened:
            raise UsageError("a view needs at least one store")
        self._roots = tuple(opened)
        first = self._roots[0].manifest.schema
        for other in self._roots[1:]:
            if other.manifest.schema != first:
                raise SchemaError(
                    f"{other.told} has other fields than {self._roots[0].told}:\n"
                    f"{_odd(other.manifest.schema, first)} instead of {_odd(first, other.manifest.schema)}"
                )
        self.schema = first if fields is None else first.select(list(fields))
        rows = [root.part_rows for root in self._roots]
        self._starts = np.concatenate([[0], np.cumsum(np.concatenate(rows))]).astype(np.int64)
        self._bounds = np.cumsum([0, *map(len, rows)])  # number of the first store of each root
        self._parts: OpenParts | None = None

    # -- what it is ------------------------------------------------------------------------------------------

    @property
    def roots(self) -> tuple[Opened, ...]:
        """What was named: stores and sharded directories."""
        return self._roots

    @property
    def root_runs(self) -> list[list[int]]:
        """Rows of each store of each root."""
        rows = np.diff(self._starts).tolist()
        return [rows[a:b] for a, b in zip(self._bounds[:-1], self._bounds[1:], strict=True)]

    @property
    def stores(self) -> tuple[Opened, ...]:
        """Every store, with its manifest. Of a sharded directory this opens all parts."""
        return tuple(self._store(number) for number in range(len(self._starts) - 1))

    @property
    def paths(self) -> tuple[Path, ...]:
        """Path of every store."""
        return tuple(root.part_path(i) for root in self._roots for i in range(len(root.part_rows)))

    def _store(self, number: int) -> Opened:
        root, inside = self._root_of(number)
        return root.part(inside)

    def _root_of(self, number: int) -> tuple[Opened, int]:
        """What was named, and the number in it, of a store."""
        root = int(np.searchsorted(self._bounds, number, side="right")) - 1
        return self._roots[root], number - int(self._bounds[root])

    @cached_property
    def _nbytes(self) -> int:
        """Bytes of all stores, as they lie."""
        return sum(map(sum, (root.part_sizes for root in self._roots)))

    @property
    def starts(self) -> Index:
        """int64 `[stores + 1]`: the first row of each store, and the number of rows of all."""
        return self._starts

    def gathers(self, name: str) -> Gathers:
        """How each store's rows of a field are gathered."""
        opened = self._open()
        if (known := opened.gathers.get(name)) is not None:
            return known
        parts = [self._part(number) for number in range(len(self._starts) - 1)]
        found = Gathers(None if part.gathers is None else part.gathers[name] for part in parts)
        if not self.ranged:  # a part that is read in place may come as a whole
            opened.keep_gathers(name, found)
        return found

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        return f"StoreView({self.told}: {len(self)} rows of {_named(self.schema)})"

    @property
    def told(self) -> str:
        """What was named, as a message tells it."""
        return ", ".join(root.told for root in self._roots)

    def told_shortly(self) -> str:
        """The first of what was named."""
        return ", ".join(root.told for root in self._roots[:3])

    def select(self, fields: Sequence[str]) -> StoreView:
        """The same rows with fewer fields."""
        other = object.__new__(StoreView)
        other.__dict__.update(self.__getstate__())
        other.schema = self.schema.select(list(fields))
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": None}

    def close(self) -> None:
        """Let go of maps and files. The view opens them again when it is read again."""
        if self._parts is not None:
            self._parts.close()
        self._parts = None

    def __enter__(self) -> StoreView:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- reading -----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for block in self.blocks():
            yield from block

    @overload
    def __getitem__(self, key: int | np.integer[Any]) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, key: slice | Sequence[int] | Array) -> Block: ...
    def __getitem__(self, key: Any) -> dict[str, Any] | Block:
        """`view[i]`: one row as a dict; `view[a:b]`, `view[rows]`: a `Block`."""
        if isinstance(key, slice):
            return self.take(np.arange(*key.indices(len(self)), dtype=np.int64))
        if isinstance(key, (int, np.integer)):
            block = self.take([int(key)])
            return {f.name: cell(f, block.columns[f.name], 0) for f in self.schema}
        return self.take(key)

    def take(self, rows: Sequence[int] | Array) -> Block:
        """Rows in the order given, repeats allowed, negative ones from the end; in writable memory of their own.

        Raises `RowError` for a row that isn't there.
        """
        index = self.rows(rows)
        if self.ranged and len(self.schema) > 1:  # of one field, taking it does the same
            self._bring(index)
        return Block(self.schema, {f.name: self.take_field(f.name, index) for f in self.schema})

    def rows(self, rows: Sequence[int] | Array) -> Index:
        """Row numbers as int64, checked and made positive. A boolean mask of all rows is accepted too."""
        return numbers(rows, len(self), "row", self.told_shortly)

    def whence(self, index: Index) -> tuple[Index, Index]:
        """Number of the store, and of the row in it, of each row: int64 `[rows]` both."""
        store = np.searchsorted(self._starts, index, side="right") - 1
        return store, index - self._starts[store]

    def take_field(self, name: str, index: Index, out: Array | None = None) -> Column:
        """One field of rows that `rows()` has checked. `out`: uint8 `[rows, row_bytes]`, for fixed fields."""
        field = self.schema[name]
        if len(self._starts) == 2:
            return _take_from(self._part(0), field, index, out)
        groups = self._by_store(index)
        if not field.ragged and all(p.gathers is not None and p.gathers[name].mapped for p, _, _ in groups):
            addresses = np.empty(len(index), np.int64)
            for part, here, inside in groups:
                assert part.gathers is not None
                addresses[here] = part.gathers[name].addresses(inside)
            return shaped(copy_rows(addresses, field.row_bytes, out), field)
        return self._merge(groups, field, len(index), out)

    def will_need(self, rows: Sequence[int] | Array) -> None:
        """Have rows fetched from the disk, without waiting for them, if reading is slow.

        Raises `RowError` for a row that isn't there, if it looks at them at all.
        """
        parts = self._open()
        if self.remote or self.ranged:
            index = self.rows(rows)
            closed = self.remote and self._fetch_ahead(parts, index)
            if self.ranged and len(index):
                parts.fetching.ask(index.tobytes(), partial(self._bring, index))
            if self.ranged or closed:
                return
        ahead = parts.ahead
        if ahead.wanted(lambda: self._extents(self._few(rows))):
            for starts, nbytes in self._extents(self.rows(rows)):
                ahead.ask(starts, nbytes)

    def _few(self, rows: Sequence[int] | Array) -> Index:
        if not (isinstance(rows, np.ndarray) and rows.dtype == np.bool_):
            rows = rows[:: max(1, len(rows) // LOOKED_AT)]
        return self.rows(rows)[:LOOKED_AT]

    def _extents(self, index: Index) -> Iterator[tuple[Index, Index]]:
        """Addresses and byte counts of what reading rows will touch, a field of a store at a time."""
        for part, _, inside in self._by_store(index):
            for f in self.schema:
                if part.gathers is not None and (f.row_bytes or f.ragged):
                    yield part.gathers[f.name].extents(inside)

    def _fetch_ahead(self, parts: OpenParts, index: Index) -> bool:
        wanted: list[int] = np.unique(self.whence(index)[0]).tolist()
        return fetch_ahead(parts, wanted, len(self._starts) - 1, self._root_of)

    def _bring(self, index: Index) -> None:
        bring(((part, inside) for part, _, inside in self._by_store(index)), self.schema)

    @cached_property
    def remote(self) -> bool:
        """Whether any store is fetched from a URL."""
        return any(root.origin is not None for root in self._roots)

    @cached_property
    def ranged(self) -> bool:
        """Whether rows may have to be fetched from where they are, as they are read."""
        return any(root.ranged for root in self._roots)

    @property
    def chunk_rows(self) -> int:
        """Rows of the first store that are compressed together; 1 if none are."""
        if len(self) == 0:
            return 1
        gathers = self._part(0).gathers or {}
        fixed = max((g.chunk_rows for g in gathers.values() if not g.field.ragged), default=1)
        ragged = max((g.chunk_rows for g in gathers.values() if g.field.ragged), default=1)
        return -(-ragged // fixed) * fixed

    def _by_store(self, index: Index) -> list[tuple[OpenPart, Index, Index]]:
        """Each store that some of the rows are in: where they stand in `index`, and their numbers in the store."""
        if len(self._starts) == 2:
            return [(self._part(0), np.arange(len(index)), index)]
        part_of, inside = self.whence(index)
        order = np.argsort(part_of, kind="stable")
        present, first = np.unique(part_of[order], return_index=True)
        wheres = np.split(order, first[1:])
        return [(self._part(p), here, inside[here]) for p, here in zip(present.tolist(), wheres, strict=False)]

    def _merge(self, groups: list[tuple[OpenPart, Index, Index]], field: Field, rows: int, out: Array | None) -> Column:
        """Rows of several stores, gathered store by store and put back in order."""
        taken = [_take_from(part, field, inside, None) for part, _, inside in groups]
        order = np.empty(rows, np.int64)
        order[np.concatenate([here for _, here, _ in groups]) if groups else []] = np.arange(rows)
        if field.ragged:
            ragged = [t for t in taken if isinstance(t, Ragged)]
            return Ragged.concat(ragged).take(order) if ragged else Ragged.of([], field)
        fixed = [t for t in taken if not isinstance(t, Ragged)]
        column = np.concatenate(fixed)[order] if fixed else np.empty((0, *field.item_shape), field.dtype)
        return column if out is None else _put(column, field, out)

    def blocks(self, start: int = 0, stop: int | None = None, rows: int | None = None) -> Iterator[Block]:
        """All rows in order, in blocks of about 8 MiB (or `rows` rows): read-only views where they can be."""
        stop = len(self) if stop is None else min(stop, len(self))
        while start < stop:
            p = int(np.searchsorted(self._starts, start, side="right")) - 1
            part, base = self._part(p), int(self._starts[p])
            a, b = start - base, min(stop, int(self._starts[p + 1])) - base
            n = min(b - a, rows or self._run_rows(base, a, b))
            if part.ranged:
                self.will_need(np.arange(start + n, min(start + 2 * n, stop), dtype=np.int64))
            yield Block(self.schema, {f.name: _run_from(part, f, a, a + n) for f in self.schema})
            start += n

    def _run_rows(self, base: int, a: int, b: int) -> int:
        """How many rows from `a` on of a store that begins at row `base` make up about `RUN_BYTES`."""
        row = sum(f.row_bytes for f in self.schema if not f.ragged)
        ragged = [f for f in self.schema if f.ragged]
        if ragged:
            probe = np.arange(a, min(b, a + 4096), dtype=np.int64)
            each = np.full(len(probe), row, np.int64)
            for f in ragged:
                each += self.lengths(f.name, probe + base) * f.row_bytes
            return max(1, int(np.searchsorted(np.cumsum(each), RUN_BYTES)))
        return max(1, min(b - a, RUN_BYTES // max(1, row)))

    def field_bytes(self, name: str) -> int:
        """Bytes of a field's values in all rows, decoded."""
        field = self.schema[name]
        if not field.ragged:
            return field.row_bytes * len(self)
        total = 0
        for start in range(0, len(self), 65536):
            sizes = self.lengths(name, np.arange(start, min(start + 65536, len(self)), dtype=np.int64))
            total += int(sizes.sum())
        return total * field.row_bytes

    def lengths(self, name: str, index: Index) -> Index:
        """int64 `[rows]`: items in each row of a ragged field, without reading the values where that can be."""
        field = self.schema[name]
        found = np.zeros(len(index), np.int64)
        for part, here, inside in self._by_store(index):
            if part.gathers is not None:
                found[here] = part.gathers[field.name].lengths(inside)
            else:
                column = _take_from(part, field, inside, None)
                assert isinstance(column, Ragged)
                found[here] = column.lengths
        return found

    def _open(self) -> OpenParts:
        parts = self._parts
        if parts is None or parts.pid != os.getpid():
            # maps survive a fork, but a library's handles don't: everything is opened anew
            held = max(self.cache_bytes, FETCHED_BYTES) if self.ranged else self.cache_bytes
            parts = self._parts = OpenParts(held, self.remote)
        return parts

    def _part(self, number: int) -> OpenPart:
        parts = self._open()
        part = parts.get(number)
        if part is not None and part.ranged and has_come(parts, number, part, self._nbytes, self._root_of):
            parts.drop(number)
            part = None
        if part is None:
            opened = self._store(number)
            try:
                part = OpenPart(opened, self.schema, parts.cache)
            finally:
                if opened.lease is not None:
                    opened.lease.release()  # what is mapped needs its name no more
            parts.hold(number, part)
        return part


def _take_from(part: OpenPart, field: Field, index: Index, out: Array | None) -> Column:
    if part.gathers is not None:
        return part.gathers[field.name].take(index, out)
    column = part.reader.take(index, (field.name,)).columns[field.name]
    return column if out is None or isinstance(column, Ragged) else _put(column, field, out)


def _run_from(part: OpenPart, field: Field, start: int, stop: int) -> Column:
    if part.gathers is not None:
        column = part.gathers[field.name].run(start, stop)
        if column is not None:
            return column
    return _take_from(part, field, np.arange(start, stop, dtype=np.int64), None)


def _put(column: Array, field: Field, out: Array) -> Array:
    target = shaped(out, field)
    target[...] = column
    return target


def _named(schema: Schema) -> str:
    return ", ".join(f"{f.name} {f.dtype}" for f in schema)


def _odd(schema: Schema, other: Schema) -> str:
    """The fields of one that the other lacks, or has otherwise: all that can tell them apart."""
    odd = [f for f in schema if f not in tuple(other)]
    told = []
    for f in odd:
        extents = words.shape(f.shape)
        classes = "" if f.classes is None else f" of {len(f.classes)} classes"
        told.append(" ".join(part for part in (f.name, f.dtype, extents, f.kind, f.layout) if part) + classes)
    return ", ".join(told) or ("the same in another order" if len(schema) == len(other) else "nothing")


def open_view(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], fields: Sequence[str] | None = None
) -> StoreView:
    """Open a store, or several as one table, for reading with numpy.

    `path`: a store, a sharded directory, or a list of them with the same fields. `fields`: read only these.
    Raises `NotAStore`, `IncompleteStore`, `LaterVersion` or `SchemaError`.
    """
    paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    return StoreView(paths, fields)
