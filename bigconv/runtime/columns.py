"""The columns of a batch, however it comes to a collate function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from bigconv.block import Ragged
from bigconv.errors import SchemaError, UsageError
from bigconv.runtime.rows import BatchColumn, StackedBatch
from bigconv.schema import Field

Columns = dict[str, tuple[Field | None, Any]]  # by name; a field of None: the column is finished


def columns_of(batch: Sequence[Any]) -> tuple[Columns, type | None]:
    """Columns of a batch, and what a row is: `dict`, `tuple`, or None for a single value."""
    if isinstance(batch, StackedBatch):
        if not hasattr(batch, "_schema"):
            raise UsageError("a batch_transform has made the batch already: do without it, or without the collate_fn")
        found: Columns = {f.name: (f, batch._columns[f.name]) for f in batch._schema}
        return found, tuple if batch._as_tuple else dict
    if isinstance(batch, Mapping):
        raise UsageError(
            "a collate function makes a batch of rows, and here it is stacked already, as with batch_size=None.\n"
            "Give the sampler as batch_sampler="
        )
    if len(batch) == 0:
        raise UsageError("a collate function needs at least one row")
    first = batch[0]
    if isinstance(first, Mapping):
        kind: type | None = dict
        cells = {name: [_get(row, i, name) for i, row in enumerate(batch)] for name in first}
    elif isinstance(first, tuple):
        kind = tuple
        if len(lengths := set(map(len, batch))) > 1:
            raise SchemaError(f"rows are tuples of different lengths, {min(lengths)} and {max(lengths)}")
        cells = {str(i): [row[i] for row in batch] for i in range(len(first))}
    else:
        kind, cells = None, {"0": list(batch)}
    return {name: _gathered(name, values) for name, values in cells.items()}, kind


def _get(row: Any, i: int, name: str) -> Any:
    try:
        return row[name]
    except (KeyError, TypeError, IndexError):
        raise SchemaError(f"row {i} of the batch has no {name}, and row 0 has") from None


def _gathered(name: str, cells: list[Any]) -> tuple[Field | None, Any]:
    """The cells of one column: arrays as a ragged one, all else as the default collate function has it."""
    if isinstance(cells[0], str):
        return None, cells
    if not isinstance(cells[0], (torch.Tensor, np.ndarray, list)) or getattr(cells[0], "ndim", 1) == 0:
        return None, default_collate(cells)
    try:
        arrays = [c.detach().numpy() if isinstance(c, torch.Tensor) else np.asarray(c) for c in cells]
    except (TypeError, ValueError) as error:
        raise SchemaError(f"{name}: rows can't be made arrays: {error}") from error
    kinds = {(array.dtype, array.ndim) for array in arrays if array.size}
    if len(kinds) > 1:
        a, b = sorted(f"{dtype} with {ndim} axes" for dtype, ndim in kinds)[:2]
        raise SchemaError(f"{name}: rows of the batch are of different kinds: {a}, and {b}")
    dtype, ndim = next(iter(kinds), (arrays[0].dtype, arrays[0].ndim))
    field = Field(name, dtype.name, (None,) * ndim)
    same = [array if array.ndim == ndim else array.reshape((0,) * ndim) for array in arrays]
    return field, Ragged.of(same, field)


def as_ragged(field: Field, column: BatchColumn) -> Ragged:
    """A column as values and offsets; decoded images are arrays already."""
    if isinstance(column, Ragged):
        return column
    return Ragged.of(list(column), field.with_(kind="array", shape=(None,) * (column[0].ndim if len(column) else 1)))


def axes_of(field: Field, column: BatchColumn) -> Sequence[int | None]:
    """Extents of a row, None where they vary: of decoded images in height and width."""
    return field.shape if isinstance(column, Ragged) else (3, None, None)
