"""What a user's function makes: its values as arrays, their fields, learned from the first rows, and their columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bigconv.block import Array, Block, Column, Ragged
from bigconv.errors import SchemaError
from bigconv.schema import Field, Schema, dtype_name

BYTES = ("text", "bytes")  # kinds that a value has by its type
Value = tuple[str | None, Array]  # one of BYTES or None, and the array
Row = dict[str, Value]


def value_of(name: str, given: Any) -> Value:
    """A value of one row as an array that a store can hold. Raises `SchemaError`."""
    if isinstance(given, str) or (isinstance(given, np.ndarray) and given.ndim == 0 and given.dtype.kind == "U"):
        try:
            return "text", np.frombuffer(str(given).encode(), np.uint8)
        except UnicodeEncodeError as error:
            raise SchemaError(f"field {name}: text that is no Unicode: {error}") from error
    if isinstance(given, bytes | bytearray | memoryview):
        return "bytes", np.frombuffer(given, np.uint8)
    if given is None:
        raise SchemaError(f"field {name} is None: every row has a value, or is dropped as a whole")
    try:
        array = np.asarray(given)
    except (ValueError, TypeError, RuntimeError) as error:  # lists of unequal length, tensors on a GPU
        raise SchemaError(f"field {name}: {type(given).__name__} is no array: {error}") from error
    dtype = dtype_name(array.dtype, f"field {name} ({type(given).__name__})")
    return None, array.astype(dtype, copy=False)


def row_of(given: Any) -> Row:
    """One returned dict. Raises `SchemaError`."""
    if not given:
        raise SchemaError("returned a dict without fields")
    for name in given:
        if not isinstance(name, str):
            raise SchemaError(f"field names must be str, got {name!r:.80}")
    return {name: value_of(name, value) for name, value in given.items()}


def rows_of(given: Mapping[str, Any], before: Schema, rows: int) -> list[Row]:
    """Returned columns, row by row."""
    out: list[Row] = [{} for _ in range(rows)]
    for name, column in given.items():
        if not isinstance(name, str):
            raise SchemaError(f"field names must be str, got {name!r:.80}")
        text = isinstance(column, Ragged) and name in before and before[name].kind == "text"
        for row, value in zip(out, _counted(name, column, rows), strict=True):
            kind, array = value_of(name, value)
            row[name] = ("text" if text else kind, array)
    if not given:
        raise SchemaError("returned a dict without fields")
    return out


def same(a: Sequence[Row], b: Sequence[Row]) -> bool:
    """Whether two runs of one function agree; floats may differ as they do where sums are taken in another order."""
    if len(a) != len(b):
        return False
    for x, y in zip(a, b, strict=True):
        if x.keys() != y.keys():
            return False
        for name, (kind, array) in x.items():
            other_kind, other = y[name]
            if (kind, array.dtype, array.shape) != (other_kind, other.dtype, other.shape):
                return False
            if array.dtype.kind in "fc":
                if not np.allclose(array, other, rtol=1e-2, atol=1e-5, equal_nan=True):
                    return False
            elif not np.array_equal(array, other):
                return False
    return True


class Learned:
    """Fields of the rows seen so far. `ragged`: those that came as `Ragged`, whatever their sizes so far."""

    def __init__(self, before: Schema) -> None:
        self._before = {field.name: field for field in before}
        self._seen: dict[str, tuple[str | None, str, list[tuple[int, ...]]]] = {}
        self._resized: set[str] = set()  # fields whose shape isn't that of the same field before
        self.ragged: set[str] = set()

    def see(self, before: Mapping[str, Any], row: Row, where: str) -> None:
        """A row that was made of the row `before`. Raises `SchemaError` when it doesn't go with the others."""
        if self._seen and self._seen.keys() != row.keys():
            raise SchemaError(f"{where}: fields {', '.join(row)}, but {', '.join(self._seen)} in rows before")
        for name, (kind, array) in row.items():
            known = self._seen.setdefault(name, (kind, str(array.dtype), []))
            shapes = known[2]
            alike = not shapes or len(shapes[0]) == array.ndim
            if known[:2] != (kind, str(array.dtype)) or not alike:
                raise SchemaError(
                    f"{where}: field {name} is {_told(kind, str(array.dtype), array.shape)}, but "
                    f"{_told(*known[:2], shapes[0])} in rows before. Return one dtype and one number of axes"
                )
            if array.shape not in shapes:
                shapes.append(array.shape)
            if name not in before or np.shape(before[name]) != array.shape:
                self._resized.add(name)

    def schema(self) -> Schema:
        return Schema(tuple(self._field(name, *seen) for name, seen in self._seen.items()))

    def _field(self, name: str, kind: str | None, dtype: str, shapes: list[tuple[int, ...]]) -> Field:
        """The field as it was if the function left dtype and shape alone; its meaning stays while the axes do."""
        old = self._before.get(name)
        if kind is not None:
            is_bytes = old is not None and old.kind in ("bytes", "encoded") and kind == "bytes"
            return old if old is not None and (is_bytes or old.kind == kind) else Field(name, "uint8", (None,), kind)
        if old is not None and old.kind != "text" and old.dtype == dtype and name not in self._resized:
            return old
        shape: tuple[int | None, ...] = tuple(n[0] if len(set(n)) == 1 else None for n in zip(*shapes, strict=True))
        if name in self.ragged:
            shape = (None, *shape[1:])
        if old is None or len(old.shape) != len(shape) or old.kind == "text":
            return Field(name, dtype, shape)
        if old.layout is not None:  # an image of another dtype is one, and of another size; not with its axes turned
            at = -1 if old.layout == "hwc" else 0
            return old.with_(dtype=dtype, shape=shape) if old.shape[at] == shape[at] else Field(name, dtype, shape)
        if old.dtype != dtype:
            return Field(name, dtype, shape)
        return old if old.kind in ("bytes", "encoded") else old.with_(shape=shape)


def block_of(schema: Schema, columns: dict[str, Filled], origin: Any) -> Block:
    return Block(schema, {name: filled.column() for name, filled in columns.items()}, origin)


class Filled:
    """A column of one field that grows row by row. What is added is copied: a function may use its arrays again."""

    def __init__(self, field: Field, rows: int) -> None:
        self._field = field
        self._dtype = np.dtype(field.dtype)
        self._rows = 0
        self._fixed = np.empty((0 if field.ragged else rows, *field.item_shape), self._dtype)
        self._ragged: list[Array] = []

    def add(self, value: Value) -> None:
        """Raises `SchemaError` for a value that isn't of the field."""
        kind, array = value
        field = self._field
        fits = len(array.shape) == len(field.shape) and all(
            n is None or n == m for n, m in zip(field.shape, array.shape, strict=True)
        )
        if array.dtype != self._dtype or not fits or (kind == "text") != (field.kind == "text"):
            expected = _told("text" if field.kind == "text" else None, field.dtype, field.shape)
            raise SchemaError(
                f"field {field.name}: expected {expected}, as in the first rows, "
                f"got {_told(kind, str(array.dtype), array.shape)}"
            )
        if field.ragged:
            self._ragged.append(np.array(array, order="C"))
            return
        if self._rows == len(self._fixed):
            more = np.empty((2 * self._rows + 1, *self._fixed.shape[1:]), self._dtype)
            more[: self._rows] = self._fixed
            self._fixed = more
        self._fixed[self._rows] = array
        self._rows += 1

    def column(self) -> Column:
        return Ragged.of(self._ragged, self._field) if self._field.ragged else self._fixed[: self._rows]


def add_row(columns: dict[str, Filled], row: Row) -> None:
    expect_names(columns, row)
    for name, filled in columns.items():
        filled.add(row[name])


def expect_names(expected: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises `SchemaError` unless the same fields are there."""
    if expected.keys() != given.keys():
        missing = [n for n in expected if n not in given]
        told = f"{missing[0]} is missing" if missing else f"{next(n for n in given if n not in expected)!r} is new"
        raise SchemaError(f"expected the fields {', '.join(expected)}, as in the first rows: {told}")


def column_of(field: Field, given: Any, rows: int) -> Column:
    """A returned column as a copy that is of the field. Raises `SchemaError`."""
    column = _counted(field.name, given, rows)
    if isinstance(column, Ragged) and field.ragged:
        shapes = None if column.shapes is None else np.array(column.shapes)
        copied = Ragged(np.array(column.values, order="C"), np.array(column.offsets), shapes)
        Block(Schema((field,)), {field.name: copied}).validate()
        return copied
    if isinstance(column, np.ndarray) and not field.ragged and column.dtype.kind != "U":
        if column.dtype.newbyteorder("=") != np.dtype(field.dtype) or column.shape[1:] != field.item_shape:
            expected, got = _told(None, field.dtype, field.shape), _told(None, str(column.dtype), column.shape[1:])
            raise SchemaError(f"field {field.name}: expected rows of {expected}, as in the first rows, got {got}")
        return np.array(column, field.dtype, order="C")
    filled = Filled(field, rows)
    for value in column:
        filled.add(value_of(field.name, value))
    return filled.column()


def _counted(name: str, given: Any, rows: int) -> Any:
    """A returned column, which must have as many rows as it was made of."""
    column = given if isinstance(given, Ragged | list | tuple) else np.asarray(given)
    if isinstance(column, np.ndarray) and column.ndim == 0:
        raise SchemaError(f"field {name}: expected a column of {rows} rows, got {type(given).__name__}")
    if len(column) != rows:
        raise SchemaError(
            f"field {name}: a batched function returns as many rows as it gets: expected {rows}, got {len(column)}.\n"
            "--filter drops rows"
        )
    return column


def _told(kind: str | None, dtype: str, shape: Sequence[int | None]) -> str:
    if kind is not None:
        return {"text": "str", "bytes": "bytes"}[kind]
    return f"{dtype} ({', '.join('*' if n is None else str(n) for n in shape)})"
