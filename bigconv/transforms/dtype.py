"""Another dtype, values as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from bigconv.block import Array, Block, Ragged
from bigconv.errors import SchemaError, UsageError
from bigconv.schema import DTYPES, Field, Schema, unknown

KINDS = ("image", "array", "audio", "video", "volume")  # labels, text and tokens keep their types


@dataclass(frozen=True)
class ToDtype:
    """Images and arrays to `dtype`. Values are cast, not scaled: 0…255 stays 0…255 (to normalise is another step).

    A value that the dtype has no room for (-1 in uint8, NaN in int32, 1e300 in float32) is a `SchemaError`; one that
    it has less precision for is rounded as numpy does, fractions are cut off. To bool, all but 0 is True.
    """

    name: ClassVar[str] = "dtype"

    dtype: str

    def __post_init__(self) -> None:
        try:
            name = np.dtype(self.dtype).newbyteorder("=").name
        except (TypeError, ValueError, SyntaxError):
            name = None
        if self.dtype is None or name not in DTYPES:  # numpy takes None for float64
            raise UsageError(unknown("dtype", str(self.dtype), DTYPES))
        object.__setattr__(self, "dtype", str(name))

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(text)

    @staticmethod
    def typed(entry: Mapping[str, Any]) -> str:
        return str(entry["dtype"])

    def schema(self, schema: Schema) -> Schema:
        fields = self._fields(schema)
        for field in fields:
            if np.dtype(field.dtype).kind == "c" and np.dtype(self.dtype).kind != "c":
                raise UsageError(f"--dtype {self.dtype}: field {field.name} is {field.dtype}, which has two parts")
            schema = schema.replace(field.with_(dtype=self.dtype))
        return schema

    def __call__(self, block: Block) -> Block:
        for field in self._fields(block.schema):
            if field.dtype == self.dtype:
                continue
            column = block.columns[field.name]
            values = column.values if isinstance(column, Ragged) else column
            bad = _first_outside(values, np.dtype(self.dtype))
            if bad is not None:
                row = bad if not isinstance(column, Ragged) else int(np.searchsorted(column.offsets, bad, "right")) - 1
                raise SchemaError(
                    f"field {field.name}, row {row} of the block: {_worst(values[bad], np.dtype(self.dtype))} "
                    f"does not fit {self.dtype}"
                )
            cast = values.astype(self.dtype)
            new = field.with_(dtype=self.dtype)
            if isinstance(column, Ragged):
                block = block.with_column(new, Ragged(cast, column.offsets, column.shapes))
            else:
                block = block.with_column(new, cast)
        return block

    def _fields(self, schema: Schema) -> list[Field]:
        found = [f for f in schema if f.kind in KINDS]
        if not found:
            have = ", ".join(f"{f.name} ({f.kind})" for f in schema)
            raise UsageError(f"--dtype needs a field of images or arrays; there are: {have}")
        return found


def _first_outside(values: Array, dtype: np.dtype[Any]) -> int | None:
    """The first item along axis 0 with a value that `dtype` has no room for."""
    if values.size == 0 or np.can_cast(values.dtype, dtype, "safe"):
        return None
    if values.dtype.kind in "iu" and dtype.kind in "iu":  # extremes suffice, and need no memory
        limits = np.iinfo(dtype)
        if int(values.min()) >= limits.min and int(values.max()) <= limits.max:
            return None
    outside = _outside(values, dtype)
    if not outside.any():
        return None
    return int(np.flatnonzero(outside.reshape(len(values), -1).any(axis=1))[0])


def _outside(values: Array, dtype: np.dtype[Any]) -> Array:
    """bool, as `values`: where a value does not fit."""
    if dtype.kind == "b":
        return np.isnan(values) if values.dtype.kind in "fc" else np.zeros(values.shape, bool)
    if dtype.kind in "fc":
        with np.errstate(over="ignore"):
            return np.asarray(np.isfinite(values) & ~np.isfinite(values.astype(dtype)))
    limits = np.iinfo(dtype)
    if values.dtype.kind in "iub":
        small = np.iinfo(values.dtype) if values.dtype.kind != "b" else None
        outside = np.zeros(values.shape, bool)
        if small is not None and small.min < limits.min:
            outside |= values < limits.min
        if small is not None and small.max > limits.max:
            outside |= values > limits.max
        return outside
    # Both limits are powers of two, exact in float32 and float64; float16 is too narrow for them.
    whole = np.trunc(values.astype(np.float32) if values.dtype == np.float16 else values)
    return np.asarray(~((whole >= float(limits.min)) & (whole < float(int(limits.max) + 1))))


def _worst(item: Array, dtype: np.dtype[Any]) -> object:
    """The first value of an item that does not fit."""
    values = np.asarray(item).reshape(-1)
    return values[int(np.flatnonzero(_outside(values, dtype))[0])]
