"""Row numbers as a caller gives them: lists, arrays, masks; checked, and made int64 from 0 on."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bigconv.block import Array, Index
from bigconv.errors import RowError

_INT64 = np.dtype(np.int64)


def numbers(rows: Sequence[int] | Array, count: int, what: str, told: Callable[[], str]) -> Index:
    """Numbers below `count` as int64, checked and made positive; a boolean mask is accepted too.

    `what` they number, and of what store (`told`), is for the message. Raises `RowError` for one that isn't there.
    """
    if type(rows) is np.ndarray and rows.dtype == _INT64 and rows.ndim == 1 and _in_range(rows, count):
        return rows  # the usual case
    try:
        index = _indexed(rows)
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
        raise RowError(f"{what} {int(index.max())} of {count} {what}s: {told()}")
    index = index.astype(np.int64, copy=False)
    if _in_range(index, count):
        return index
    low, high = int(index.min()), int(index.max())
    if low < -count or high >= count:
        raise RowError(f"{what} {low if low < -count else high} of {count} {what}s: {told()}")
    return np.where(index < 0, index + count, index) if low < 0 else index


def _in_range(index: Index, count: int) -> bool:
    """Whether numbers are from 0 to `count - 1`, in one pass: a negative one is huge without its sign."""
    return len(index) == 0 or bool(np.maximum.reduce(index.view(np.uint64)) < count)


def _indexed(rows: Any) -> Array:
    if type(rows) is list and rows and type(rows[0]) is int:  # as the samplers of torch give them
        try:
            return np.frombuffer(array("q", rows), np.int64)  # an eighth of numpy's time for it
        except TypeError:
            pass  # numbers of other types between them
    return np.asarray(rows)
