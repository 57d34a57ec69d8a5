"""Rows of anything that can be read, and those of a store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bigconv.block import Block
from bigconv.schema import Schema
from bigconv.view.table import StoreView

FIRST = 256  # rows that tell what the others are like


@dataclass(frozen=True)
class Picked:
    """One row: its number (of a store) or place (of raw input: `cats/3.jpg`), and its values as `Block.row` gives."""

    number: int
    place: str
    values: dict[str, Any]


class Rows(Protocol):
    """A table of rows, read in order with bounded memory, or here and there."""

    @property
    def schema(self) -> Schema: ...

    @property
    def count(self) -> int | None:
        """How many rows; None where only reading tells."""

    def blocks(self) -> Iterator[Block]:
        """All rows in order, in blocks of some MiB; a block is valid until the next one."""

    def first(self) -> Block | None:
        """Some of the first rows, at little cost; None where none can be read."""

    def some(self, wanted: int, seed: int | None = None) -> list[Picked]:
        """Up to `wanted` rows in order: evenly spaced, or drawn with a seed."""


@dataclass(frozen=True)
class StoreRows:
    """Rows of a store."""

    view: StoreView

    @property
    def schema(self) -> Schema:
        return self.view.schema

    @property
    def count(self) -> int:
        return len(self.view)

    def blocks(self) -> Iterator[Block]:
        return self.view.blocks()

    def first(self) -> Block | None:
        return next(self.view.blocks(0, min(FIRST, len(self.view))), None)

    def some(self, wanted: int, seed: int | None = None) -> list[Picked]:
        numbers = spaced(len(self.view), wanted, seed)
        return [Picked(i, f"row {i:,}", self.view[i]) for i in numbers]


def spaced(count: int, wanted: int, seed: int | None = None) -> list[int]:
    """Up to `wanted` numbers below `count`, rising: each in the middle of an equal part, or drawn with a seed."""
    wanted = min(count, wanted)
    if wanted < 1:
        return []
    if seed is not None:
        return sorted(np.random.default_rng(seed).choice(count, wanted, replace=False, shuffle=False).tolist())
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]
