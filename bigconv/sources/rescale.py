"""Stored numbers and what they stand for: slope and intercept, and the dtype that holds the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bigconv.block import Array
from bigconv.errors import InputError

WIDE_BITS = 16  # of stored numbers, up to which float32 keeps different ones different


@dataclass(frozen=True)
class Rescale:
    """`value = slope · stored + intercept`, for stored numbers of `dtype` that use `bits` of it.

    The rule for the dtype of values: as stored where there is nothing to apply; the smallest integer dtype that holds
    all of them where slope and intercept are whole numbers and so are the stored ones; float32 otherwise, or float64
    where more than 16 bits are stored.
    """

    dtype: str  # of the stored numbers, in native byte order
    bits: int
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def identity(self) -> bool:
        return self.slope == 1 and self.intercept == 0

    @property
    def whole(self) -> bool:
        return np.dtype(self.dtype).kind in "iub" and float(self.slope).is_integer() and self.intercept.is_integer()

    @property
    def limits(self) -> tuple[int, int]:
        """Least and largest value, where all are whole numbers."""
        if np.dtype(self.dtype).kind == "i":
            stored = -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
        else:
            stored = 0, (1 << self.bits) - 1
        ends = [int(self.slope) * n + int(self.intercept) for n in stored]
        return min(ends), max(ends)

    def apply(self, stored: Array, dtype: str) -> Array:
        """Values of `stored`, of the same shape, as `dtype`, which `common_dtype` gave.

        Raises `InputError` for numbers that use more than `bits`.
        """
        if self.identity and stored.dtype == np.dtype(dtype):
            return stored
        if self.whole and np.dtype(dtype).kind in "iu":
            values = stored.astype(np.int64) * int(self.slope) + int(self.intercept)
            info = np.iinfo(dtype)
            if values.size and (values.min() < info.min or values.max() > info.max):
                raise InputError(f"numbers beyond the {self.bits} bits that its header tells of")
            return values.astype(dtype)
        return (stored.astype(np.float64) * self.slope + self.intercept).astype(dtype)


def common_dtype(scales: Sequence[Rescale]) -> str:
    """The dtype that holds the values of all."""
    stored = {scale.dtype for scale in scales}
    if all(scale.identity for scale in scales) and len(stored) == 1:
        return scales[0].dtype
    if all(scale.whole for scale in scales):
        low = min(scale.limits[0] for scale in scales)
        high = max(scale.limits[1] for scale in scales)
        for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
            info = np.iinfo(name)
            if info.min <= low and high <= info.max:
                return name
        return "float64"
    if any(np.dtype(name).kind == "c" for name in stored):
        return "complex128"
    wide = any(np.dtype(s.dtype).itemsize > 4 if np.dtype(s.dtype).kind == "f" else s.bits > WIDE_BITS for s in scales)
    return "float64" if wide else "float32"
