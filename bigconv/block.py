"""Rows in columns: `Block`, and `Ragged` for columns whose rows differ in size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from bigconv.errors import RowError, SchemaError
from bigconv.schema import Field, Schema

Array = npt.NDArray[Any]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of different sizes, one after another.

    `values`: `[total, *item]`; `offsets`: int64 `[rows + 1]`, in items, `offsets[0] == 0`;
    `shapes`: int64 `[rows, ndim]` where more than the leading axis varies, and `values` is then
    flat (`[total]`, C order).
    """

    values: Array
    offsets: Index
    shapes: Index | None = None

    @classmethod
    def of(cls, rows: Sequence[Array], field: Field) -> Ragged:
        """Stack rows that fit `field`. Raises `SchemaError` when one does not."""
        for i, row in enumerate(rows):
            if row.ndim != len(field.shape) or any(
                n is not None and n != m for n, m in zip(field.shape, row.shape, strict=True)
            ):
                raise SchemaError(f"field {field.name}, row {i}: expected shape {_shape(field.shape)}, got {row.shape}")
        item = field.item_shape
        flat = [row.reshape(row.size if field.has_shapes else len(row), *item) for row in rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in flat], out=offsets[1:])
        values = np.concatenate(flat) if flat else np.empty((0, *item), field.dtype)
        shapes = None
        if field.has_shapes:
            shapes = np.array([row.shape for row in rows], np.int64).reshape(len(rows), len(field.shape))
        return cls(values.astype(field.dtype, copy=False), offsets, shapes)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Index:
        """int64 `[rows]`: items in each row."""
        return np.diff(self.offsets)

    @overload
    def __getitem__(self, key: slice) -> Ragged: ...
    @overload
    def __getitem__(self, key: int | np.integer[Any]) -> Array: ...
    def __getitem__(self, key: int | np.integer[Any] | slice) -> Array | Ragged:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                return self.take(np.arange(start, stop, step))
            stop = max(start, stop)
            a, b = int(self.offsets[start]), int(self.offsets[stop])
            shapes = None if self.shapes is None else self.shapes[start:stop]
            return Ragged(self.values[a:b], self.offsets[start : stop + 1] - a, shapes)
        row = int(key)
        if not -len(self) <= row < len(self):
            raise RowError(f"row {row} of a column of {len(self)}")
        row %= len(self)
        values: Array = self.values[self.offsets[row] : self.offsets[row + 1]]
        return values if self.shapes is None else values.reshape(self.shapes[row])

    def __iter__(self) -> Iterator[Array]:
        return (self[i] for i in range(len(self)))

    def take(self, rows: Index) -> Ragged:
        """Rows in the order given."""
        lengths = self.lengths[rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        index = np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Ragged(self.values[index], offsets, None if self.shapes is None else self.shapes[rows])

    @staticmethod
    def concat(pieces: Sequence[Ragged]) -> Ragged:
        total = np.cumsum([0, *(len(p.values) for p in pieces)])
        offsets = np.concatenate([p.offsets[:-1] + t for p, t in zip(pieces, total, strict=False)] + [total[-1:]])
        shapes = (
            None if pieces[0].shapes is None else np.concatenate([p.shapes for p in pieces if p.shapes is not None])
        )
        return Ragged(np.concatenate([p.values for p in pieces]), offsets.astype(np.int64), shapes)


Column = Array | Ragged


@dataclass(frozen=True, eq=False)
class Block:
    """Rows of all columns of `schema`: arrays `[rows, *shape]`, or `Ragged`.

    `origin`: int64 `[rows, 2]`, the number of the file in the source's list and of the row in that file, from which
    each row was made; None where nobody asks.
    """

    schema: Schema
    columns: Mapping[str, Column]
    origin: Index | None = None

    def __post_init__(self) -> None:
        if tuple(self.columns) != self.schema.names:
            raise SchemaError(f"expected the columns {self.schema.names}, got {tuple(self.columns)}")
        if len(set(map(len, self.columns.values()))) > 1:
            raise SchemaError(f"columns of unequal length: {[(n, len(c)) for n, c in self.columns.items()]}")
        if self.origin is not None and self.origin.shape != (len(self), 2):
            raise SchemaError(f"origin must be int64 [{len(self)}, 2], got {self.origin.shape}")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> Column:
        if name not in self.columns:
            self.schema[name]  # raises with a suggestion
        return self.columns[name]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.row(i) for i in range(len(self)))

    @property
    def nbytes(self) -> int:
        return sum(
            c.values.nbytes + c.offsets.nbytes if isinstance(c, Ragged) else c.nbytes for c in self.columns.values()
        )

    def row(self, i: int) -> dict[str, Any]:
        """One row as a dict: arrays in their own shape, `text` as `str`."""
        return {f.name: cell(f, self.columns[f.name], i) for f in self.schema}

    def slice(self, start: int, stop: int) -> Block:
        origin = None if self.origin is None else self.origin[start:stop]
        return Block(self.schema, {name: column[start:stop] for name, column in self.columns.items()}, origin)

    def take(self, rows: Index) -> Block:
        return Block(
            self.schema,
            {n: c.take(rows) if isinstance(c, Ragged) else np.take(c, rows, axis=0) for n, c in self.columns.items()},
            None if self.origin is None else self.origin[rows],
        )

    def with_column(self, field: Field, column: Column) -> Block:
        """The same block with one column, and its field, exchanged."""
        return Block(self.schema.replace(field), {**self.columns, field.name: column}, self.origin)

    @staticmethod
    def concat(blocks: Sequence[Block]) -> Block:
        first = blocks[0]
        if len(blocks) == 1:
            return first
        columns: dict[str, Column] = {}
        for name, column in first.columns.items():
            pieces = [block.columns[name] for block in blocks]
            if isinstance(column, Ragged):
                columns[name] = Ragged.concat([p for p in pieces if isinstance(p, Ragged)])
            else:
                columns[name] = np.concatenate([p for p in pieces if not isinstance(p, Ragged)])
        origins = [block.origin for block in blocks if block.origin is not None]
        return Block(first.schema, columns, np.concatenate(origins) if len(origins) == len(blocks) else None)

    def validate(self) -> None:
        """Hold every column against its field. Raises `SchemaError` that names field and row."""
        for f in self.schema:
            column = self.columns[f.name]
            if f.ragged != isinstance(column, Ragged):
                raise SchemaError(f"field {f.name}: expected {'a Ragged' if f.ragged else 'an array'}")
            values = column.values if isinstance(column, Ragged) else column
            if values.dtype.newbyteorder("=") != np.dtype(f.dtype):
                raise SchemaError(f"field {f.name}: expected dtype {f.dtype}, got {values.dtype}")
            if values.shape[1:] != f.item_shape:
                raise SchemaError(
                    f"field {f.name}: expected rows of shape {_shape(f.item_shape)}, got {values.shape[1:]}"
                )
            if isinstance(column, Ragged):
                _validate_ragged(f, column)


def _validate_ragged(f: Field, column: Ragged) -> None:
    offsets = column.offsets
    if offsets.dtype != np.int64 or offsets.ndim != 1 or len(offsets) < 1 or offsets[0] != 0:
        raise SchemaError(f"field {f.name}: offsets must be int64 [rows + 1] and start with 0")
    lengths = np.diff(offsets)
    if (lengths < 0).any() or offsets[-1] != len(column.values):
        raise SchemaError(f"field {f.name}: offsets must rise and end with {len(column.values)}, the number of values")
    if f.has_shapes != (column.shapes is not None):
        raise SchemaError(f"field {f.name}: {'expected' if f.has_shapes else 'unexpected'} shapes")
    if column.shapes is None:
        return
    if column.shapes.dtype != np.int64 or column.shapes.shape != (len(column), len(f.shape)):
        raise SchemaError(
            f"field {f.name}: expected shapes int64 {[len(column), len(f.shape)]}, "
            f"got {column.shapes.dtype} {list(column.shapes.shape)}"
        )
    # a product alone would let pass (-1, -4) for 4 values, and (2³², 2³²), which wraps to 0, for none
    bad = (np.prod(column.shapes, axis=1) != lengths) | (column.shapes < 0).any(axis=1)
    bad |= (column.shapes == 0).any(axis=1) != (lengths == 0)
    for axis, n in enumerate(f.shape):
        if n is not None:
            bad |= column.shapes[:, axis] != n
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise SchemaError(
            f"field {f.name}, row {row}: shape {tuple(column.shapes[row].tolist())} does not fit "
            f"{_shape(f.shape)} with {int(lengths[row])} values"
        )


def cell(field: Field, column: Column, i: int) -> Any:
    """Row `i` of a column as a user wants it: text as `str`, all else as an array."""
    value = column[i]
    if field.kind == "text":
        return bytes(value).decode("utf-8", "replace")
    return value


def _shape(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("*" if n is None else str(n) for n in shape) + ")"
