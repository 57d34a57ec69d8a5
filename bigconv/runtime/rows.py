"""A batch that is already stacked, and rows that lead the default collate function to it.

`torch.utils.data.default_collate` looks at the type of `batch[0]` in `default_collate_fn_map` and hands the
registered function the whole batch object. So `StoreDataset.__getitems__` returns a `StackedBatch`, whose elements are
`DictRow` or `TupleRow`; the function registered for those takes the stacked columns out, with no further copy.
A user's own `collate_fn` sees a sequence of ordinary dicts or tuples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from bigconv.block import Array, Ragged, cell
from bigconv.errors import SchemaError
from bigconv.runtime import slots
from bigconv.schema import Field, Schema

#: A column of a batch as it is read; a list where images of different sizes have been decoded.
BatchColumn = Array | Ragged | list[Array]


class DictRow(dict[str, Any]):
    """One row as a dict; an ordinary dict to everyone but the default collate function."""


class TupleRow(tuple[Any, ...]):
    """One row as a tuple; an ordinary tuple to everyone but the default collate function."""

    __slots__ = ()


class StackedBatch(Sequence[Any]):
    """Rows of a batch, held as stacked columns; rows are made only when someone looks at them."""

    def __init__(self, schema: Schema, columns: Mapping[str, BatchColumn], rows: int, as_tuple: bool) -> None:
        self._schema, self._columns, self._rows, self._as_tuple = schema, columns, rows, as_tuple

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        return self._row(i % len(self))

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def cut(self, stops: Sequence[int]) -> list[Any]:
        """The rows up to each stop, of fields that don't vary, stacked apart; each tensor has a storage of its own."""
        pairs = list(zip([0, *stops], stops, strict=False))
        columns = [[tensor(self._columns[f.name][a:b]) for a, b in pairs] for f in self._schema]  # type: ignore[arg-type]
        if self._as_tuple:
            return list(zip(*columns, strict=True))
        names = self._schema.names
        return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]

    def stacked(self) -> Any:
        """The whole batch: a dict or a tuple of tensors `[rows, *shape]`; text as lists of `str`."""
        columns = {f.name: batch_column(f, self._columns[f.name]) for f in self._schema}
        return tuple(columns.values()) if self._as_tuple else columns

    def _row(self, i: int) -> DictRow | TupleRow:
        cells = {f.name: _cell(f, self._columns[f.name], i) for f in self._schema}
        return TupleRow(cells.values()) if self._as_tuple else DictRow(cells)


def _cell(field: Field, column: BatchColumn, i: int) -> Any:
    if isinstance(column, list):
        return tensor(column[i])
    value = cell(field, column, i)
    if isinstance(value, str):
        return value
    if field.shape == ():
        return value.item()  # as a list of rows would hold it: the default collate function makes a tensor of it
    return tensor(value)


def tensor(array: Array) -> torch.Tensor:
    """A tensor over the same memory, which must be writable; dtypes that torch lacks raise `SchemaError`."""
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise SchemaError(f"torch has no dtype for {array.dtype}") from error


def batch_column(field: Field, column: BatchColumn) -> Any:
    """A column as the default collate function would have stacked it."""
    if isinstance(column, Ragged):
        if field.kind == "text":
            return [cell(field, column, i) for i in range(len(column))]
        if len(column) == 0:
            return tensor(np.empty((0, *(n or 0 for n in field.shape)), field.dtype))
        shapes = column.lengths if column.shapes is None else column.shapes
        if (shapes == shapes[0]).all():
            shape = (int(shapes[0]), *field.item_shape) if column.shapes is None else tuple(shapes[0].tolist())
            return tensor(slots.moved(field.name, column.values).reshape(len(column), *shape))
    elif not isinstance(column, list):
        return tensor(column)
    raise SchemaError(
        f"field {field.name}: rows of different sizes can't be stacked ({_two_sizes(column)}).\n"
        f"{'Convert with --resize, pad' if field.kind in ('image', 'encoded') else 'Pad'} them with "
        "collate_fn=PadCollate(), or make them equal in a transform"
    )


def _two_sizes(column: Ragged | list[Array]) -> str:
    shapes = [row.shape for row in column]
    return f"{shapes[0]} and {next(shape for shape in shapes if shape != shapes[0])}"


def collate_rows(batch: Any, *, collate_fn_map: Mapping[Any, Callable[..., Any]] | None = None) -> Any:
    """Registered with torch for `DictRow` and `TupleRow`."""
    if isinstance(batch, StackedBatch):
        return batch.stacked()
    # single rows, from a dataset that reads one by one (ConcatDataset): stacked as torch does it
    plain = [dict(row) if isinstance(row, DictRow) else tuple(row) for row in batch]
    return collate(plain, collate_fn_map=dict(collate_fn_map or {}))


default_collate_fn_map[DictRow] = collate_rows
default_collate_fn_map[TupleRow] = collate_rows


def selected(schema: Schema, fields: Sequence[str] | str | None) -> tuple[Schema, bool]:
    """The schema of the fields asked for, and whether rows are tuples (they are when `fields` is one)."""
    if fields is None:
        return schema, False
    if isinstance(fields, str):
        raise SchemaError(f"fields must be a tuple or a list: ({fields!r},)")
    return schema.select(list(fields)), isinstance(fields, tuple)
