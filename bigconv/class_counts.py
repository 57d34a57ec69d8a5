"""Rows of each class, counted as blocks go by: kept in the manifest, so that nobody reads all labels to count them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bigconv.block import Array, Block
from bigconv.schema import Field, Schema

#: field -> (label, rows), labels rising, each with a row at least
Counts = Mapping[str, tuple[tuple[int, int], ...]]

MOST_CLASSES = 1 << 16  # 1 MB of manifest; what has more values is a number about a row, not its class
AT_ONCE = 1 << 16  # rows counted together: blocks of few rows would cost a step of Python a row


def counted(f: Field) -> bool:
    """Whether a field says by a number which class a row is of; other labels are numbers about it, as a sample rate."""
    whole = f.kind == "label" and f.shape == () and np.dtype(f.dtype).kind in "iu"
    return whole and (f.classes is not None or f.name == "label")


class ClassCounts:
    """Counts of every field that names a class. A field of more than `MOST_CLASSES` has none."""

    def __init__(self, schema: Schema) -> None:
        self._found = {f.name: Distinct(MOST_CLASSES) for f in schema if counted(f)}
        self._waiting: dict[str, list[Array]] = {name: [] for name in self._found}
        self._rows = 0

    @property
    def fields(self) -> tuple[str, ...]:
        """Those that are counted."""
        return tuple(self._found)

    def update(self, block: Block) -> None:
        for name, waiting in self._waiting.items():
            waiting.append(np.array(block.columns[name]))  # a copy: the block may be memory that is used again
        self._rows += len(block)
        if self._rows >= AT_ONCE:
            self._count()

    def _count(self) -> None:
        for name, waiting in self._waiting.items():
            if waiting:
                self._found[name].update(np.concatenate(waiting))
                waiting.clear()
        self._rows = 0

    def finish(self) -> Counts:
        self._count()
        pairs = {name: found.pairs() for name, found in self._found.items()}
        return {name: of_field for name, of_field in pairs.items() if of_field is not None}


class Distinct:
    """Values and how often each comes, until there are more than `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._table: dict[int, int] | None = {}

    def update(self, values: Array) -> None:
        flat = values.reshape(-1)
        for start in range(0, len(flat), 1 << 20):
            if self._table is None:
                return
            found, counts = _unique(flat[start : start + (1 << 20)])
            if len(found) <= self._limit:
                self.add(zip(found.tolist(), counts.tolist(), strict=True))
            else:
                self._table = None

    def add(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Count values that were counted elsewhere."""
        if self._table is not None:
            for value, n in pairs:
                self._table[int(value)] = self._table.get(int(value), 0) + n
            if len(self._table) > self._limit:
                self._table = None

    def pairs(self) -> tuple[tuple[int, int], ...] | None:
        return None if self._table is None else tuple(sorted(self._table.items()))


def _unique(values: Array) -> tuple[Array, Array]:
    """As `np.unique` with counts; without sorting where the values lie close together."""
    if not len(values):
        return values, np.empty(0, np.int64)
    low, high = int(values.min()), int(values.max())
    if high - low >= 1 << 16 or high >= 1 << 63:
        found, counts = np.unique(values, return_counts=True)
        return found, counts
    counts = np.bincount(values.astype(np.int64) - low)
    seen = np.flatnonzero(counts)
    return seen + low, counts[seen]


def summed(parts: Iterable[Counts]) -> Counts:
    """Counts of all rows of some stores: of the fields that every one of them has counted."""
    total: dict[str, Distinct] | None = None
    for counts in parts:
        if total is None:
            total = {name: Distinct(MOST_CLASSES) for name in counts}
        total = {name: found for name, found in total.items() if name in counts}
        for name, found in total.items():
            found.add(counts[name])
    pairs = {name: found.pairs() for name, found in (total or {}).items()}
    return {name: of_field for name, of_field in pairs.items() if of_field is not None}


def named(f: Field, pairs: Iterable[tuple[int, int]]) -> list[tuple[int, str | None, int]]:
    """(label, name, rows) of each class, also of those that have a name and no row; a label without name has None."""
    names = f.classes or ()
    found = {**dict.fromkeys(range(len(names)), 0), **dict(pairs)}
    return [(label, names[label] if 0 <= label < len(names) else None, n) for label, n in sorted(found.items())]


def told(f: Field, pairs: Iterable[tuple[int, int]]) -> list[dict[str, Any]]:
    """The same as JSON values, for programs."""
    if f.classes is None:
        return [{"value": label, "count": n} for label, _, n in named(f, pairs)]
    return [{"value": label, "name": name, "count": n} for label, name, n in named(f, pairs)]


def to_json(counts: Counts) -> dict[str, list[list[int]]]:
    return {name: [list(pair) for pair in pairs] for name, pairs in counts.items()}


def from_json(data: Any, schema: Schema, rows: int) -> Counts:
    """What `to_json` gave. Raises `ValueError`, `KeyError` or `TypeError` for what can't be counts of these rows."""
    counts: dict[str, tuple[tuple[int, int], ...]] = {}
    for name, pairs in data.items():
        numbers = [number for pair in pairs for number in pair]
        labels, each = numbers[0::2], numbers[1::2]
        fits = all(type(number) is int for number in numbers) and all(len(pair) == 2 for pair in pairs)
        if not fits or not counted(schema[name]) or labels != sorted(set(labels)) or min(each, default=1) < 1:
            raise ValueError(f"the counts of field {name} are none of classes")
        if sum(each) != rows:
            raise ValueError(f"the classes of field {name} have {sum(each)} rows, not {rows}")
        counts[name] = tuple(zip(labels, each, strict=True))
    return counts
