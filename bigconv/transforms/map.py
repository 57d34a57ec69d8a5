"""`--map`: a function of the user's makes other rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from bigconv.block import Block, Ragged
from bigconv.errors import SchemaError, UsageError
from bigconv.schema import Schema
from bigconv.transforms.made import Filled, Learned, Row, add_row, block_of, column_of, expect_names, row_of, rows_of
from bigconv.transforms.user import Sample, UserStep


@dataclass(frozen=True)
class Map(UserStep):
    """Rows made by a function: it takes a row as a dict and returns one, `None` to drop it, or a list of dicts.

    A row has arrays in their own shape, numbers as numpy scalars, text as `str`. Fields may be added, dropped and
    changed. A batched function (`bigconv.batched`) takes and returns columns, with as many rows.

    `fields`: what comes out, learned from the first rows. Sizes that differ there may differ; everything else must be
    as it was there, or the row is a `SchemaError`. A field whose dtype and number of axes stay keeps its kind, its
    layout and its classes; an image keeps them in any dtype, as long as its channels are where they were.
    """

    name: ClassVar[str] = "map"

    fields: Schema | None = None

    def learn(self, sample: Sample) -> Self:
        """Try the function on the first rows. Raises `UsageError`, or `SchemaError` when they don't go together."""
        step = self.prepared()
        learned: Learned | None = None
        for where, block, rows in step.tried(sample):
            if learned is None:
                learned = Learned(block.schema)
                if step.batched:
                    learned.ragged = {n for n, c in step._columns(block).items() if isinstance(c, Ragged)}
            for row in rows:
                try:
                    learned.see(block.row(0), row, where)
                except SchemaError as error:
                    raise SchemaError(f"{self.label}: {error}") from error
        assert learned is not None
        try:
            return replace(step, fields=learned.schema())
        except SchemaError as error:  # a name that can't be a field's
            raise SchemaError(f"{self.label}: {error}") from error

    def schema(self, schema: Schema) -> Schema:
        return self._learned

    def __call__(self, block: Block) -> Block:
        schema = self._learned
        if self.batched:
            columns = self._columns(block) if len(block) else {f.name: Filled(f, 0).column() for f in schema}
            expect_names({f.name: f for f in schema}, columns)
            return Block(schema, {f.name: column_of(f, columns[f.name], len(block)) for f in schema}, block.origin)
        filled = {f.name: Filled(f, len(block)) for f in schema}
        whence: list[int] = []
        for i, returned in enumerate(self.each(block)):
            for row in _rows(returned):
                add_row(filled, row)
                whence.append(i)
        return block_of(schema, filled, None if block.origin is None else block.origin[np.array(whence, np.int64)])

    def results(self, block: Block) -> list[list[Row]]:
        if self.batched:
            return [[row] for row in rows_of(self._columns(block), block.schema, len(block))]
        # Values are copied, as the function may use its arrays again.
        return [
            [{name: (kind, np.array(array)) for name, (kind, array) in row.items()} for row in _rows(returned)]
            for returned in self.each(block)
        ]

    def _columns(self, block: Block) -> Mapping[str, Any]:
        returned = self.whole(block)
        if not isinstance(returned, Mapping):
            raise SchemaError(f"returned {type(returned).__name__}: expected a dict of columns")
        return returned

    @property
    def _learned(self) -> Schema:
        if self.fields is None:
            raise UsageError(f"{self.label}: its fields are not known before `learn`")
        return self.fields


def _rows(returned: Any) -> list[Row]:
    if returned is None:
        return []
    if isinstance(returned, Mapping):
        return [row_of(returned)]
    if isinstance(returned, list | tuple) and all(isinstance(row, Mapping) for row in returned):
        return [row_of(row) for row in returned]
    raise SchemaError(f"returned {type(returned).__name__}: expected a dict of arrays, None, or a list of dicts")
