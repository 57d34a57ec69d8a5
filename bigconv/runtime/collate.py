"""Collate functions for rows of different sizes: `DataLoader(dataset, collate_fn=PadCollate())`.

From a `StoreDataset` they get a whole batch in columns, and work on values and offsets: no row is ever made. Rows that
a transform or a `ConcatDataset` made are brought into columns first; they have no schema, so every array among them is
taken to vary in all its axes.

Dicts in, a dict out; tuples in, a tuple out, in which what belongs to a field stands right behind it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from bigconv.block import Array, Index, Ragged
from bigconv.errors import SchemaError, UsageError
from bigconv.runtime import buffers, slots
from bigconv.runtime.columns import Columns, as_ragged, axes_of, columns_of
from bigconv.runtime.rows import BatchColumn, batch_column, tensor
from bigconv.schema import Field, unknown

MASK_ITEMS = 256  # rows padded to less: one masked copy of all; longer ones: a copy each costs less than a mask


@dataclass(frozen=True)
class _Collate(ABC):
    """What all have in common: fields that don't vary are stacked as ever, text is a list of `str`."""

    def __call__(self, batch: Sequence[Any]) -> Any:
        columns, whole = columns_of(batch)
        self._check(columns)
        out: dict[str, Any] = {}
        for name, (field, column) in columns.items():
            if field is None:
                made = {name: column}
            elif not field.ragged or field.kind == "text":
                made = {name: batch_column(field, column)}
            else:
                made = self._varying(field, column, columns)
            for key in made:
                if key in out or (key != name and key in columns):
                    raise UsageError(f"{type(self).__name__} makes a column {key}, but there is a field of that name")
            out |= made
        if whole is dict:
            return out
        return next(iter(out.values())) if whole is None and len(out) == 1 else tuple(out.values())

    def _check(self, columns: Columns) -> None:  # noqa: B027  some have nothing to check
        """Hold the options against the fields of a batch. Raises `UsageError`."""

    @abstractmethod
    def _varying(self, field: Field, column: BatchColumn, columns: Columns) -> dict[str, Any]:
        """The columns made of a field whose rows vary in size."""


@dataclass(frozen=True)
class PadCollate(_Collate):
    """Fill rows up to the longest of the batch: `[batch, longest, *item]`, filling at the end.

    Where several axes vary (images of all sizes), each is filled up to its largest, at the right and the bottom.
    `value`: what to fill with, a number or a dict of them by field (0 for those it leaves out). `to`: round the
    longest up to a multiple of this, so that few shapes occur.
    `lengths`: also give `<field>_lengths`, int64 `[batch]`, or where several axes vary `<field>_shapes`, int64
    `[batch, axes]`. `mask`: also give `<field>_mask`, bool `[batch, longest]` (or `[batch, height, width]`, the varying
    axes), True where there are values.
    """

    value: float | complex | Mapping[str, float | complex] = 0
    to: int | None = None
    lengths: bool = True
    mask: bool = False

    def __post_init__(self) -> None:
        values = self.value.values() if isinstance(self.value, Mapping) else [self.value]
        for value in values:
            if not isinstance(value, (bool, int, float, complex, np.number, np.bool_)):
                raise UsageError(f"value must be a number, or a dict of them by field, got {value!r:.80}")
        if self.to is not None and (isinstance(self.to, bool) or not isinstance(self.to, int) or self.to < 1):
            raise UsageError(f"to must be a whole number of at least 1, got {self.to!r:.80}")

    def _check(self, columns: Columns) -> None:
        for name in self.value if isinstance(self.value, Mapping) else ():
            if name not in columns:
                raise UsageError(unknown("field", name, tuple(columns)))

    def _varying(self, field: Field, column: BatchColumn, columns: Columns) -> dict[str, Any]:
        given = self.value.get(field.name, 0) if isinstance(self.value, Mapping) else self.value
        value, name = _filling(field, given), field.name
        if isinstance(column, Ragged) and column.shapes is None:
            sizes = column.lengths[:, None]
            padded = _pad_rows(name, column, self._extent(sizes)[0], value)
            sides, kind = [0], "lengths"
        else:
            rows, shape = list(column), axes_of(field, column)
            sizes = np.array([row.shape for row in rows], np.int64).reshape(len(rows), len(shape))
            sides, kind = [axis for axis, n in enumerate(shape) if n is None], "shapes"
            extent = sizes.max(0, initial=0)
            extent[sides] = self._extent(sizes[:, sides])
            padded = _pad_images(field, rows, extent, value)
        out: dict[str, Any] = {name: tensor(padded)}
        if self.lengths:
            out[f"{name}_{kind}"] = torch.from_numpy(sizes[:, 0].copy() if kind == "lengths" else sizes)
        if self.mask:
            there = np.ones((len(sizes), *(padded.shape[1 + axis] for axis in sides)), np.bool_)
            for number, axis in enumerate(sides):
                along = np.arange(there.shape[1 + number]) < sizes[:, axis, None]
                there &= along.reshape(len(sizes), *(-1 if k == number else 1 for k in range(len(sides))))
            out[f"{name}_mask"] = torch.from_numpy(there)
        return out

    def _extent(self, sizes: Index) -> Index:
        """int64 `[axes]`: what rows of these sizes, int64 `[batch, axes]`, are filled up to."""
        longest: Index = sizes.max(0, initial=0)
        return longest if self.to is None else -(-longest // self.to) * self.to


@dataclass(frozen=True)
class PackedCollate(_Collate):
    """Rows one after another, without filling: what kernels for variable lengths take (flash attention, segment ops).

    `<field>`: `[total, *item]`; `<field>_offsets`: `[batch + 1]`, row `i` is items `offsets[i]` to `offsets[i + 1]`;
    `<field>_max_length`: an int. Where several axes vary, `<field>` is flat and `<field>_shapes`, int64
    `[batch, axes]`, is given as well. `offsets`: dtype of the offsets, `int64` or `int32`.
    """

    offsets: str = "int64"

    def __post_init__(self) -> None:
        if self.offsets not in ("int64", "int32"):
            raise UsageError(f"offsets must be int64 or int32, got {self.offsets!r:.80}")

    def _varying(self, field: Field, column: BatchColumn, columns: Columns) -> dict[str, Any]:
        ragged, name = as_ragged(field, column), field.name
        if self.offsets == "int32" and ragged.offsets[-1] > np.iinfo(np.int32).max:
            raise SchemaError(f"field {name}: {ragged.offsets[-1]} items in a batch, too many for offsets in int32")
        out = {
            name: tensor(slots.moved(name, ragged.values)),
            f"{name}_offsets": torch.from_numpy(ragged.offsets.astype(self.offsets, copy=False)),
            f"{name}_max_length": int(ragged.lengths.max(initial=0)),
        }
        if ragged.shapes is not None:
            out[f"{name}_shapes"] = torch.from_numpy(ragged.shapes)
        return out


@dataclass(frozen=True)
class NestedCollate(_Collate):
    """Rows of different lengths as one nested tensor of torch, in the jagged layout: `[batch, lengths, *item]`."""

    def _varying(self, field: Field, column: BatchColumn, columns: Columns) -> dict[str, Any]:
        ragged = as_ragged(field, column)
        lengths, values, offsets = ragged.lengths, ragged.values, ragged.offsets
        if ragged.shapes is not None:
            lengths, inner = ragged.shapes[:, 0], ragged.shapes[:1, 1:]
            if (ragged.shapes[:, 1:] != inner).any():
                raise SchemaError(
                    f"field {field.name}: a nested tensor's rows can differ in the first axis only; use PadCollate"
                )
            offsets = np.append(0, np.cumsum(lengths))
            values = values.reshape(offsets[-1], *inner.ravel().tolist())
        least, most = (int(lengths.min()), int(lengths.max())) if len(lengths) else (0, 0)
        parts = (tensor(slots.moved(field.name, values)), torch.from_numpy(offsets))
        nested = torch.nested.nested_tensor_from_jagged(*parts, min_seqlen=least, max_seqlen=most)
        return {field.name: nested}


@dataclass(frozen=True)
class SparseCollate(_Collate):
    """Sparse rows, stored as two fields of equal lengths, as one matrix `[batch, length]`.

    `indices` and `values`: the fields that hold the columns and the values of each row's entries. `layout`: `dense`, or
    `csr` for `torch.sparse_csr_tensor`. `name`: what the matrix is called, else as `values`; it stands in its place,
    and `indices` are left out. Entries of a row may come in any order, and those at the same place are added, as
    scipy does. Raises `SchemaError` for an index outside the row.
    """

    indices: str = "indices"
    values: str = "values"
    length: int = 0
    layout: str = "dense"
    name: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.length, bool) or not isinstance(self.length, int) or self.length < 1:
            raise UsageError(
                f"length is the number of columns, a whole number of at least 1, got {self.length!r:.80}.\n"
                "The manifest of a store has it: length of its source, or of the step sparse in its recipe"
            )
        if self.layout not in ("dense", "csr"):
            raise UsageError(f"layout must be dense or csr, got {self.layout!r:.80}")
        if self.indices == self.values:
            raise UsageError(f"indices and values can't be the same field, {self.values}")

    def _check(self, columns: Columns) -> None:
        for name in (self.indices, self.values):
            if name not in columns:
                raise UsageError(unknown("field", name, tuple(columns)))
            field, column = columns[name]
            if field is None or not isinstance(column, Ragged) or column.values.ndim != 1 or column.shapes is not None:
                raise SchemaError(f"field {name}: rows of a sparse matrix are lists of numbers of any length")
        indices = columns[self.indices][1]
        if indices.values.dtype.kind not in "iu":
            raise SchemaError(f"field {self.indices}: indices must be whole numbers, got {indices.values.dtype}")
        differ = np.flatnonzero(indices.lengths != columns[self.values][1].lengths)
        if len(differ):
            raise SchemaError(f"row {differ[0]} of the batch: {self.indices} and {self.values} differ in length")

    def _varying(self, field: Field, column: BatchColumn, columns: Columns) -> dict[str, Any]:
        if field.name == self.indices:
            return {}
        if field.name != self.values:
            return {field.name: batch_column(field, column)}
        name, indices = self.name or self.values, columns[self.indices][1]
        assert isinstance(column, Ragged)
        rows, n = len(column), self.length
        row = np.repeat(np.arange(rows), indices.lengths)
        at = indices.values.astype(np.int64)
        if len(at) and not 0 <= at.min() <= at.max() < n:
            bad = int(np.flatnonzero((at < 0) | (at >= n))[0])
            raise SchemaError(f"row {row[bad]} of the batch: {self.indices} has {at[bad]}, outside of {n} columns")
        place, values = _summed(row * n + at, column.values)
        if self.layout == "dense":
            dense = _room(name, (rows * n,), values.dtype)
            dense[...] = 0
            dense[place] = values
            return {name: tensor(dense.reshape(rows, n))}
        _quiet_csr()
        starts = torch.from_numpy(np.searchsorted(place, np.arange(rows + 1) * n))
        parts = (starts, torch.from_numpy(place % n), tensor(np.ascontiguousarray(values)))
        return {name: torch.sparse_csr_tensor(*parts, size=(rows, n), check_invariants=False)}


# -- arrays -----------------------------------------------------------------------------------------------------------


def _room(name: str, shape: Sequence[int], dtype: Any) -> Array:
    """Memory for a column, in a DataLoader worker such as reaches the parent without a copy."""
    memory = buffers.room(name, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return np.empty(shape, dtype) if memory is None else memory.view(dtype).reshape(shape)


def _pad_rows(name: str, column: Ragged, longest: int, value: Any) -> Array:
    """`[rows, longest, *item]`."""
    values = column.values
    out = _room(name, (len(column), int(longest), *values.shape[1:]), values.dtype)
    out[...] = value
    if longest < MASK_ITEMS:
        out[np.arange(longest) < column.lengths[:, None]] = values
        return out
    bounds = column.offsets.tolist()
    for row, (a, b) in enumerate(pairwise(bounds)):
        out[row, : b - a] = values[a:b]
    return out


def _pad_images(field: Field, rows: Sequence[Array], extent: Index, value: Any) -> Array:
    """`[rows, *extent]`; channels stay last in memory where they are, as in decoded images."""
    shape = tuple(extent.tolist())
    last = bool(rows) and rows[0].ndim == 3 and not rows[0].flags.c_contiguous
    out = _room(field.name, (len(rows), *((*shape[1:], shape[0]) if last else shape)), field.dtype)
    out[...] = value
    out = out.transpose(0, 3, 1, 2) if last else out
    for place, row in zip(out, rows, strict=True):
        place[tuple(map(slice, row.shape))] = row
    return out


def _filling(field: Field, value: Any) -> Any:
    """A number as the dtype of a field. Raises `UsageError` for one that the dtype can't hold."""
    dtype = np.dtype(field.dtype)
    if dtype.kind == "c" or (dtype.kind == "f" and not isinstance(value, complex)):
        return value
    if dtype.kind in "iu" and value == value and not isinstance(value, complex) and abs(value) != np.inf:
        limits = np.iinfo(dtype)
        if int(value) == value and limits.min <= value <= limits.max:
            return int(value)
    if dtype.kind == "b" and value in (0, 1):
        return bool(value)
    raise UsageError(f"field {field.name}: {dtype} can't hold the value {value!r} to fill with")


def _summed(place: Index, values: Array) -> tuple[Index, Array]:
    """Entries in rising order of their places, those at the same place added."""
    if (place[1:] > place[:-1]).all():
        return place, values
    order = np.argsort(place, kind="stable")
    place, values = place[order], values[order]
    first = np.flatnonzero(np.append(True, place[1:] != place[:-1]))
    if len(first) < len(place):
        add: Any = np.logical_or if values.dtype == np.bool_ else np.add
        place, values = place[first], add.reduceat(values, first, dtype=values.dtype)
    return place, values


@lru_cache(maxsize=1)
def _quiet_csr() -> None:
    """Have torch's warning, that CSR is in beta, out of the way: it comes once a process."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zero = torch.zeros(1, dtype=torch.int64)
        torch.sparse_csr_tensor(torch.zeros(2, dtype=torch.int64), zero[:0], zero[:0], (1, 1), check_invariants=False)
