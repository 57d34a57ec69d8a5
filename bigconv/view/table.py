"""`StoreView`: one or many stores as one table of rows. numpy only."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from bigconv.block import Array, Block, Column, Index, Ragged, cell
from bigconv.errors import RowError, SchemaError, UsageError
from bigconv.schema import Field, Schema
from bigconv.stores.base import StoreReader
from bigconv.view.gather import FieldGather
from bigconv.view.memory import Maps, copy_rows, shaped
from bigconv.view.opening import Opened, open_store

RUN_BYTES = 8 << 20  # 8 MiB a block when reading in order: past this a copy no longer gets faster


class _Part:
    """One store of a view, opened."""

    def __init__(self, opened: Opened, schema: Schema, maps: Maps) -> None:
        self.reader: StoreReader = opened.store.open(opened.path, opened.manifest.schema, opened.manifest.rows)
        where = self.reader.locate()
        self.gathers: dict[str, FieldGather] | None = None
        if where is not None:
            self.gathers = {f.name: FieldGather(f, where[f.name], maps, str(opened.path)) for f in schema}


class StoreView:
    """Rows of one store, or of several one after another.

    Holds paths and manifests; files are mapped when the first row is read, in each process anew, so a view can be
    pickled and survives a fork.
    """

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
        self._opened = tuple(opened)
        first = self._opened[0].manifest.schema
        for other in self._opened[1:]:
            if other.manifest.schema != first:
                raise SchemaError(
                    f"{other.path} has other fields than {self._opened[0].path}:\n{_named(other.manifest.schema)} "
                    f"instead of {_named(first)}"
                )
        self.schema = first if fields is None else first.select(list(fields))
        rows = [one.manifest.rows for one in self._opened]
        self._starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self._parts: list[_Part] | None = None
        self._pid = 0

    # -- what it is ------------------------------------------------------------------------------------------

    @property
    def stores(self) -> tuple[Opened, ...]:
        return self._opened

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(opened.path for opened in self._opened)

    @property
    def starts(self) -> Index:
        """int64 `[stores + 1]`: the first row of each store, and the number of rows of all."""
        return self._starts

    def gathers(self, name: str) -> list[FieldGather | None]:
        """How each store's rows of a field are gathered; None where a store is read through its library."""
        return [None if part.gathers is None else part.gathers[name] for part in self._open()]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        return f"StoreView({', '.join(map(str, self.paths))}: {len(self)} rows of {_named(self.schema)})"

    def select(self, fields: Sequence[str]) -> StoreView:
        """The same rows with fewer fields."""
        other = object.__new__(StoreView)
        other.__dict__.update(self.__getstate__())
        other.schema = self.schema.select(list(fields))
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": None, "_pid": 0}

    def close(self) -> None:
        """Let go of maps and files. The view opens them again when it is read again."""
        for part in self._parts or []:
            part.reader.close()
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
        return Block(self.schema, {f.name: self.take_field(f.name, index) for f in self.schema})

    def rows(self, rows: Sequence[int] | Array) -> Index:
        """Row numbers as int64, checked and made positive. A boolean mask of all rows is accepted too."""
        return numbers(rows, len(self), "row", self.paths)

    def whence(self, index: Index) -> tuple[Index, Index]:
        """Number of the store, and of the row in it, of each row: int64 `[rows]` both."""
        store = np.searchsorted(self._starts, index, side="right") - 1
        return store, index - self._starts[store]

    def take_field(self, name: str, index: Index, out: Array | None = None) -> Column:
        """One field of rows that `rows()` has checked. `out`: uint8 `[rows, row_bytes]`, for fixed fields."""
        parts = self._open()
        field = self.schema[name]
        if len(parts) == 1:
            return _take_from(parts[0], field, index, out)
        part_of, inside = self.whence(index)
        present = np.unique(part_of)
        if not field.ragged and all(parts[p].gathers is not None for p in present):
            addresses = np.empty(len(index), np.int64)
            for p in present:
                here = np.flatnonzero(part_of == p)
                gathers = parts[p].gathers
                assert gathers is not None
                addresses[here] = gathers[name].addresses(inside[here])
            return shaped(copy_rows(addresses, field.row_bytes, out), field)
        return self._merge(parts, field, part_of, inside, present, out)

    def _merge(
        self, parts: list[_Part], field: Field, part_of: Index, inside: Index, present: Index, out: Array | None
    ) -> Column:
        """Rows of several stores, gathered store by store and put back in order."""
        where = [np.flatnonzero(part_of == p) for p in present]
        taken = [_take_from(parts[p], field, inside[here], None) for p, here in zip(present, where, strict=True)]
        order = np.empty(len(part_of), np.int64)
        order[np.concatenate(where) if where else []] = np.arange(len(part_of))
        if field.ragged:
            ragged = [t for t in taken if isinstance(t, Ragged)]
            return Ragged.concat(ragged).take(order) if ragged else Ragged.of([], field)
        fixed = [t for t in taken if not isinstance(t, Ragged)]
        column = np.concatenate(fixed)[order] if fixed else np.empty((0, *field.item_shape), field.dtype)
        return column if out is None else _put(column, field, out)

    def blocks(self, start: int = 0, stop: int | None = None, rows: int | None = None) -> Iterator[Block]:
        """All rows in order, in blocks of about 8 MiB (or `rows` rows): read-only views where they can be."""
        stop = len(self) if stop is None else stop
        parts = self._open()
        for p, part in enumerate(parts):
            base = int(self._starts[p])
            a, b = max(start, base) - base, min(stop, int(self._starts[p + 1])) - base
            while a < b:
                n = min(b - a, rows or self._run_rows(part, a, b))
                yield Block(self.schema, {f.name: _run_from(part, f, a, a + n) for f in self.schema})
                a += n

    def _run_rows(self, part: _Part, a: int, b: int) -> int:
        """How many rows from `a` on make up about `RUN_BYTES`."""
        row = sum(f.row_bytes for f in self.schema if not f.ragged)
        ragged = [f for f in self.schema if f.ragged]
        if ragged:
            base = int(self._starts[self._parts.index(part)]) if self._parts else 0
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
        parts = self._open()
        field = self.schema[name]
        part_of, _ = self.whence(index)
        found = np.zeros(len(index), np.int64)
        for p in np.unique(part_of):
            here = np.flatnonzero(part_of == p)
            gathers = parts[p].gathers
            if gathers is not None:
                found[here] = gathers[field.name].lengths(index[here] - self._starts[p])
            else:
                column = _take_from(parts[p], field, index[here] - self._starts[p], None)
                assert isinstance(column, Ragged)
                found[here] = column.lengths
        return found

    def _open(self) -> list[_Part]:
        if self._parts is None or self._pid != os.getpid():
            # maps survive a fork, but a library's handles don't: everything is opened anew
            maps = Maps()
            self._parts = [_Part(opened, self.schema, maps) for opened in self._opened]
            self._pid = os.getpid()
        return self._parts


def numbers(rows: Sequence[int] | Array, count: int, what: str, paths: Sequence[Path]) -> Index:
    """Numbers below `count` as int64, checked and made positive; a boolean mask is accepted too. Raises `RowError`."""
    try:
        index = np.fromiter(rows, np.int64, len(rows)) if _plain(rows) else np.asarray(rows)
    except OverflowError as error:
        raise RowError(f"a {what} number of more than 64 bits, of {count} {what}s") from error
    if index.dtype == np.bool_:
        if index.shape != (count,):
            raise RowError(f"a mask of shape {index.shape} for {count} {what}s")
        return np.flatnonzero(index)
    if index.size == 0:
        return np.empty(0, np.int64)
    if index.dtype.kind not in "iu" or index.ndim != 1:
        raise RowError(f"{what} numbers must be a list of integers, got {index.dtype} of shape {index.shape}")
    if index.dtype == np.uint64 and int(index.max()) >= count:  # would wrap to a negative number
        raise RowError(f"{what} {int(index.max())} of {count} {what}s: {', '.join(map(str, paths[:3]))}")
    index = index.astype(np.int64, copy=False)
    if index.view(np.uint64).max() < count:  # the usual case in one pass: a negative number is a huge one
        return index
    low, high = int(index.min()), int(index.max())
    if low < -count or high >= count:
        raise RowError(f"{what} {low if low < -count else high} of {count} {what}s: {', '.join(map(str, paths[:3]))}")
    return np.where(index < 0, index + count, index) if low < 0 else index


def _plain(rows: Any) -> bool:
    """Whether rows are a list of Python integers, as the samplers of torch give them: the quickest to convert."""
    return type(rows) is list and bool(rows) and type(rows[0]) is int and set(map(type, rows)) == {int}


def _take_from(part: _Part, field: Field, index: Index, out: Array | None) -> Column:
    if part.gathers is not None:
        return part.gathers[field.name].take(index, out)
    column = part.reader.take(index, (field.name,)).columns[field.name]
    return column if out is None or isinstance(column, Ragged) else _put(column, field, out)


def _run_from(part: _Part, field: Field, start: int, stop: int) -> Column:
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


def open_view(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], fields: Sequence[str] | None = None
) -> StoreView:
    """Open a store, or several as one table, for reading with numpy.

    `path`: a store or a list of stores with the same fields. `fields`: read only these.
    Raises `NotAStore`, `IncompleteStore`, `LaterVersion` or `SchemaError`.
    """
    paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    return StoreView(paths, fields)
