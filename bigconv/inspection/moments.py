"""Numbers summed up as they go by: one pass, float64 at least, memory that doesn't grow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from bigconv.block import Array

CHUNK = 1 << 20  # values widened to float64 at once: 8 MiB, which a cache nearly holds
KEPT = 4096  # values kept for quantiles and histograms
BYTE = 256


class Moments:
    """Count, mean and squared deviations, merged by the formula of Chan, Golub and LeVeque (1979).

    Held in long double: its range lets values near the end of float64 have a mean and a deviation.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Any = np.longdouble(0)
        self.squares: Any = np.longdouble(0)  # sum of squared deviations from the mean

    def update(self, values: Array) -> None:
        """Add finite float64 `[n]`."""
        if not len(values):
            return
        with np.errstate(over="ignore", invalid="ignore"):
            mean = values.mean()
            off = values - mean
            squares = np.dot(off, off)
            if not (math.isfinite(mean) and math.isfinite(squares)):
                wide = values.astype(np.longdouble)
                mean = wide.mean()
                squares = np.square(wide - mean).sum()
        self._merge(len(values), np.longdouble(mean), np.longdouble(squares))

    def merge(self, other: Moments) -> None:
        if other.count:
            self._merge(other.count, other.mean, other.squares)

    def _merge(self, count: int, mean: Any, squares: Any) -> None:
        total = self.count + count
        apart = mean - self.mean
        self.mean += apart * count / total
        self.squares += squares + apart * apart * (np.longdouble(self.count) * count / total)
        self.count = total

    @property
    def std(self) -> float:
        """Of the population: divided by the count."""
        return float(np.sqrt(self.squares / self.count)) if self.count else math.nan


@dataclass(frozen=True)
class Summary:
    """What there is to say of some numbers. `mean`, `std` and bounds are those of the finite ones; None without any."""

    count: int
    nan: int
    inf: int
    min: int | float | None
    max: int | float | None
    mean: float | complex | None
    std: float | None


class Numbers:
    """A summary in the making, of values of one dtype. Integers of 8 bits and bool are counted one by one: exact."""

    def __init__(self, dtype: str) -> None:
        kind = np.dtype(dtype)
        self._complex = (Moments(), Moments()) if kind.kind == "c" else None  # of the two parts
        self._bytes = np.zeros(BYTE, np.int64) if kind.itemsize == 1 else None
        self._signed = kind.kind == "i"
        self._moments = Moments()
        self._nan = self._inf = 0
        self._low: Any = None
        self._high: Any = None
        self.kept = Kept()

    def update(self, values: Array) -> None:
        """Add values of any shape."""
        flat = values.reshape(-1)
        self.kept.update(flat)
        for start in range(0, len(flat), CHUNK):
            piece = flat[start : start + CHUNK]
            if self._bytes is not None:
                self._bytes += np.bincount(np.ascontiguousarray(piece).view(np.uint8), minlength=BYTE)
            elif self._complex is not None:
                self._add_complex(piece)
            else:
                self._add(piece)

    def _add(self, piece: Array) -> None:
        wide = piece.astype(np.float64)
        if piece.dtype.kind == "f":
            finite = np.isfinite(wide)
            if not finite.all():
                nan = int(np.isnan(wide).sum())
                self._nan += nan
                self._inf += len(wide) - int(finite.sum()) - nan
                wide = piece = wide[finite]
        if not len(wide):
            return
        low, high = piece.min().item(), piece.max().item()
        self._low = low if self._low is None else min(low, self._low)
        self._high = high if self._high is None else max(high, self._high)
        self._moments.update(wide)

    def _add_complex(self, piece: Array) -> None:
        assert self._complex is not None
        nan = np.isnan(piece)
        finite = np.isfinite(piece)
        self._nan += int(nan.sum())
        self._inf += int((~finite & ~nan).sum())
        good = piece[finite].astype(np.complex128)
        self._complex[0].update(good.real)
        self._complex[1].update(good.imag)

    def merge(self, other: Numbers) -> None:
        """Add what another has seen, of the same dtype."""
        self._nan += other._nan
        self._inf += other._inf
        self._moments.merge(other._moments)
        self.kept.update(other.kept.values)
        if self._bytes is not None and other._bytes is not None:
            self._bytes += other._bytes
        for own, its in zip(self._complex or (), other._complex or (), strict=True):
            own.merge(its)
        for low, high in [(other._low, other._high)] if other._low is not None else []:
            self._low = low if self._low is None else min(low, self._low)
            self._high = high if self._high is None else max(high, self._high)

    def table(self) -> dict[int, int] | None:
        """Value -> how often, of integers of 8 bits and bool; None for others."""
        if self._bytes is None:
            return None
        seen = np.flatnonzero(self._bytes)
        values = seen.astype(np.uint8).view(np.int8) if self._signed else seen
        return {int(v): int(n) for v, n in sorted(zip(values.tolist(), self._bytes[seen].tolist(), strict=True))}

    def summary(self) -> Summary:
        if self._bytes is not None:
            return _of_table(self.table() or {})
        if self._complex is not None:
            real, imaginary = self._complex
            if not real.count:
                return Summary(self._nan + self._inf, self._nan, self._inf, None, None, None, None)
            std = float(np.sqrt((real.squares + imaginary.squares) / real.count))
            mean = complex(float(real.mean), float(imaginary.mean))
            return Summary(real.count + self._nan + self._inf, self._nan, self._inf, None, None, mean, std)
        moments = self._moments
        count = moments.count + self._nan + self._inf
        if not moments.count:
            return Summary(count, self._nan, self._inf, None, None, None, None)
        return Summary(count, self._nan, self._inf, self._low, self._high, float(moments.mean), moments.std)


def _of_table(table: dict[int, int]) -> Summary:
    count = sum(table.values())
    if not count:
        return Summary(0, 0, 0, None, None, None, None)
    total = sum(v * n for v, n in table.items())
    squares = sum(v * v * n for v, n in table.items())
    variance = Fraction(count * squares - total * total, count * count)
    return Summary(count, 0, 0, min(table), max(table), total / count, math.sqrt(variance))


class Kept:
    """Every k-th value, k doubled whenever `KEPT` are held: enough for a histogram, the same in every run."""

    def __init__(self) -> None:
        self._step, self._next = 1, 0
        self._held: list[Array] = []
        self._count = 0

    def update(self, values: Array) -> None:
        """Add `[n]`."""
        picked = values[self._next :: self._step]
        self._next = (self._next - len(values)) % self._step
        if len(picked):
            self._held.append(picked.copy())
            self._count += len(picked)
        while self._count > KEPT:
            self._held = [np.concatenate(self._held)[::2]]
            if self._count % 2:  # the last value kept is an even one: the next in line is dropped
                self._next += self._step
            self._step *= 2
            self._count = len(self._held[0])

    @property
    def values(self) -> Array:
        return np.concatenate(self._held) if self._held else np.empty(0)

    def histogram(self, bins: int) -> list[int] | None:
        """How many of those kept fall in each of `bins` equal parts of their range; None where there is nothing."""
        values = self.values
        if values.dtype.kind not in "biuf" or not len(values):
            return None
        wide = values.astype(np.float64)
        wide = wide[np.isfinite(wide)]
        if not len(wide) or wide.min() == wide.max():
            return None
        low, high = np.percentile(wide, (0.5, 99.5))  # a few far ones would make one bar of the others
        if low == high:
            low, high = wide.min(), wide.max()
        with np.errstate(over="ignore"):
            if not math.isfinite(high - low):
                return None
        found, _ = np.histogram(wide[(wide >= low) & (wide <= high)], bins, (low, high))
        return [int(n) for n in found]
