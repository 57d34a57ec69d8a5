"""Rows of stores picked and put in another order: shuffled, one part of a split, grouped by a field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as default
from typing import Any

import numpy as np

from bigconv.block import Block, Index
from bigconv.conversion.parts_cut import Value
from bigconv.errors import SchemaError, UsageError
from bigconv.sources.base import SPAN_BYTES, Reject, Span, even_spans, origins
from bigconv.sources.store import StoreSource
from bigconv.view.order import InOrder, Order, Permutation
from bigconv.view.splits import dealt, labels_of
from bigconv.view.table import StoreView

_SHUFFLE = 48  # what the random numbers are for, apart from the uses in view/
MOST_VALUES = 10_000  # of a field that parts are made by: beyond this it is no class


@dataclass(frozen=True)
class Listed:
    """Rows that are held one by one: 4 or 8 bytes each."""

    rows: Any  # uint32 or int64 [rows]

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, positions: Index) -> Index:
        found: Index = self.rows[positions].astype(np.int64)
        return found


@dataclass(frozen=True)
class Through:
    """One order seen through another: positions → `first` → `then`."""

    first: Order
    then: Order

    def __len__(self) -> int:
        return len(self.first)

    def at(self, positions: Index) -> Index:
        return self.then.at(self.first.at(positions))


@dataclass(frozen=True, eq=False)
class Picked(StoreSource):
    """Rows of stores in an order of their own, gathered a block at a time: memory stays flat whatever the order."""

    order: Order = default(default_factory=lambda: InOrder(0))

    @property
    def inputs(self) -> int:
        return len(self.order)

    def plan(self) -> Sequence[Span]:
        return even_spans(len(self.order), max(1, SPAN_BYTES // self._mean_bytes()))

    def read(self, span: Span) -> Iterator[Block | Reject]:
        rows = self.order.at(np.arange(span.start, span.stop, dtype=np.int64))
        for piece in self._pieces(rows):
            block = self.view.take(piece)
            yield Block(block.schema, block.columns, origins(*self.view.whence(piece)))

    def row_bytes(self, positions: Index) -> Index:
        return super().row_bytes(self.order.at(positions))

    def _pieces(self, rows: Index) -> list[Index]:
        """Rows in blocks of about `SPAN_BYTES`: where rows differ in size, some are far larger than the mean."""
        if not any(f.ragged for f in self.schema) or not len(rows):
            return [rows]
        total = np.cumsum(super().row_bytes(rows))
        cuts = np.flatnonzero(np.diff(total // SPAN_BYTES)) + 1
        return np.split(rows, cuts)

    def _mean_bytes(self) -> int:
        fixed = sum(f.row_bytes for f in self.schema if not f.ragged)
        if not any(f.ragged for f in self.schema):
            return max(1, fixed)
        return max(1, sum(root.bytes() for root in self.view.roots) // max(1, len(self.view)))


@dataclass(frozen=True)
class Pick:
    """Which rows, in which order: what `shard` was asked for besides sizes. Nothing asked: all, as they are."""

    shuffle: bool = False
    seed: int = 0
    split: Mapping[str, float] = default(default_factory=dict)
    stratify: str | None = None
    group: str | None = None
    by: str | None = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed}: expected 0 or more")
        if self.seed and not (self.shuffle or self.split):
            raise UsageError("--seed says how --shuffle and --split draw: give one of them")
        if not self.split and (self.stratify or self.group):
            raise UsageError(f"--{'stratify' if self.stratify else 'group'} says how a --split is made: give --split")
        for name in self.split:
            if not name or name in (".", "..") or set(name) & set('/\\\0:*?"<>|') or name != name.strip():
                raise UsageError(f"--split: {name!r} can't be the name of a folder")
        total = sum(self.split.values())
        if self.split and (min(self.split.values()) <= 0 or abs(total - 1) > 1e-6):
            told = split_told(self.split)
            raise UsageError(f"--split {told}: fractions must be positive and add up to 1, not {total:g}")

    def read(self, part: str | None = None) -> dict[str, Any]:
        """What the recipe keeps of it, for one part of the split."""
        told: dict[str, Any] = {}
        if self.shuffle:
            told["shuffle"] = True
        if self.split:
            told |= {"split": split_told(self.split), "stratify": self.stratify, "group": self.group, "subset": part}
        if told:
            told["seed"] = self.seed
        if self.by is not None:
            told["by"] = self.by
        return {key: value for key, value in told.items() if value is not None}

    def sources(self, view: StoreView) -> dict[str, tuple[StoreSource, list[tuple[Value, int]]]]:
        """Name of each subset (empty: all) → its rows, and the runs of rows that parts keep apart."""
        for field in (self.stratify, self.group, self.by):
            if field is not None:
                view.schema[field]  # raises with a suggestion
        if not self.split:
            return {"": self._ordered(view, InOrder(len(view)), 0)}
        labels = None if self.stratify is None else labels_of(view, self.stratify)
        groups = None if self.group is None else labels_of(view, self.group)
        try:
            part = dealt(len(view), list(self.split.values()), labels, groups, self.seed)
        except UsageError as error:
            raise UsageError(f"--split {split_told(self.split)}: {error}") from error
        small = len(view) <= np.iinfo(np.uint32).max
        found = {}
        for number, name in enumerate(self.split):
            rows = np.flatnonzero(part == number)
            found[name] = self._ordered(view, Listed(rows.astype(np.uint32) if small else rows), number)
        return found

    def _ordered(self, view: StoreView, order: Order, number: int) -> tuple[StoreSource, list[tuple[Value, int]]]:
        count = len(order)
        if self.shuffle:
            shuffled = Permutation(count, self.seed, _SHUFFLE, number)
            order = shuffled if isinstance(order, InOrder) else Through(shuffled, order)
        groups: list[tuple[Value, int]] = []
        if self.by is not None:
            rows = order.at(np.arange(count, dtype=np.int64))
            values = labels_of(view, self.by)[rows]
            if values.dtype.kind == "c" or (values.dtype.kind == "f" and not np.isfinite(values).all()):
                raise SchemaError(f"--by {self.by}: parts are made by numbers, classes or text, got {values.dtype}")
            names, counts = np.unique(values, return_counts=True)
            if len(names) > MOST_VALUES:
                raise UsageError(f"--by {self.by}: {len(names):,} different values; up to {MOST_VALUES:,} make sense")
            order = Listed(rows[np.argsort(values, kind="stable")])
            groups = list(zip(names.tolist(), counts.tolist(), strict=True))
        plain = isinstance(order, InOrder)
        return (StoreSource(view) if plain else Picked(view, order)), groups


def split_told(split: Mapping[str, float]) -> str:
    return ",".join(f"{name}={share:g}" for name, share in split.items())


def parse_split(text: str | Mapping[str, float]) -> dict[str, float]:
    """`train=0.9,val=0.1` as names and fractions. Raises `UsageError`."""
    if isinstance(text, Mapping):
        return {str(name): float(share) for name, share in text.items()}
    found: dict[str, float] = {}
    for entry in text.split(","):
        name, equals, share = entry.partition("=")
        try:
            fraction = float(share)
        except ValueError:
            fraction = 0.0
        if not equals or not name.strip() or not fraction or name.strip() in found:
            raise UsageError(f"--split {text}: expected names and fractions, such as train=0.9,val=0.1")
        found[name.strip()] = fraction
    return found
