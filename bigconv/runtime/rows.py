"""A batch that is already stacked, and rows that lead the default collate function to it.

`torch.utils.data.default_collate` looks at the type of `batch[0]` in `default_collate_fn_map` and hands the
registered function the whole batch object. So `StoreDataset.__getitems__` returns a `StackedBatch`, whose elements are
`DictRow` or `TupleRow`; the function registered for those takes the stacked columns out, with no further copy.
A user's own `collate_fn` sees a sequence of ordinary dicts or tuples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from bigconv.block import Array, Block, Ragged, cell
from bigconv.errors import SchemaError
from bigconv.schema import Field, Schema


class DictRow(dict[str, Any]):
    """One row as a dict; an ordinary dict to everyone but the default collate function."""


class TupleRow(tuple[Any, ...]):
    """One row as a tuple; an ordinary tuple to everyone but the default collate function."""

    __slots__ = ()


class StackedBatch(Sequence[Any]):
    """Rows of a batch, held as stacked columns; rows are made only when someone looks at them."""

    def __init__(self, block: Block, as_tuple: bool) -> None:
        self._block, self._as_tuple = block, as_tuple

    def __len__(self) -> int:
        return len(self._block)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        return row_of(self._block, i % len(self), self._as_tuple)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def stacked(self) -> Any:
        """The whole batch: a dict or a tuple of tensors `[rows, *shape]`; text as lists of `str`."""
        columns = {f.name: batch_column(f, self._block.columns[f.name]) for f in self._block.schema}
        return tuple(columns.values()) if self._as_tuple else columns


def row_of(block: Block, i: int, as_tuple: bool) -> DictRow | TupleRow:
    """One row with tensors of its own memory."""
    cells = ((f, cell(f, block.columns[f.name], i)) for f in block.schema)
    if as_tuple:
        return TupleRow(_own(f, value) for f, value in cells)
    return DictRow((f.name, _own(f, value)) for f, value in cells)


def _own(field: Field, value: Any) -> Any:
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


def batch_column(field: Field, column: Array | Ragged) -> Any:
    """A column as the default collate function would have stacked it."""
    if not isinstance(column, Ragged):
        return tensor(column)
    if field.kind == "text":
        return [cell(field, column, i) for i in range(len(column))]
    shapes = column.lengths if column.shapes is None else column.shapes
    if len(column) and (shapes == shapes[0]).all():
        shape = (int(shapes[0]), *field.item_shape) if column.shapes is None else tuple(shapes[0].tolist())
        return tensor(column.values.reshape(len(column), *shape))
    raise SchemaError(
        f"field {field.name}: rows of different sizes can't be stacked ({_sizes(field, column)}).\n"
        "Convert with --resize, give the DataLoader a collate_fn, or make them equal in a transform"
    )


def _sizes(field: Field, column: Ragged) -> str:
    first, second = (tuple(column[i].shape) for i in _two_different(column))
    return f"{first} and {second}"


def _two_different(column: Ragged) -> tuple[int, int]:
    shapes = [row.shape for row in column]
    return 0, next(i for i, shape in enumerate(shapes) if shape != shapes[0])


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
