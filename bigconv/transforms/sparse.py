"""`--sparse`: a field of mostly zeros as the positions and values of the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from bigconv.block import Block, Column, Ragged
from bigconv.errors import UsageError
from bigconv.schema import Field, Schema, unknown

INT32 = np.iinfo(np.int32).max


@dataclass(frozen=True)
class ToSparse:
    """Rows of numbers `[length]` as two ragged fields in their place: where a row isn't zero, and what is there.

    They are `indices`, int32 (int64 past 2^31), rising, and `values`, as the sources of sparse files have them; with
    another sparse field beside them `FIELD.indices` and `FIELD.values`. `length` is known once the step has seen the
    schema, and is what `SparseCollate(length=…)` takes. Zeros are the values that equal 0, so that -0.0 is one and
    NaN isn't.
    """

    name: ClassVar[str] = "sparse"

    field: str
    length: int | None = None

    def __post_init__(self) -> None:
        if not self.field or (self.length is not None and self.length < 0):
            raise UsageError(f"--sparse {self._text}: expected the name of a field")

    @classmethod
    def parse(cls, text: str) -> Self:
        """`FIELD`, and as recipes have it `FIELD,LENGTH`. Raises `UsageError`."""
        field, comma, length = str(text).rpartition(",")
        if comma and length.isascii() and length.isdecimal():
            return cls(field.strip(), int(length))
        return cls(str(text).strip())

    @staticmethod
    def typed(entry: Mapping[str, Any]) -> str:
        return ToSparse(entry["field"], entry["length"])._text

    @property
    def _text(self) -> str:
        return self.field if self.length is None else f"{self.field},{self.length}"

    def fitted(self, schema: Schema) -> Self:
        """The same step for rows of this schema. Raises `UsageError`."""
        if self.field not in schema:
            raise UsageError(f"--sparse: {unknown('field', self.field, schema.names)}")
        found = schema[self.field]
        if len(found.shape) != 1 or found.ragged or found.kind not in ("array", "audio"):
            raise UsageError(
                f"--sparse {self.field}: needs rows of numbers of one length, got {found.kind} {list(found.shape)}"
            )
        length = found.item_shape[0]
        if self.length not in (None, length):
            raise UsageError(f"--sparse {self._text}: rows of field {self.field} have {length} numbers")
        return replace(self, length=length)

    def schema(self, schema: Schema) -> Schema:
        self.fitted(schema)
        return Schema(tuple(new for f in schema for new in (self._fields(schema) if f.name == self.field else (f,))))

    def _fields(self, schema: Schema) -> tuple[Field, Field]:
        dense = schema[self.field]
        taken = {f.name for f in schema if f.name != self.field} & {"indices", "values"}
        prefix = f"{self.field}." if taken else ""
        index = "int32" if dense.item_shape[0] <= INT32 + 1 else "int64"
        return Field(f"{prefix}indices", index, (None,)), Field(f"{prefix}values", dense.dtype, (None,))

    def __call__(self, block: Block) -> Block:
        dense = np.asarray(block.columns[self.field])
        rows, at = np.nonzero(dense)
        offsets = np.zeros(len(dense) + 1, np.int64)
        np.cumsum(np.bincount(rows, minlength=len(dense)), out=offsets[1:])
        indices, values = self._fields(block.schema)
        columns: dict[str, Column] = {}
        for name, column in block.columns.items():
            if name != self.field:
                columns[name] = column
                continue
            columns[indices.name] = Ragged(at.astype(indices.dtype), offsets)
            columns[values.name] = Ragged(dense[rows, at], offsets)
        return Block(self.schema(block.schema), columns, block.origin)
